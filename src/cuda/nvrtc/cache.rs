//! Compiled kernels on disk.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::entry::{self, Key};
use super::source::{hexadecimal, update_with_length};
use super::{Compiled, Nvrtc, NvrtcError, Options, Source};

/// No entry comes near this size; a larger file is foreign and is not read into memory.
const MAX_ENTRY_BYTES: u64 = 64 << 20;

/// A directory of compiled kernels, or none.
///
/// An entry is used only if it was compiled from the same source, headers and options by the same NVRTC and the same
/// version of this crate, and is undamaged; otherwise the source is compiled anew and the entry replaced. Entries
/// appear whole, so any number of processes may share a directory. Trouble with the disk is never an error: whatever
/// cannot be read is compiled, and what cannot be written is not kept. The directory may be deleted at any time.
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
        let Some(directory) = &self.directory else {
            return nvrtc.compile(source, options);
        };
        let key = key(nvrtc, source, options);
        let file = directory.join(format!("{}.bin", hexadecimal(&key)));
        if let Some(compiled) = read(&file).and_then(|bytes| entry::decode(&bytes, &key)) {
            return Ok(compiled);
        }
        let compiled = nvrtc.compile(source, options)?;
        // Not being able to keep it costs the next process a compilation and nothing else.
        let _ = write(directory, &file, &entry::encode(&key, &compiled));
        Ok(compiled)
    }
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
    let read = File::open(file)
        .ok()?
        .take(MAX_ENTRY_BYTES + 1)
        .read_to_end(&mut bytes)
        .ok()?;
    (read as u64 <= MAX_ENTRY_BYTES).then_some(bytes)
}

/// Writes a file so that others see all of it or none.
fn write(directory: &Path, file: &Path, bytes: &[u8]) -> io::Result<()> {
    make_directory(directory)?;
    let mut temporary = tempfile::NamedTempFile::new_in(directory)?;
    temporary.write_all(bytes)?;
    temporary.persist(file)?;
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
    fn a_file_too_large_to_be_an_entry_is_not_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(MAX_ENTRY_BYTES + 1).unwrap();
        assert_eq!(read(file.path()), None);
        file.as_file().set_len(10).unwrap();
        assert_eq!(read(file.path()), Some(vec![0; 10]));
    }
}
