//! Output files: written under a temporary name beside their target, renamed when they are whole.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::{Error, Result};
use crate::signals::{self, Guard};

/// Links followed before a path is taken for a loop, as the system does.
const MAX_LINKS: usize = 40;

/// Where a path leads: a name, in use or not, in a directory that is there.
#[derive(Debug)]
pub struct Destination {
    directory: PathBuf,
    name: OsString,
}

impl Destination {
    /// Follows links, to the name where they end even if nothing has that name yet.
    ///
    /// # Errors
    /// Where no file can have that name: it is a directory's, is too long, or lies in no directory.
    pub fn resolve(path: &Path) -> io::Result<Self> {
        let mut path = path.to_owned();
        for _ in 0..MAX_LINKS {
            let name = last_name(&path).ok_or_else(not_regular)?.to_owned();
            let directory = match path.parent() {
                Some(parent) if parent != Path::new("") => parent,
                _ => Path::new("."),
            };
            let target = Destination {
                directory: directory.canonicalize()?,
                name,
            };
            match fs::symlink_metadata(target.path()) {
                Ok(there) if there.is_symlink() => {
                    path = target.directory.join(fs::read_link(target.path())?);
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => return Ok(target),
            }
        }
        Err(io::Error::other("expected a file, got a loop of links"))
    }

    /// The path without links.
    pub fn path(&self) -> PathBuf {
        self.directory.join(&self.name)
    }

    /// Whether both are the same name in the same directory.
    pub fn is_same(&self, other: &Destination) -> bool {
        let places = || Some((place(&self.directory)?, place(&other.directory)?));
        self.name == other.name
            && match places() {
                Some((one, other)) => one == other,
                None => self.directory == other.directory,
            }
    }
}

/// The name after the last separator, unless it is empty or stands for a directory.
fn last_name(path: &Path) -> Option<&OsStr> {
    let bytes = path.as_os_str().as_encoded_bytes();
    let mut names = bytes.rsplit(|&byte| std::path::is_separator(byte.into()));
    match names.next()? {
        b"" | b"." | b".." => None,
        _ => path.file_name(),
    }
}

/// Device and number of a directory, which several paths may lead to (bind mounts).
#[cfg(unix)]
fn place(directory: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(directory).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn place(_directory: &Path) -> Option<(u64, u64)> {
    None
}

fn not_regular() -> io::Error {
    io::Error::other("expected the name of a regular file")
}

/// A file that appears under its name only when it is [committed](commit), and whole.
#[derive(Debug)]
pub struct PendingFile {
    target: Destination,
    temporary: NamedTempFile,
    _guard: Guard,
}

impl PendingFile {
    /// Starts a file that will be called `path`, or what `path` links to. Only a regular file is ever replaced, and
    /// its permissions are kept.
    ///
    /// # Errors
    /// [`Error::Output`] too where the finished file could not be given that name.
    pub fn create(path: &Path) -> Result<Self> {
        let fail = |error: io::Error| Error::output(path, "cannot create")(error);
        let target = Destination::resolve(path).map_err(fail)?;
        let there = fs::symlink_metadata(target.path()).ok();
        if let Some(there) = &there {
            check_replaceable(&target, there).map_err(fail)?;
        }
        let (temporary, guard) = temporary(&target.directory, there.as_ref())
            // The path in its message would be the temporary one.
            .map_err(|error| fail(error.kind().into()))?;
        Ok(PendingFile {
            target,
            temporary,
            _guard: guard,
        })
    }

    /// Writes `bytes` at `offset`.
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let file = self.temporary.as_file_mut();
        file.seek(SeekFrom::Start(offset))
            .and_then(|_| file.write_all(bytes))
            .map_err(Error::output(&self.target.path(), "cannot write"))
    }

    /// Makes the file `bytes` long; what was not written is 0.
    pub fn set_len(&mut self, bytes: u64) -> Result<()> {
        let file = self.temporary.as_file();
        file.set_len(bytes)
            .map_err(Error::output(&self.target.path(), "cannot write"))
    }
}

/// Gives finished files their names, replacing what had them: all of them, or where the system refuses one, none of
/// those that are left. What has no name yet is kept under its temporary one, which the error tells.
pub fn commit(files: impl IntoIterator<Item = PendingFile>) -> Result<()> {
    let files: Vec<PendingFile> = files.into_iter().collect();
    for file in &files {
        // Before the rename: after a power cut the name leads to the old content or to all of the new.
        let written = file.temporary.as_file().sync_all();
        written.map_err(Error::output(&file.target.path(), "cannot write"))?;
    }
    let mut refused: Option<(PathBuf, io::Error)> = None;
    let mut kept = Vec::new();
    for PendingFile {
        target, temporary, ..
    } in files
    {
        let temporary = match refused {
            Some(_) => temporary,
            None => match temporary.persist(target.path()) {
                Ok(_) => {
                    // Makes the name last too. Some file systems cannot, and then it lasts as they please.
                    let _ =
                        File::open(&target.directory).and_then(|directory| directory.sync_all());
                    continue;
                }
                Err(failed) => {
                    refused = Some((target.path(), failed.error));
                    failed.file
                }
            },
        };
        kept.extend(temporary.keep().map(|(_, path)| path));
    }
    match refused {
        None => Ok(()),
        Some((path, source)) => Err(Error::Rename { path, kept, source }),
    }
}

/// An empty file in `directory` with the permissions of the one that is there, or of any new file.
fn temporary(directory: &Path, there: Option<&Metadata>) -> io::Result<(NamedTempFile, Guard)> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".attention-rollout-").suffix(".tmp");
    let mut options = File::options();
    options.read(true).write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
        let mode = there.map_or(0o666, |there| there.permissions().mode() & 0o777);
        // The process's umask takes away from this what it takes from any other new file.
        options.mode(mode);
    }
    let mut guard = None;
    let file = builder.make_in(directory, |path| {
        // Before it is there: a signal may come at any time.
        guard = Some(signals::unlink_at_signal(path));
        options.open(path)
    })?;
    #[cfg(unix)]
    if let Some(there) = there {
        file.as_file().set_permissions(there.permissions())?;
    }
    #[cfg(not(unix))]
    let _ = there;
    let guard = guard.ok_or_else(|| io::Error::other("no file was made"))?;
    Ok((file, guard))
}

/// Refuses what can never be replaced by a rename.
fn check_replaceable(target: &Destination, there: &Metadata) -> io::Result<()> {
    if !there.is_file() {
        return Err(not_regular());
    }
    #[cfg(target_os = "linux")]
    if is_mount_point(&target.path()) {
        return Err(io::Error::other(
            "expected a file that can be replaced, got a mount point; mount its directory instead",
        ));
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        const STICKY: u32 = 0o1000;
        let directory = fs::metadata(&target.directory)?;
        // SAFETY: only asks who the user is.
        let user = unsafe { libc::geteuid() };
        let owners = [0, there.uid(), directory.uid()];
        if directory.mode() & STICKY != 0 && !owners.contains(&user) {
            return Err(io::Error::other(
                "expected a file that can be replaced, got another user's in a sticky directory",
            ));
        }
    }
    Ok(())
}

/// Whether a file is mounted at `path` itself, as containers mount single files.
#[cfg(target_os = "linux")]
fn is_mount_point(path: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let Ok(path) = std::ffi::CString::new(path.as_os_str().as_bytes()) else {
        return false;
    };
    // SAFETY: a struct of numbers, for which zeros are valid.
    let mut answer: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends in a zero byte, and both live through the call.
    let code = unsafe {
        libc::statx(
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW,
            0,
            &mut answer,
        )
    };
    let mount_root = libc::STATX_ATTR_MOUNT_ROOT as u64;
    code == 0 && answer.stx_attributes & answer.stx_attributes_mask & mount_root != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(path: &Path, bytes: &[u8]) -> PendingFile {
        let mut file = PendingFile::create(path).unwrap();
        file.write_at(0, bytes).unwrap();
        file
    }

    #[test]
    fn what_cannot_be_renamed_is_kept_and_named() {
        let directory = tempfile::tempdir().unwrap();
        let [one, two, three] = ["one", "two", "three"].map(|name| directory.path().join(name));
        let files = [(&one, b"1"), (&two, b"2"), (&three, b"3")];
        let files: Vec<_> = files.map(|(path, bytes)| pending(path, bytes)).into();
        // Something takes the name while the work is done.
        fs::create_dir(&two).unwrap();
        let error = commit(files).unwrap_err();
        assert_eq!(error.exit_status(), 1);
        let Error::Rename { path, kept, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(*path, two.canonicalize().unwrap());
        assert_eq!(fs::read(&one).unwrap(), b"1");
        assert!(!three.exists());
        assert_eq!(kept.len(), 2);
        for (kept, bytes) in kept.iter().zip([b"2", b"3"]) {
            assert_eq!(fs::read(kept).unwrap(), bytes);
            assert!(
                error.to_string().contains(kept.to_str().unwrap()),
                "{error}"
            );
        }
    }

    #[test]
    fn names_of_directories_are_no_targets() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_str().unwrap();
        for name in ["", "/", "new/", "new//", ".", "..", "new/.", "./", "a/../"] {
            let name = format!("{path}/{name}");
            assert!(Destination::resolve(Path::new(&name)).is_err(), "{name:?}");
        }
        for name in ["new", "...", "a.", "..a", ".hidden"] {
            let target = Destination::resolve(Path::new(&format!("{path}/{name}"))).unwrap();
            assert_eq!(target.name, name);
        }
        assert!(Destination::resolve(&directory.path().join("n".repeat(256))).is_err());
    }
}
