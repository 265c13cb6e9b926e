//! Where NVRTC is looked for.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

use super::api::{Api, keep_open};
use super::{Looked, Nvrtc, NvrtcError};

/// The library's names, most wanted first.
const NAMES: [&str; 3] = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];

/// What the names of the builtins library, which the library itself opens, begin with.
const BUILTINS: &str = "libnvrtc-builtins.so";

/// The environment's variables, by name.
pub(super) type Variables<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// Finds and opens the first library that `accept` takes.
pub(super) fn find(
    variables: Variables<'_>,
    accept: &dyn Fn(&Nvrtc) -> Result<(), NvrtcError>,
) -> Result<Nvrtc, NvrtcError> {
    let accepted = |opened: Result<Nvrtc, NvrtcError>| {
        let nvrtc = opened?;
        accept(&nvrtc)?;
        Ok(nvrtc)
    };
    if let Some(path) = set(variables, "ROLLOUT_NVRTC") {
        return accepted(open(Path::new(&path)));
    }
    let mut looked = vec![Looked {
        place: "ROLLOUT_NVRTC".to_owned(),
        outcome: "not set".to_owned(),
    }];
    for name in NAMES {
        let outcome = match relative_on_loader_path(variables, name) {
            Some(file) => format!("not opened: LD_LIBRARY_PATH leads to {}", file.display()),
            None => match accepted(Api::open(OsStr::new(name)).and_then(Nvrtc::from_api)) {
                Ok(nvrtc) => return Ok(nvrtc),
                Err(error) => reason(error),
            },
        };
        looked.push(Looked {
            place: format!("loader path, {name}"),
            outcome,
        });
    }
    for place in places(variables) {
        let files = libraries(&place.directories);
        for file in &files {
            match accepted(open(file)) {
                Ok(nvrtc) => return Ok(nvrtc),
                Err(error) => looked.push(Looked {
                    place: format!("{}, {}", place.name, file.display()),
                    outcome: reason(error),
                }),
            }
        }
        if files.is_empty() {
            looked.push(Looked {
                place: place.name,
                outcome: match place.root {
                    Some(root) => format!("no NVRTC at {}", root.display()),
                    None => "not set".to_owned(),
                },
            });
        }
    }
    Err(NvrtcError::NotFound { looked })
}

/// Opens a library file, or the library in a directory.
pub(super) fn open(path: &Path) -> Result<Nvrtc, NvrtcError> {
    let failed = |reason: String| NvrtcError::Open {
        path: path.to_owned(),
        reason,
    };
    let file = if path.is_dir() {
        libraries(&[path.to_owned()])
            .into_iter()
            .next()
            .ok_or_else(|| failed(format!("the directory holds none of {}", NAMES.join(", "))))?
    } else {
        path.to_owned()
    };
    let file = std::path::absolute(file).map_err(|error| failed(error.to_string()))?;
    let file = beside_builtins(file);
    builtins_of(&file).iter().for_each(|file| keep_open(file));
    Api::open(file.as_os_str()).and_then(Nvrtc::from_api)
}

/// The file of that name to which an entry of `LD_LIBRARY_PATH` leads that depends on the working directory (an empty
/// one does). Whoever may write there is not trusted with this process; the loader would open it.
fn relative_on_loader_path(variables: Variables<'_>, name: &str) -> Option<PathBuf> {
    let path = set(variables, "LD_LIBRARY_PATH")?;
    std::env::split_paths(&path)
        .filter(|directory| !directory.is_absolute())
        .map(|directory| Path::new(".").join(directory).join(name))
        .find(|file| file.exists())
}

/// A place where the library may be.
struct SearchPlace {
    /// What it is, for the error.
    name: String,
    /// What it was derived from; none when there is nothing to derive it from.
    root: Option<PathBuf>,
    /// The directories that may hold the library.
    directories: Vec<PathBuf>,
}

/// The places after the loader path, in order. A variable that holds a relative path counts as not set: the working
/// directory is never searched.
fn places(variables: Variables<'_>) -> Vec<SearchPlace> {
    let variable = |name: &str| {
        set(variables, name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let mut places = Vec::new();
    for name in ["CUDA_PATH", "CUDA_HOME"] {
        places.push(place(name, variable(name), toolkit));
    }
    let local = PathBuf::from("/usr/local/cuda");
    places.push(place("CUDA toolkit", Some(local), toolkit));
    for name in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
        places.push(place(name, variable(name), |prefix| {
            let mut directories = python_packages(prefix);
            directories.extend(toolkit(prefix));
            directories
        }));
    }
    let path = set(variables, "PATH").unwrap_or_default();
    let python = std::env::split_paths(&path)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join("python3"))
        .find(|file| file.is_file());
    places.push(place("python3 on PATH", python, |python| {
        // A virtual environment is where the link is; other packages are where the link leads.
        let real = fs::canonicalize(python).unwrap_or_default();
        [python, &real]
            .into_iter()
            .filter_map(|file| file.parent()?.parent())
            .flat_map(|prefix| [prefix.to_owned(), prefix.join("local")])
            .flat_map(|prefix| python_packages(&prefix))
            .collect()
    }));
    let user = variable("HOME").map(|home| home.join(".local"));
    places.push(place("the user's Python packages", user, python_packages));
    places
}

fn place(
    name: &str,
    root: Option<PathBuf>,
    directories: impl Fn(&Path) -> Vec<PathBuf>,
) -> SearchPlace {
    SearchPlace {
        name: name.to_owned(),
        directories: root.as_deref().map(directories).unwrap_or_default(),
        root,
    }
}

/// A variable's value, unless it is empty.
fn set(variables: Variables<'_>, name: &str) -> Option<OsString> {
    variables(name).filter(|value| !value.is_empty())
}

/// The library directories of a CUDA toolkit.
fn toolkit(root: &Path) -> Vec<PathBuf> {
    let mut directories = vec![root.join("lib64"), root.join("lib")];
    directories.extend(
        children(&root.join("targets"))
            .into_iter()
            .map(|target| target.join("lib")),
    );
    directories
}

/// The library directories of NVIDIA's packages in a Python installation: `lib/python3*/site-packages/nvidia/*/lib`.
fn python_packages(prefix: &Path) -> Vec<PathBuf> {
    ["lib", "lib64"]
        .iter()
        .flat_map(|lib| children(&prefix.join(lib)))
        .filter(|python| {
            let name = python.file_name().unwrap_or_default();
            name.as_encoded_bytes().starts_with(b"python3")
        })
        .flat_map(|python| [python.join("site-packages"), python.join("dist-packages")])
        .flat_map(|packages| children(&packages.join("nvidia")))
        .map(|package| package.join("lib"))
        .collect()
}

/// What is in a directory, in order of names; nothing when it cannot be read.
fn children(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// The library files in some directories, most wanted name first.
fn libraries(directories: &[PathBuf]) -> Vec<PathBuf> {
    NAMES
        .iter()
        .flat_map(|name| {
            directories
                .iter()
                .map(move |directory| directory.join(name))
        })
        .filter(|file| file.is_file())
        .collect()
}

/// The builtins libraries in the directory of a library.
fn builtins_of(file: &Path) -> Vec<PathBuf> {
    let mut siblings = file.parent().map(children).unwrap_or_default();
    siblings.retain(|sibling| {
        let name = sibling.file_name().unwrap_or_default();
        name.as_encoded_bytes().starts_with(BUILTINS.as_bytes())
    });
    siblings
}

/// The path to open a library by. Its builtins belong beside it, so where they are not beside a link, the file that the
/// link leads to is opened.
fn beside_builtins(file: PathBuf) -> PathBuf {
    let complete = |file: &Path| !builtins_of(file).is_empty();
    if complete(&file) {
        return file;
    }
    match fs::canonicalize(&file) {
        Ok(real) if complete(&real) => real,
        _ => file,
    }
}

/// An error's text without the path, which the place has already told.
fn reason(error: NvrtcError) -> String {
    match error {
        NvrtcError::Open { reason, .. } => reason,
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory tree of empty files.
    fn tree(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let file = root.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "").unwrap();
        }
        root
    }

    /// The libraries in the places that the variables lead to, relative to `root`, in the order they would be opened.
    fn found(root: &Path, variables: &[(&str, &str)]) -> Vec<String> {
        let lookup = |name: &str| {
            let (_, value) = variables.iter().find(|(variable, _)| *variable == name)?;
            Some(root.join(value).into_os_string())
        };
        places(&lookup)
            .iter()
            .flat_map(|place| libraries(&place.directories))
            .filter_map(|file| Some(file.strip_prefix(root).ok()?.to_str()?.to_owned()))
            .collect()
    }

    #[test]
    fn toolkits_are_searched_in_both_layouts() {
        let root = tree(&[
            "a/lib64/libnvrtc.so.12",
            "b/targets/x86_64-linux/lib/libnvrtc.so",
        ]);
        let variables = [("CUDA_HOME", "b"), ("CUDA_PATH", "a")];
        assert_eq!(
            found(root.path(), &variables),
            [
                "a/lib64/libnvrtc.so.12",
                "b/targets/x86_64-linux/lib/libnvrtc.so"
            ]
        );
    }

    #[test]
    fn python_environments_are_searched_newest_version_first() {
        let nvidia = "lib/python3.11/site-packages/nvidia";
        let (old, new) = (
            format!("{nvidia}/cuda_nvrtc/lib/libnvrtc.so.12"),
            format!("{nvidia}/cu13/lib/libnvrtc.so.13"),
        );
        let other = format!("{nvidia}/cuda_nvrtc/lib/libnvrtc.alt.so.12");
        let root = tree(&[&old, &new, &other]);
        assert_eq!(found(root.path(), &[("VIRTUAL_ENV", "")]), [new, old]);
    }

    #[test]
    fn conda_keeps_libraries_beside_its_own() {
        let root = tree(&["lib/libnvrtc.so.12", "lib/python3.12/os.py"]);
        assert_eq!(
            found(root.path(), &[("CONDA_PREFIX", "")]),
            ["lib/libnvrtc.so.12"]
        );
    }

    #[cfg(unix)]
    #[test]
    fn the_python_on_the_path_is_followed_to_its_packages() {
        let package = "lib/python3.11/site-packages/nvidia/cu13/lib/libnvrtc.so.13";
        let real = format!("real/{package}");
        let environment = format!("environment/{package}");
        let root = tree(&["real/bin/python3.11", &real, &environment]);
        let bin = root.path().join("environment/bin");
        fs::create_dir_all(&bin).unwrap();
        std::os::unix::fs::symlink(root.path().join("real/bin/python3.11"), bin.join("python3"))
            .unwrap();
        let found = found(root.path(), &[("PATH", "environment/bin")]);
        assert_eq!(found, [environment, real]);
    }

    #[test]
    fn the_working_directory_is_never_searched() {
        let here = [
            ("CUDA_PATH", "."),
            ("CUDA_HOME", "tests"),
            ("VIRTUAL_ENV", "."),
            ("CONDA_PREFIX", "./"),
            ("HOME", "home"),
            ("PATH", ":.:src"),
        ];
        let lookup = |name: &str| {
            let (_, value) = here.iter().find(|(variable, _)| *variable == name)?;
            Some(OsString::from(value))
        };
        for place in places(&lookup) {
            let relative = place.directories.iter().find(|path| path.is_relative());
            assert_eq!(relative, None, "{}", place.name);
        }
    }

    #[test]
    fn a_loader_path_into_the_working_directory_is_not_followed() {
        // The tests run in the package's directory, where this file is.
        let found = |path: &str| {
            let lookup = |name: &str| (name == "LD_LIBRARY_PATH").then(|| path.into());
            relative_on_loader_path(&lookup, "Cargo.toml")
        };
        let here = std::env::current_dir().unwrap();
        for path in [":", ".", "/lib:", "src/.."] {
            assert!(found(path).is_some(), "{path:?}");
        }
        for path in ["/lib", "src", here.to_str().unwrap()] {
            assert_eq!(found(path), None, "{path:?}");
        }
    }

    #[test]
    fn the_users_packages_come_last() {
        let package = "lib/python3.11/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12";
        let (user, environment) = (format!(".local/{package}"), format!("venv/{package}"));
        let root = tree(&[&user, &environment]);
        assert_eq!(
            found(root.path(), &[("HOME", ""), ("VIRTUAL_ENV", "venv")]),
            [environment, user]
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_lone_link_is_opened_by_the_file_it_leads_to() {
        let root = tree(&["real/libnvrtc.so.12", "real/libnvrtc-builtins.so.12.9"]);
        let root = fs::canonicalize(root.path()).unwrap();
        let real = root.join("real/libnvrtc.so.12");
        let link = root.join("libnvrtc.so.12");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert_eq!(beside_builtins(link), real);
        assert_eq!(beside_builtins(real.clone()), real);
    }

    #[test]
    fn the_explicit_variable_is_the_only_place_when_set() {
        let root = tree(&["empty/readme"]);
        let missing = root.path().join("libnvrtc.so.12");
        for path in [missing, root.path().join("empty")] {
            let lookup = |name: &str| (name == "ROLLOUT_NVRTC").then(|| path.clone().into());
            match find(&lookup, &|_| Ok(())) {
                Err(NvrtcError::Open { path: failed, .. }) => assert_eq!(failed, path),
                other => panic!("{other:?}"),
            }
        }
    }
}
