//! Runs that are ended from outside leave nothing behind.
#![cfg(unix)]

use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Bench, sparse};

/// A run over 256 MB of maps that has begun its output.
struct Running {
    bench: Bench,
    child: Child,
}

impl Running {
    fn start(through: &[&str]) -> Self {
        let bench = Bench::new();
        sparse(&bench.path("in.st"), 4, 4096);
        fs::write(bench.path("out"), "older").unwrap();
        let binary = env!("CARGO_BIN_EXE_attention-rollout");
        let run = [binary, "run", "in.st", "--output", "out", "--device", "cpu"];
        let command = [through, &run, &["--output-kind", "matrix"]].concat();
        let mut process = Command::new(command[0]);
        process
            .args(&command[1..])
            .current_dir(bench.directory.path())
            .stderr(Stdio::piped());
        // Whatever runs the tests may have them ignored, as a shell does for what it starts in the background.
        // SAFETY: between fork and exec only `signal` is called, which may be.
        unsafe {
            process.pre_exec(|| {
                for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
                    libc::signal(signal, libc::SIG_DFL);
                }
                Ok(())
            });
        }
        let child = process.spawn().unwrap();
        let begun = Instant::now();
        while bench.files().len() < 3 {
            assert!(begun.elapsed() < Duration::from_secs(60), "no output begun");
            std::thread::sleep(Duration::from_millis(2));
        }
        Running { bench, child }
    }

    fn signal(&self, name: &str) {
        let process = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &process]).status();
        assert!(sent.unwrap().success());
    }

    /// How it ended, after a check that the older output is all there is.
    fn end(self) -> (ExitStatus, String) {
        let Output { status, stderr, .. } = self.child.wait_with_output().unwrap();
        assert_eq!(self.bench.files(), ["in.st", "out"], "{status}");
        let out = fs::read(self.bench.path("out")).unwrap();
        assert!(out == b"older", "{status}: {} bytes written", out.len());
        (status, String::from_utf8(stderr).unwrap())
    }
}

#[test]
fn interrupted_runs_leave_nothing() {
    for (name, number) in [("INT", 2), ("TERM", 15), ("HUP", 1)] {
        let running = Running::start(&[]);
        running.signal(name);
        let (status, _) = running.end();
        assert_eq!(status.signal(), Some(number), "{name}: {status}");
    }
}

#[test]
fn an_abort_is_status_1_and_leaves_nothing() {
    let running = Running::start(&[]);
    running.signal("ABRT");
    assert_eq!(running.end().0.code(), Some(1));
}

#[test]
fn signals_that_are_ignored_stay_so() {
    let running = Running::start(&["sh", "-c", "trap '' HUP; exec \"$@\"", "sh"]);
    running.signal("HUP");
    std::thread::sleep(Duration::from_millis(50));
    running.signal("TERM");
    assert_eq!(running.end().0.signal(), Some(15));
}

#[test]
fn an_input_that_is_cut_short_is_wrong_input() {
    let running = Running::start(&[]);
    let mut options = fs::File::options();
    let input = options.write(true).open(running.bench.path("in.st"));
    input.unwrap().set_len(8192).unwrap();
    let (status, stderr) = running.end();
    assert_eq!(status.code(), Some(2), "{status}: {stderr}");
    assert!(stderr.contains("cut short while it was read"), "{stderr}");
}
