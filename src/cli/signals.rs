//! Signals that end the process: they leave no unfinished file behind.
//!
//! Ctrl-C, `kill` and a closed terminal end the process as they always do, after the files are gone. So does memory
//! that could not be had where no error can be returned (Rust and the matrix products abort then), with exit status 1;
//! and an input that was cut short while it was read through its map, with exit status 2.

use std::path::Path;

/// Says that the file at `path` shall not outlive the process, until the guard is dropped.
pub fn unlink_at_signal(path: &Path) -> Guard {
    #[cfg(unix)]
    return unix::register(path);
    #[cfg(not(unix))]
    {
        let _ = path;
        Guard
    }
}

/// Makes the signals heed the files. Called once, at the start.
pub fn install() {
    #[cfg(unix)]
    unix::install();
}

#[cfg(unix)]
pub use unix::Guard;

/// Forgets its file when dropped.
#[cfg(not(unix))]
#[derive(Debug)]
pub struct Guard;

#[cfg(unix)]
mod unix {
    use std::ffi::{CString, c_char, c_int};
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;
    use std::ptr::null_mut;
    use std::sync::atomic::{AtomicPtr, Ordering};

    use libc::{SIGABRT, SIGHUP, SIGINT, SIGTERM};
    use signal_hook::low_level;

    /// The unfinished files: an output and a picture.
    static UNFINISHED: [AtomicPtr<c_char>; 2] = [const { AtomicPtr::new(null_mut()) }; 2];

    /// Forgets its file when dropped.
    #[derive(Debug)]
    pub struct Guard(Option<&'static AtomicPtr<c_char>>);

    impl Drop for Guard {
        fn drop(&mut self) {
            if let Some(slot) = self.0 {
                // Not freed: a handler may be reading it.
                slot.store(null_mut(), Ordering::SeqCst);
            }
        }
    }

    pub fn register(path: &Path) -> Guard {
        let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
            return Guard(None);
        };
        let path = path.into_raw();
        let is_taken = |slot: &&AtomicPtr<c_char>| {
            slot.compare_exchange(null_mut(), path, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
        };
        Guard(UNFINISHED.iter().find(is_taken))
    }

    pub fn install() {
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            // `nohup` and shells that start a job in the background have them ignored; that is left as it is.
            if !is_ignored(signal) {
                handle(signal, move || {
                    let _ = low_level::emulate_default_handler(signal);
                });
            }
        }
        handle(SIGABRT, || low_level::exit(1));
        #[cfg(target_os = "linux")]
        handle_cut_input();
    }

    /// Ends the process with status 2 on SIGBUS. Not by way of the crate that keeps handlers, which would call Rust's own
    /// first: that one gives the signal back to the system, which ends the process when a second thread meets it.
    #[cfg(target_os = "linux")]
    fn handle_cut_input() {
        extern "C" fn cut_short(_signal: c_int) {
            unlink_all();
            say("error: the input was cut short while it was read\n");
            low_level::exit(2);
        }
        // SAFETY: a struct of numbers, for which zeros are valid: no flags, and no signal blocked meanwhile.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = cut_short as extern "C" fn(c_int) as libc::sighandler_t;
        action.sa_flags = libc::SA_ONSTACK;
        // SAFETY: the handler unlinks, writes and exits, which a signal handler may.
        let code = unsafe { libc::sigaction(libc::SIGBUS, &action, null_mut()) };
        debug_assert_eq!(code, 0);
    }

    fn unlink_all() {
        for slot in &UNFINISHED {
            let path = slot.load(Ordering::SeqCst);
            if !path.is_null() {
                // SAFETY: a string that ends in a zero byte and is never freed. A handler may call unlink.
                unsafe { libc::unlink(path) };
            }
        }
    }

    /// Runs `then`, which may do only what a signal handler may, on `signal`, after the unfinished files are gone.
    fn handle(signal: c_int, then: impl Fn() + Sync + Send + 'static) {
        let handler = move || {
            unlink_all();
            then();
        };
        // SAFETY: the handler and all that is passed to this function load atomics, unlink, write and exit, each of
        // which a signal handler may.
        let registered = unsafe { low_level::register(signal, handler) };
        // Fails for signals that cannot be handled; these can.
        debug_assert!(registered.is_ok());
    }

    #[cfg(target_os = "linux")]
    fn say(text: &str) {
        // SAFETY: the buffer has the length given. A handler may call write.
        unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
    }

    fn is_ignored(signal: c_int) -> bool {
        // SAFETY: a struct of numbers, for which zeros are valid.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: asks for the action without changing it; the struct lives through the call.
        let code = unsafe { libc::sigaction(signal, std::ptr::null(), &mut action) };
        code == 0 && action.sa_sigaction == libc::SIG_IGN
    }
}
