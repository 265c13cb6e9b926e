//! Paths: names that cannot be, names that are one, special files, and what happens to a file that is replaced.
#![cfg(unix)]

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use crate::support::{Bench, Tensor, skipped};

/// A bench with the small file `in.st`: one feature of 4 tokens.
fn bench() -> Bench {
    let bench = Bench::new();
    bench.write("in.st", &[("layer.0", Tensor::maps(1, 1, 4, 1))]);
    bench
}

fn run<S: AsRef<OsStr>>(bench: &Bench, arguments: &[S]) -> crate::support::Run {
    let fixed = ["run", "in.st", "--device", "cpu"].map(OsStr::new);
    bench.command(fixed.into_iter().chain(arguments.iter().map(AsRef::as_ref)))
}

#[test]
fn two_outputs_are_two_files() {
    let bench = bench();
    fs::create_dir(bench.path("d")).unwrap();
    symlink("x", bench.path("link")).unwrap();
    symlink("in.st", bench.path("input")).unwrap();
    let before = bench.files();
    for (output, heatmap) in [("x", "./x"), ("x", "d/../x"), ("x", "link"), ("link", "x")] {
        let outputs = ["--output", output, "--heatmap", heatmap, "--grid", "1x3"];
        run(&bench, &outputs).expect_failure(2, &["--heatmap", "a file of its own", "/x"]);
        assert_eq!(bench.files(), before, "{output} {heatmap}");
    }
    let over_input = run(&bench, &["--output", "input"]);
    over_input.expect_failure(2, &["--output", "a file of its own"]);
    let outputs = ["--output", "x", "--heatmap", "d/x", "--grid", "1x3"];
    run(&bench, &outputs).expect_status(0);
    assert!(bench.path("x").is_file() && bench.path("d/x").is_file());
}

#[test]
fn what_can_never_be_an_output_is_refused_before_anything_is_written() {
    let bench = bench();
    let long = "n".repeat(256);
    let before = bench.files();
    for name in ["new/", "new/.", &long, "..", "in.st/x"] {
        run(&bench, &["--output", name]).expect_failure(1, &["cannot create"]);
        let both = ["--output", "out", "--heatmap", name, "--grid", "1x3"];
        run(&bench, &both).expect_failure(1, &["cannot create"]);
        assert_eq!(bench.files(), before, "{name}");
    }
}

#[test]
fn errors_of_the_directory_do_not_name_the_temporary_file() {
    let bench = bench();
    let missing = run(&bench, &["--output", "missing/out"]);
    assert!(!missing.stderr.contains(".tmp"), "{}", missing.stderr);
    fs::create_dir(bench.path("d")).unwrap();
    // Nobody, not even root, can make files there.
    let read_only = Path::new("/proc/out");
    let run = run(&bench, &[OsStr::new("--output"), read_only.as_os_str()]);
    assert!(!run.stderr.contains(".tmp"), "{}", run.stderr);
    run.expect_failure(1, &["/proc/out", "cannot create"]);
}

#[cfg(target_os = "linux")]
#[test]
fn mount_points_are_refused_at_the_start() {
    let bench = bench();
    fs::write(bench.path("mounted"), "outside").unwrap();
    fs::write(bench.path("out"), "older").unwrap();
    let script = "mount --bind mounted out && exec \"$@\"";
    let output = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .arg(env!("CARGO_BIN_EXE_attention-rollout"))
        .args(["run", "in.st", "--device", "cpu", "--output", "out"])
        .current_dir(bench.directory.path())
        .output();
    let stderr = match output {
        Ok(output) => String::from_utf8(output.stderr).unwrap(),
        Err(error) => format!("unshare: {error}"),
    };
    if stderr.contains("unshare: ") || stderr.contains("mount: ") {
        skipped(&format!("it cannot mount: {stderr}"));
        return;
    }
    assert!(stderr.contains("mount point"), "{stderr}");
    assert_eq!(bench.files(), ["in.st", "mounted", "out"]);
}

#[test]
fn another_users_file_in_a_sticky_directory_is_refused_at_the_start() {
    use std::os::unix::process::CommandExt;
    let bench = bench();
    let directory = bench.path("sticky");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("out"), "theirs").unwrap();
    if fs::metadata(&directory).unwrap().uid() != 0 {
        skipped("it is not run by root, who alone can be two users");
        return;
    }
    for (path, mode) in [(&directory, 0o1777), (&bench.path("."), 0o755)] {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }
    let binary = bench.path("binary");
    fs::copy(env!("CARGO_BIN_EXE_attention-rollout"), &binary).unwrap();
    let output = Command::new(&binary)
        .args(["run", "in.st", "--device", "cpu", "--output", "sticky/out"])
        .current_dir(bench.directory.path())
        .uid(65534)
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("another user's"), "{stderr}");
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
}

#[test]
fn paths_need_not_be_unicode() {
    let bench = bench();
    let name = |bytes: &[u8]| bench.path("").join(OsStr::from_bytes(bytes));
    let (input, output) = (name(b"in\xff.st"), name(b"o\xff.st"));
    fs::copy(bench.path("in.st"), &input).unwrap();
    let arguments = [
        OsStr::new("run"),
        input.as_os_str(),
        OsStr::new("--json"),
        OsStr::new("--output"),
        output.as_os_str(),
    ];
    let run = bench.command(arguments).expect_status(0);
    let summary: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert!(
        summary["input"]
            .as_str()
            .unwrap()
            .ends_with("in\u{fffd}.st")
    );
    assert!(
        summary["output"]
            .as_str()
            .unwrap()
            .ends_with("o\u{fffd}.st")
    );
    assert!(output.is_file());
}

#[test]
fn pipes_and_devices_are_no_inputs() {
    let bench = bench();
    let made = Command::new("mkfifo").arg(bench.path("pipe")).status();
    assert!(made.unwrap().success());
    let binary = env!("CARGO_BIN_EXE_attention-rollout");
    let before = bench.files();
    for (input, options) in [
        ("pipe", "--output out --device cpu"),
        ("in.st", "--heatmap out --tokens pipe"),
        ("in.st", "--heatmap out --tokens /dev/zero"),
        ("in.st", "--heatmap out --grid 1x3 --image pipe"),
        ("in.st", "--heatmap out --grid 1x3 --image /dev/zero"),
    ] {
        let output = Command::new("timeout")
            .args(["20", binary, "run", input])
            .args(options.split(' '))
            .current_dir(bench.directory.path())
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{options}: {stderr}");
        assert!(stderr.contains("expected a regular file"), "{stderr}");
        assert_eq!(bench.files(), before);
    }
}

#[test]
fn what_is_replaced_keeps_its_mode() {
    let bench = bench();
    for mode in [0o600, 0o640, 0o666, 0o444] {
        fs::write(bench.path("out"), "older").unwrap();
        fs::set_permissions(bench.path("out"), Permissions::from_mode(mode)).unwrap();
        run(&bench, &["--output", "out"]).expect_status(0);
        let kept = fs::metadata(bench.path("out")).unwrap().mode() & 0o7777;
        assert_eq!(kept, mode, "{kept:o}");
        fs::remove_file(bench.path("out")).unwrap();
    }
}

#[test]
fn a_link_to_nothing_gets_its_target() {
    let bench = bench();
    fs::create_dir(bench.path("d")).unwrap();
    symlink("d/out", bench.path("link")).unwrap();
    run(&bench, &["--output", "link"]).expect_status(0);
    assert!(bench.path("link").is_symlink() && bench.path("d/out").is_file());
    symlink("loop", bench.path("loop")).unwrap();
    run(&bench, &["--output", "loop"]).expect_failure(1, &["loop of links"]);
}

/// Reports each fsync with the path of what is synced, on stderr.
#[cfg(target_os = "linux")]
const TELL_FSYNC: &str = r#"
    #include <stdio.h>
    #include <unistd.h>
    int fsync(int file) {
        char link[64], path[4096];
        snprintf(link, sizeof link, "/proc/self/fd/%d", file);
        ssize_t length = readlink(link, path, sizeof path - 1);
        path[length < 0 ? 0 : length] = 0;
        fprintf(stderr, "fsync %s\n", path);
        return 0;
    }
"#;

#[cfg(target_os = "linux")]
#[test]
fn outputs_are_synced_before_they_have_their_names_and_the_directory_after() {
    let mut bench = bench();
    let [source, library] = ["fsync.c", "fsync.so"].map(|name| bench.path(name));
    fs::write(&source, TELL_FSYNC).unwrap();
    let mut cc = Command::new("cc");
    let cc = cc
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source]);
    assert!(cc.status().unwrap().success());
    bench.environment.push(("LD_PRELOAD", library.into()));
    let outputs = ["--output", "out", "--heatmap", "map", "--grid", "1x3"];
    let run = run(&bench, &outputs).expect_status(0);
    let synced: Vec<&str> = run
        .stderr
        .lines()
        .filter_map(|line| line.strip_prefix("fsync "))
        .collect();
    let here = bench.directory.path().canonicalize().unwrap();
    // A descriptor's path is the file's name at the time.
    assert_eq!(synced.len(), 4, "{synced:?}");
    assert!(synced[..2].iter().all(|path| path.ends_with(".tmp")));
    assert!(synced[2..].iter().all(|path| Path::new(path) == here));
}
