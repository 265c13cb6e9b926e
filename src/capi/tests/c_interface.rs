//! The header is the one that the sources make, and C programs that are compiled against it and linked to the library
//! do what they are told.

#[path = "../../../tests/common/nvrtc.rs"]
mod nvrtc;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCES: [&str; 3] = ["src/error.rs", "src/types.rs", "src/lib.rs"];

/// What the C compiler is asked of a program; the libraries that Rust's own needs where it is linked statically.
const FLAGS: [&str; 6] = [
    "-std=c11",
    "-D_DEFAULT_SOURCE",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-missing-field-initializers",
];
const SYSTEM: [&str; 5] = ["-ldl", "-lpthread", "-lm", "-lrt", "-lgcc_s"];

fn home() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_header_is_what_the_sources_say() {
    let config = cbindgen::Config::from_file(home().join("cbindgen.toml")).unwrap();
    let mut builder = cbindgen::Builder::new().with_config(config);
    for source in SOURCES {
        builder = builder.with_src(home().join(source));
    }
    let mut made = Vec::new();
    builder.generate().unwrap().write(&mut made);
    let made = String::from_utf8(made).unwrap();
    let file = home().join("attention_rollout.h");
    if env::var_os("UPDATE_HEADER").is_some() {
        fs::write(&file, &made).unwrap();
    }
    let committed = fs::read_to_string(file).unwrap();
    assert!(
        committed == made,
        "attention_rollout.h is stale: UPDATE_HEADER=1 cargo test -p attention-rollout-c"
    );
}

/// The folder of this program, where cargo puts the libraries too.
fn libraries() -> PathBuf {
    env::current_exe().unwrap().parent().unwrap().to_owned()
}

fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

const SHARED: &str = "-lattention_rollout_c";
const STATIC: &str = "-l:libattention_rollout_c.a";

/// The C program of `source`, linked to `library`, for the test `test` alone.
fn program(source: &str, library: &str, test: &str) -> PathBuf {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{source}_{test}"));
    let rpath = format!("-Wl,-rpath,{}", libraries().display());
    run(Command::new("cc")
        .args(FLAGS)
        .arg("-I")
        .arg(home())
        .arg(home().join(format!("tests/{source}.c")))
        .arg("-o")
        .arg(&program)
        .arg("-L")
        .arg(libraries())
        .arg(rpath)
        .arg(library)
        .args(SYSTEM));
    program
}

#[test]
fn a_program_computes_on_the_cpu_and_is_refused_what_is_wrong() {
    for (source, library) in [
        ("rollout", SHARED),
        ("rollout", STATIC),
        ("queries_keys", SHARED),
    ] {
        let said = run(Command::new(program(source, library, "cpu")).arg("cpu"));
        assert_eq!(said, "done\n");
    }
}

#[test]
fn a_program_computes_on_a_stream_of_its_own() {
    let programs = ["rollout", "queries_keys"].map(|source| program(source, SHARED, "cuda"));
    if Path::new("/dev/nvidiactl").exists() {
        for program in &programs {
            assert_eq!(run(Command::new(program).arg("cuda")), "done\n");
        }
        return;
    }
    assert_eq!(run(Command::new(&programs[0]).arg("machine")), "done\n");
    let Some(nvrtc) = nvrtc::nvrtcs().into_iter().next() else {
        return;
    };
    let stand_in = vcuda::client::library_path().unwrap_or_else(|error| panic!("{error}"));
    for program in &programs {
        let said = run(Command::new(program)
            .arg("cuda")
            .env("LD_PRELOAD", &stand_in)
            .env("ROLLOUT_NVRTC", nvrtc.path())
            .env("ROLLOUT_PTX", "1")
            .env(
                "ROLLOUT_CACHE_DIR",
                Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels"),
            ));
        assert_eq!(said, "done\n");
    }
}
