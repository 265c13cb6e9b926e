//! Tier 1: where NVRTC is looked for. The search depends on a process's environment and the loader's, so each case runs
//! in a process of its own: this program, started again.

use std::env;
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::nvrtc::nvrtcs;
use attention_rollout::cuda::nvrtc::{Image, Nvrtc, NvrtcError, Options, Source, Target, Version};

/// Set in child processes: the major version of the driver to load for, or `any`.
const CHILD: &str = "ROLLOUT_TEST_CHILD_DRIVER";

/// What a child found.
#[derive(Debug)]
enum Outcome {
    /// The version and file of a library that compiled a kernel.
    Compiled { version: String, path: PathBuf },
    /// An error's message.
    Failed(String),
}

/// The child: loads, compiles, reports on stderr.
#[test]
fn child() {
    let Ok(driver) = env::var(CHILD) else {
        return;
    };
    let nvrtc = match driver.parse() {
        Ok(major) => Nvrtc::load_for_driver(Version { major, minor: 4 }),
        Err(_) => Nvrtc::load(),
    };
    match nvrtc.and_then(compile) {
        Ok((version, path)) => eprintln!("COMPILED\n{version}\n{}", path.display()),
        Err(error) => eprintln!("FAILED\n{error}"),
    }
}

fn compile(nvrtc: Nvrtc) -> Result<(Version, PathBuf), NvrtcError> {
    let source = Source {
        name: "test.cu",
        text: r#"extern "C" __global__ void k(float* x) { *x = sqrtf(*x); }"#,
        headers: &[],
    };
    let compiled = nvrtc.compile(&source, &Options::new(Target::Cubin(80.into())))?;
    assert!(matches!(compiled.image, Image::Cubin(bytes) if !bytes.is_empty()));
    Ok((nvrtc.version(), nvrtc.path().to_owned()))
}

/// Runs a child with these variables and no others.
fn search(driver: &str, variables: &[(&str, &Path)]) -> Outcome {
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", "search::child", "--nocapture"])
        .env_clear()
        .env(CHILD, driver)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let report = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{report}");
    if let Some((_, message)) = report.split_once("FAILED\n") {
        return Outcome::Failed(message.to_owned());
    }
    let (_, found) = report.split_once("COMPILED\n").unwrap();
    let (version, path) = found.trim_end().split_once('\n').unwrap();
    Outcome::Compiled {
        version: version.to_owned(),
        path: path.into(),
    }
}

/// Whether the system's own directories have an NVRTC, which comes before any Python environment's.
fn system_has_one() -> bool {
    matches!(search("any", &[]), Outcome::Compiled { .. })
}

#[track_caller]
fn assert_found(outcome: Outcome, expected: &Nvrtc) {
    match outcome {
        Outcome::Compiled { version, path } => {
            assert_eq!(version, expected.version().to_string());
            let real = |path: &Path| fs::canonicalize(path).unwrap();
            assert_eq!(real(&path), real(expected.path()));
        }
        Outcome::Failed(message) => panic!("{message}"),
    }
}

fn directory(nvrtc: &Nvrtc) -> &Path {
    nvrtc.path().parent().unwrap()
}

/// A Python environment whose NVIDIA packages are these libraries.
fn environment(nvrtcs: &[Nvrtc]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let packages = root.path().join("lib/python3.11/site-packages/nvidia");
    for nvrtc in nvrtcs {
        let package = packages.join(format!("cu{}", nvrtc.version().major));
        fs::create_dir_all(&package).unwrap();
        symlink(directory(nvrtc), package.join("lib")).unwrap();
    }
    root
}

#[test]
fn the_explicit_variable_names_a_file_a_directory_or_a_link() {
    let folder = tempfile::tempdir().unwrap();
    for nvrtc in nvrtcs() {
        let link = folder.path().join(nvrtc.version().to_string());
        symlink(fs::canonicalize(nvrtc.path()).unwrap(), &link).unwrap();
        for path in [nvrtc.path(), directory(&nvrtc), &link] {
            assert_found(search("any", &[("ROLLOUT_NVRTC", path)]), &nvrtc);
        }
    }
}

#[test]
fn the_loader_path_is_searched() {
    for nvrtc in nvrtcs() {
        let found = search("any", &[("LD_LIBRARY_PATH", directory(&nvrtc))]);
        assert_found(found, &nvrtc);
    }
}

#[test]
fn toolkits_and_python_environments_are_searched() {
    let nvrtcs = nvrtcs();
    if nvrtcs.is_empty() || system_has_one() {
        return;
    }
    for nvrtc in &nvrtcs {
        let environment = environment(std::slice::from_ref(nvrtc));
        for variable in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
            assert_found(search("any", &[(variable, environment.path())]), nvrtc);
        }
        let toolkit = tempfile::tempdir().unwrap();
        symlink(directory(nvrtc), toolkit.path().join("lib64")).unwrap();
        for variable in ["CUDA_PATH", "CUDA_HOME"] {
            assert_found(search("any", &[(variable, toolkit.path())]), nvrtc);
        }
    }
}

#[test]
fn a_library_too_new_for_the_driver_is_passed_over() {
    let nvrtcs = nvrtcs();
    if nvrtcs.len() < 2 || system_has_one() {
        return;
    }
    let [old, new] = nvrtcs.as_slice() else {
        panic!("two versions");
    };
    let environment = environment(&nvrtcs);
    let variables = [("VIRTUAL_ENV", environment.path())];
    assert_found(search("12", &variables), old);
    assert_found(search("13", &variables), new);
    assert_found(search("any", &variables), new);
    match search("12", &[("ROLLOUT_NVRTC", new.path())]) {
        Outcome::Failed(message) => assert!(message.contains("driver supports CUDA 12.4")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_error_tells_where_was_looked_and_what_to_do() {
    let missing = Path::new("/nowhere");
    let variables = [("CUDA_PATH", missing), ("VIRTUAL_ENV", missing)];
    // Where the system has one, there is no error to read.
    if let Outcome::Failed(message) = search("any", &variables) {
        for part in [
            "ROLLOUT_NVRTC: not set",
            "loader path, libnvrtc.so.13: libnvrtc.so.13: cannot open shared object file",
            "CUDA_PATH: no NVRTC at /nowhere",
            "CUDA_HOME: not set",
            "no NVRTC at /usr/local/cuda",
            "VIRTUAL_ENV: no NVRTC at /nowhere",
            "CONDA_PREFIX: not set",
            "python3 on PATH: not set",
            "pip install nvidia-cuda-nvrtc",
        ] {
            assert!(message.contains(part), "{part:?} is not in {message}");
        }
    }
}

/// A library in a folder of its own, without its builtins. A hard link, so that it leads nowhere else; a copy where the
/// library is on another disk.
fn without_builtins(nvrtc: &Nvrtc, folder: &Path) -> PathBuf {
    let alone = folder.join(format!("libnvrtc.so.{}", nvrtc.version().major));
    let real = fs::canonicalize(nvrtc.path()).unwrap();
    if fs::hard_link(&real, &alone).is_err() {
        fs::copy(&real, &alone).unwrap();
    }
    alone
}

#[test]
fn a_library_that_does_not_find_its_builtins_by_itself_is_given_them() {
    let Some(file) = env::var_os("ROLLOUT_NVRTC_13_0").map(PathBuf::from) else {
        let missing = "SKIPPED: no ROLLOUT_NVRTC_13_0: run `. tests/fetch_nvrtc.sh` in this shell";
        let is_required = env::var_os("ROLLOUT_REQUIRE_NVRTC").is_some_and(|value| value == "1");
        assert!(!is_required, "{missing}");
        let _ = writeln!(std::io::stderr(), "{missing}");
        return;
    };
    for path in [&file, file.parent().unwrap()] {
        match search("any", &[("ROLLOUT_NVRTC", path)]) {
            Outcome::Compiled { version, path } => {
                assert_eq!((&version[..], path), ("13.0", file.clone()));
            }
            Outcome::Failed(message) => panic!("{message}"),
        }
    }
}

#[test]
fn a_library_that_cannot_compile_is_passed_over() {
    let nvrtcs = nvrtcs();
    if nvrtcs.is_empty() || system_has_one() {
        return;
    }
    for nvrtc in &nvrtcs {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let toolkit = tempfile::tempdir_in(target).unwrap();
        let lib = toolkit.path().join("lib64");
        fs::create_dir(&lib).unwrap();
        without_builtins(nvrtc, &lib);
        let environment = environment(std::slice::from_ref(nvrtc));
        let variables = [
            ("CUDA_PATH", toolkit.path()),
            ("VIRTUAL_ENV", environment.path()),
        ];
        assert_found(search("any", &variables), nvrtc);
        match search("any", &variables[..1]) {
            Outcome::Failed(message) => assert!(message.contains("builtins"), "{message}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_library_without_its_builtins_says_so() {
    for nvrtc in nvrtcs() {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let folder = tempfile::tempdir_in(target).unwrap();
        let alone = without_builtins(&nvrtc, folder.path());
        match search("any", &[("ROLLOUT_NVRTC", &alone)]) {
            Outcome::Failed(message) => assert!(
                message.contains("builtins library") && message.contains("same directory"),
                "{message}"
            ),
            // The loader path has the builtins.
            Outcome::Compiled { path, .. } => assert_eq!(path, alone),
        }
    }
}
