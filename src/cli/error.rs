//! What can go wrong on the command line, and the exit status it means.

use std::path::{Path, PathBuf};

use crate::shown::{shown, shown_sentence};

/// Result with the command line's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that ends a command early. [`Error::exit_status`] tells wrong input from the rest.
///
/// Names, paths and whatever else comes from outside is shown escaped and cut.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An option's value does not fit the input or another option.
    #[error("{option}: expected {}, got {}", shown_sentence(expected), shown(got))]
    Argument {
        option: &'static str,
        expected: String,
        got: String,
    },
    /// An input file cannot be read, or is not what its name says.
    #[error("{}: {}", shown_path(path), shown_sentence(reason))]
    Input { path: PathBuf, reason: String },
    /// A tensor has the wrong element type, shape or values.
    #[error(
        "tensor {}: expected {}, got {}",
        shown(name),
        shown_sentence(expected),
        shown(got)
    )]
    Tensor {
        name: String,
        expected: String,
        got: String,
    },
    /// A tensor that an option needs is not in the file.
    #[error(
        "tensor {}: expected by {}, got no such tensor",
        shown(name),
        shown(needed_by)
    )]
    MissingTensor { name: String, needed_by: String },
    /// The library refuses the problem, or the machine cannot run it.
    #[error("{}: {source}", shown(place))]
    Rollout {
        place: String,
        source: attention_rollout::Error,
    },
    /// The device asked for cannot be used.
    #[error("device {device}: {reason}")]
    Device { device: String, reason: String },
    /// A backend is further from the reference than its error budget.
    #[error("{failed} of {total} checks exceed their error budget")]
    Verify { failed: usize, total: usize },
    /// An output cannot be written.
    #[error("{}: {action}: {source}", shown_path(path))]
    Output {
        path: PathBuf,
        action: &'static str,
        source: std::io::Error,
    },
    /// A finished output cannot be given its name.
    #[error(
        "{}: cannot rename into place: {source}; what is finished is kept: {}",
        shown_path(path),
        kept.iter().map(|path| shown_path(path)).collect::<Vec<_>>().join(", ")
    )]
    Rename {
        path: PathBuf,
        /// The temporary files.
        kept: Vec<PathBuf>,
        source: std::io::Error,
    },
    /// What was to be printed cannot be.
    #[error("standard output: cannot write: {source}")]
    Stdout { source: std::io::Error },
}

impl Error {
    /// 2 where the input or the arguments are wrong, 1 for anything else.
    pub fn exit_status(&self) -> u8 {
        use attention_rollout::Error as Library;
        match self {
            Error::Argument { .. }
            | Error::Input { .. }
            | Error::Tensor { .. }
            | Error::MissingTensor { .. } => 2,
            Error::Rollout { source, .. } => match source {
                Library::Threads { .. } | Library::HostMemory { .. } => 1,
                #[cfg(feature = "cuda")]
                Library::Driver { .. }
                | Library::Launch { .. }
                | Library::OutOfDeviceMemory { .. }
                | Library::Nvrtc(_)
                | Library::Variant { .. } => 1,
                _ => 2,
            },
            Error::Device { .. }
            | Error::Verify { .. }
            | Error::Output { .. }
            | Error::Rename { .. }
            | Error::Stdout { .. } => 1,
        }
    }

    /// An argument that does not fit.
    pub fn argument(
        option: &'static str,
        expected: impl Into<String>,
        got: impl Into<String>,
    ) -> Self {
        Error::Argument {
            option,
            expected: expected.into(),
            got: got.into(),
        }
    }

    /// A file that cannot be used.
    pub fn input(path: &Path, reason: impl ToString) -> Self {
        Error::Input {
            path: path.to_owned(),
            reason: reason.to_string(),
        }
    }

    /// A tensor that does not fit.
    pub fn tensor(name: &str, expected: impl Into<String>, got: impl Into<String>) -> Self {
        Error::Tensor {
            name: name.to_owned(),
            expected: expected.into(),
            got: got.into(),
        }
    }

    /// For `map_err`: the library's error, at `place`.
    pub fn rollout(place: impl Into<String>) -> impl FnOnce(attention_rollout::Error) -> Self {
        let place = place.into();
        move |source| Error::Rollout { place, source }
    }

    /// For `map_err`: `action` failed on the output file `path`.
    pub fn output(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Error::Output {
            path,
            action,
            source,
        }
    }
}

/// A path for people.
pub fn shown_path(path: &Path) -> String {
    shown(&path.to_string_lossy())
}
