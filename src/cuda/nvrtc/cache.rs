//! Compiled kernels on disk.

mod file;

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use super::source::{hexadecimal, update_with_length};
use super::{Compiled, Nvrtc, NvrtcError, Options, Source};
use file::Key;

/// No entry comes near this size; a larger file is foreign and is not read into memory.
const MAX_ENTRY_BYTES: u64 = 64 << 20;

/// What the names of unfinished entries begin with.
const TEMPORARY: &str = ".attention-rollout-";

/// What a cache may hold: some thousand kernels.
const MAX_BYTES: u64 = 256 << 20;

/// A directory of compiled kernels, and of which way of computing a problem was [timed](crate::cuda::tune) to be the fastest; or
/// none.
///
/// Whoever can write there decides what code runs on the GPU. So the directory is used only if it belongs to the user
/// (or to root) and neither its group nor others may write to it; [`distrusted`](Cache::distrusted) tells.
///
/// An entry is used only if it was compiled from the same source, headers and options by the same NVRTC and the same
/// version of this crate, and is undamaged; otherwise the source is compiled anew and the entry replaced. Entries
/// appear whole, so any number of processes may share a directory. Trouble with the disk is never an error: whatever
/// cannot be read is compiled, and what cannot be written is not kept. Of more than 256 MiB the entries that were used
/// longest ago are deleted. The directory may be deleted at any time.
#[derive(Clone, Debug)]
pub struct Cache {
    directory: Option<PathBuf>,
}

impl Cache {
    /// The cache that the environment asks for: none with `ROLLOUT_CACHE=off`, else `ROLLOUT_CACHE_DIR`, else
    /// `attention-rollout` in `XDG_CACHE_HOME` or in `~/.cache`.
    pub fn from_env() -> Self {
        Self {
            directory: directory(&|name| env::var_os(name)),
        }
    }

    /// A cache in a directory, which is made when first needed.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: Some(directory.into()),
        }
    }

    /// No cache: everything is compiled.
    pub fn disabled() -> Self {
        Self { directory: None }
    }

    /// The directory; `None` when nothing is cached.
    pub fn directory(&self) -> Option<&Path> {
        self.directory.as_deref()
    }

    /// Why the directory is not used, although there is one.
    pub fn distrusted(&self) -> Option<String> {
        distrusted(self.directory.as_deref()?)
    }

    /// Reads a source's image from the cache, or compiles it and keeps the result.
    /// [`Compiled::from_cache`] tells which.
    ///
    /// # Errors
    ///
    /// Those of [`Nvrtc::compile`].
    pub fn compile(
        &self,
        nvrtc: &Nvrtc,
        source: &Source<'_>,
        options: &Options,
    ) -> Result<Compiled, NvrtcError> {
        let Some(directory) = self.trusted() else {
            return nvrtc.compile(source, options);
        };
        let key = key(nvrtc, source, options);
        let file = directory.join(format!("{}.bin", hexadecimal(&key)));
        if let Some(compiled) = read(&file).and_then(|bytes| file::decode(&bytes, &key)) {
            return Ok(compiled);
        }
        let compiled = nvrtc.compile(source, options)?;
        // Not being able to keep it costs the next process a compilation and nothing else.
        let _ = write(directory, &file, &file::encode(&key, &compiled));
        Ok(compiled)
    }

    /// What was [noted](Cache::note) under `key`.
    pub(in crate::cuda) fn noted(&self, key: &[u8; 32]) -> Option<String> {
        let bytes = read(&note(self.trusted()?, key))?;
        String::from_utf8(bytes).ok()
    }

    /// Keeps a line of text for later processes.
    pub(in crate::cuda) fn note(&self, key: &[u8; 32], text: &str) {
        if let Some(directory) = self.trusted() {
            // Not being able to keep it costs the next process what it took to find out.
            let _ = write(directory, &note(directory, key), text.as_bytes());
        }
    }

    /// The directory, if it is to be used.
    fn trusted(&self) -> Option<&Path> {
        let directory = self.directory.as_deref()?;
        distrusted(directory).is_none().then_some(directory)
    }
}

/// The file of a note.
fn note(directory: &Path, key: &[u8; 32]) -> PathBuf {
    directory.join(format!("{}.txt", hexadecimal(key)))
}

/// The directory that the environment asks for.
fn directory(variable: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    if set("ROLLOUT_CACHE").is_some_and(|value| value == "off") {
        return None;
    }
    if let Some(directory) = set("ROLLOUT_CACHE_DIR") {
        return Some(directory.into());
    }
    // The XDG base directory specification has relative paths ignored.
    let absolute = |name: &str| {
        set(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(base.join("attention-rollout"))
}

/// Why a directory is not to be trusted with code; `None` too where there is none yet.
#[cfg(unix)]
fn distrusted(directory: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(directory).ok()?;
    // SAFETY: only asks who the user is.
    let user = unsafe { libc::geteuid() };
    if ![0, user].contains(&metadata.uid()) {
        return Some(format!("it belongs to user {}", metadata.uid()));
    }
    (metadata.mode() & 0o022 != 0).then(|| "others may write to it".to_owned())
}

#[cfg(not(unix))]
fn distrusted(_directory: &Path) -> Option<String> {
    None
}

/// Everything that the compiled image depends on.
fn key(nvrtc: &Nvrtc, source: &Source<'_>, options: &Options) -> Key {
    let mut hasher = Sha256::new();
    let mut add = |bytes: &[u8]| update_with_length(&mut hasher, bytes);
    add(env!("CARGO_PKG_VERSION").as_bytes());
    add(nvrtc.version().to_string().as_bytes());
    // Releases of one version differ, but report the same number; their sizes tell them apart.
    let library_bytes = fs::metadata(nvrtc.path()).map_or(0, |file| file.len());
    add(&library_bytes.to_le_bytes());
    add(source.name.as_bytes());
    add(source.text.as_bytes());
    add(&(source.headers.len() as u64).to_le_bytes());
    for (name, text) in source.headers {
        add(name.as_bytes());
        add(text.as_bytes());
    }
    for argument in options.arguments() {
        add(argument.as_bytes());
    }
    hasher.finalize().into()
}

/// A file's bytes; `None` when it cannot be read or is too large to be an entry.
fn read(file: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(file).ok()?;
    let read = (&file)
        .take(MAX_ENTRY_BYTES + 1)
        .read_to_end(&mut bytes)
        .ok()?;
    // When it was last used; that it cannot be noted harms nobody.
    let _ = file.set_modified(SystemTime::now());
    (read as u64 <= MAX_ENTRY_BYTES).then_some(bytes)
}

/// Writes a file so that others see all of it or none.
fn write(directory: &Path, file: &Path, bytes: &[u8]) -> io::Result<()> {
    make_directory(directory)?;
    let mut temporary = tempfile::Builder::new()
        .prefix(TEMPORARY)
        .tempfile_in(directory)?;
    temporary.write_all(bytes)?;
    temporary.persist(file)?;
    evict(directory, MAX_BYTES)
}

/// Whether a file of that name is an entry, or what a process that was killed left of one.
fn is_own(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    let key = name.strip_suffix(b".bin").or(name.strip_suffix(b".txt"));
    key.is_some_and(|key| key.len() == 64 && key.iter().all(u8::is_ascii_hexdigit))
        || name.starts_with(TEMPORARY.as_bytes())
}

/// Deletes the entries that were used longest ago, until those that are left have at most `most` bytes.
fn evict(directory: &Path, most: u64) -> io::Result<()> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.is_file() && is_own(&entry.file_name()) {
            entries.push((metadata.modified()?, metadata.len(), entry.path()));
        }
    }
    entries.sort_by(|a, b| b.cmp(a));
    let mut bytes = 0;
    for (_, len, path) in entries {
        bytes += len;
        if bytes > most {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Makes a directory and its parents, for the user's eyes only, as the XDG base directory specification wants.
fn make_directory(directory: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn chosen(variables: &[(&str, &str)]) -> Option<PathBuf> {
        directory(&|name| {
            let (_, value) = variables.iter().find(|(variable, _)| *variable == name)?;
            Some((*value).into())
        })
    }

    #[test]
    fn the_environment_chooses_the_directory() {
        let home = ("HOME", "/home/user");
        let xdg = ("XDG_CACHE_HOME", "/cache");
        let own = ("ROLLOUT_CACHE_DIR", "kept");
        let path = |text: &str| Some(PathBuf::from(text));
        assert_eq!(chosen(&[home, xdg, own]), path("kept"));
        assert_eq!(chosen(&[home, xdg]), path("/cache/attention-rollout"));
        assert_eq!(chosen(&[home]), path("/home/user/.cache/attention-rollout"));
        assert_eq!(chosen(&[]), None);
        assert_eq!(chosen(&[home, xdg, own, ("ROLLOUT_CACHE", "off")]), None);
        assert_eq!(chosen(&[own, ("ROLLOUT_CACHE", "")]), path("kept"));
        let relative = ("XDG_CACHE_HOME", "relative");
        assert_eq!(
            chosen(&[home, relative]),
            path("/home/user/.cache/attention-rollout")
        );
    }

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let directory = tempfile::tempdir().unwrap();
        let [newest, newer, older] = ["1", "2", "3"].map(|digit| digit.repeat(64) + ".bin");
        let unfinished = format!("{TEMPORARY}abc");
        let names = [&newest, &newer, &older, &unfinished, "foreign.bin"];
        let file = |name: &str| directory.path().join(name);
        for (age, name) in names.iter().enumerate() {
            fs::write(file(name), [0; 100]).unwrap();
            let time = SystemTime::now() - Duration::from_secs(1000 * age as u64);
            File::open(file(name)).unwrap().set_modified(time).unwrap();
        }
        let left = |most| {
            evict(directory.path(), most).unwrap();
            names.map(|name| file(name).exists())
        };
        assert_eq!(left(400), [true; 5]);
        // Reading it makes it the one used last.
        assert!(read(&file(&older)).is_some());
        assert_eq!(left(299), [true, false, true, false, true]);
    }

    #[cfg(unix)]
    #[test]
    fn a_directory_that_others_can_write_to_is_not_trusted() {
        use std::os::unix::fs::PermissionsExt;
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("kernels");
        assert_eq!(distrusted(&directory), None);
        make_directory(&directory).unwrap();
        for (mode, is_trusted) in [
            (0o700, true),
            (0o755, true),
            (0o775, false),
            (0o702, false),
            (0o1777, false),
        ] {
            fs::set_permissions(&directory, fs::Permissions::from_mode(mode)).unwrap();
            let cache = Cache::at(&directory);
            assert_eq!(cache.distrusted().is_none(), is_trusted, "{mode:o}");
        }
    }

    #[test]
    fn a_file_too_large_to_be_an_entry_is_not_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(MAX_ENTRY_BYTES + 1).unwrap();
        assert_eq!(read(file.path()), None);
        file.as_file().set_len(10).unwrap();
        assert_eq!(read(file.path()), Some(vec![0; 10]));
    }
}
