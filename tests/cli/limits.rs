//! Sizes: what no machine can hold is refused, and little memory is no crash.
#![cfg(target_os = "linux")]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

use safetensors::Dtype;

use crate::support::{Bench, Tensor, sparse};

/// Runs the binary with at most `kib` KiB of address space.
fn limited(bench: &Bench, kib: usize, arguments: &str) -> Output {
    let script = format!("ulimit -v {kib} && exec \"$@\"");
    Command::new("sh")
        .args(["-c", &script, "sh"])
        .arg(env!("CARGO_BIN_EXE_attention-rollout"))
        .args(arguments.split_whitespace())
        .current_dir(bench.directory.path())
        .env("RAYON_NUM_THREADS", "1")
        .output()
        .unwrap()
}

#[track_caller]
fn expect(output: Output, status: i32, part: &str) {
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{stderr}");
    assert!(stderr.contains(part), "{part:?} not in {stderr}");
}

#[test]
fn sizes_that_no_machine_can_hold() {
    let bench = Bench::new();
    let memory = "out of host memory";
    for (arguments, status, part) in [
        (
            "plan --layers 1 --heads 1 --tokens 1 --batch 100000000000000",
            1,
            memory,
        ),
        (
            "plan --layers 18446744073709551615 --batch 0 --heads 1 --tokens 1",
            2,
            "overflows",
        ),
        (
            "plan --layers 1000000000000000 --heads 1 --tokens 1",
            1,
            memory,
        ),
        (
            "plan --layers 1 --heads 1 --tokens 1 --sample 65535",
            1,
            memory,
        ),
        ("bench --shape 1,1,1,1000000", 1, memory),
    ] {
        let arguments = format!("{arguments} --device cpu --threads 1");
        expect(limited(&bench, 8_000_000, &arguments), status, part);
    }
}

/// A PNG that says it has these extents, at one bit a pixel, and has none of them.
fn png_of(width: u32, height: u32) -> Vec<u8> {
    let chunk = |kind: &[u8; 4], data: &[u8]| {
        let body = [&kind[..], data].concat();
        let crc = body.iter().fold(u32::MAX, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| {
                (crc >> 1) ^ (0xedb8_8320 * (crc & 1))
            })
        });
        [
            &(data.len() as u32).to_be_bytes()[..],
            &body,
            &(!crc).to_be_bytes(),
        ]
        .concat()
    };
    let header = [
        &width.to_be_bytes()[..],
        &height.to_be_bytes(),
        &[1, 0, 0, 0, 0],
    ];
    // An empty deflate stream.
    let data = [0x78, 0x9c, 3, 0, 0, 0, 0, 1];
    [
        b"\x89PNG\r\n\x1a\n".to_vec(),
        chunk(b"IHDR", &header.concat()),
        chunk(b"IDAT", &data),
        chunk(b"IEND", &[]),
    ]
    .concat()
}

#[test]
fn photos_are_bounded_before_they_are_decoded() {
    let bench = Bench::new();
    bench.write("in.st", &[("layer.0", Tensor::maps(1, 1, 4, 0))]);
    for (width, height, part) in [
        (60_000, 60_000, "exceeds limit"),
        (20_000, 20_000, "at most 67108864 pixels, got 20000x20000"),
        (8192, 8193, "got 8192x8193"),
        // As many as are allowed, so that decoding begins.
        (8192, 8192, "enough data"),
    ] {
        fs::write(bench.path("photo.png"), png_of(width, height)).unwrap();
        let run = "run in.st --heatmap map.png --grid 1x3 --image photo.png --device cpu";
        expect(limited(&bench, 1_000_000, run), 2, part);
    }
}

/// A file with this header and `data` bytes of zeros.
fn write_header(bench: &Bench, header: &str, data: usize) {
    let length = (header.len() as u64).to_le_bytes();
    let bytes = [&length[..], header.as_bytes(), &vec![0; data]].concat();
    fs::write(bench.path("in.st"), bytes).unwrap();
}

#[test]
fn headers_take_little_more_memory_than_they_have_bytes() {
    let bench = Bench::new();
    let run = "run in.st --output out --device cpu --threads 1";
    let axes = "1,".repeat(12_000_000);
    let many_axes =
        format!(r#"{{"layer.0":{{"dtype":"F32","shape":[{axes}1],"data_offsets":[0,4]}}}}"#);
    write_header(&bench, &many_axes, 4);
    expect(limited(&bench, 200_000, run), 2, "at most 64 extents");

    let empty: String = (0..300_000)
        .map(|i| format!(r#""{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}},"#))
        .collect();
    let layer = r#""layer.0":{"dtype":"F32","shape":[1,1,1],"data_offsets":[0,4]}"#;
    write_header(&bench, &format!("{{{empty}{layer}}}"), 4);
    expect(limited(&bench, 300_000, run), 0, "");
}

#[test]
fn token_files_and_counted_tensors_are_read_piece_by_piece() {
    let bench = Bench::new();
    bench.write("in.st", &[("layer.0", Tensor::maps(2, 1, 3, 0))]);
    // 40 MB, of which one list is drawn.
    let mut file = File::create(bench.path("tokens.json")).unwrap();
    write!(
        file,
        "[[\"a\", \"b\", \"c\"]{}]",
        ",[\"x\",\"y\"]".repeat(4_000_000)
    )
    .unwrap();
    let run = "run in.st --heatmap map.png --tokens tokens.json --device cpu --threads 1";
    expect(limited(&bench, 200_000, run), 0, "");

    let value = Tensor::raw(Dtype::U8, &[2, 3, 10_000_000], vec![1; 60_000_000]);
    let maps = Tensor::maps(2, 1, 3, 0);
    bench.write("in.st", &[("layer.0", maps), ("value", value)]);
    let run = "run in.st --output out --rows count:value --device cpu --threads 1";
    expect(limited(&bench, 260_000, run), 0, "");
}

const SIGSEGV: i32 = 11;

/// Deletes all but the input.
fn clear(bench: &Bench) {
    for name in bench.files().iter().filter(|name| *name != "in.st") {
        fs::remove_file(bench.path(name)).unwrap();
    }
}

#[test]
fn too_little_memory_is_status_1_and_leaves_nothing() {
    let bench = Bench::new();
    sparse(&bench.path("in.st"), 2, 1500);
    let run = "run in.st --output out --output-kind matrix --device cpu --threads 1";
    // What the loader needs, and the program to begin.
    let mut limits = (4_000..).step_by(1000);
    let begins = |kib: &usize| limited(&bench, *kib, "--version").status.success();
    let least = limits.find(begins).unwrap();
    let mut statuses = Vec::new();
    for kib in (least..least + 60_000).step_by(1500) {
        let output = limited(&bench, kib, run);
        let stderr = String::from_utf8(output.stderr).unwrap();
        // A stack that cannot grow: the system ends the process, and no handler could run.
        if output.status.signal() == Some(SIGSEGV) {
            clear(&bench);
            continue;
        }
        let status = output.status.code();
        assert!(
            matches!(status, Some(0 | 1)),
            "{kib} KiB: {status:?} {stderr}"
        );
        let files = match status {
            Some(0) => &["in.st", "out"][..],
            _ => &["in.st"],
        };
        assert_eq!(bench.files(), files, "{kib} KiB: {stderr}");
        clear(&bench);
        statuses.push(status);
    }
    for status in [0, 1] {
        assert!(statuses.contains(&Some(status)), "{statuses:?}");
    }
}

/// Fails the allocation of the number in FAIL_ALLOCATION, counted from when the program has handlers (that of SIGABRT comes before its own of SIGBUS), and says so.
const FAIL_ALLOCATION: &str = r#"
    #define _GNU_SOURCE
    #include <dlfcn.h>
    #include <errno.h>
    #include <signal.h>
    #include <stdlib.h>
    #include <unistd.h>
    void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
    void *__libc_memalign(size_t, size_t);
    static long left, handled;
    static int fails(void) {
        if (left == 0 || --left != 0) return 0;
        if (write(2, "allocation failed\n", 18) != 18) _exit(3);
        errno = ENOMEM;
        return 1;
    }
    int sigaction(int number, const struct sigaction *action, struct sigaction *old) {
        int (*next)(int, const struct sigaction *, struct sigaction *) = dlsym(RTLD_NEXT, "sigaction");
        if (number == SIGABRT) handled = 1;
        if (number == SIGBUS && handled && left == 0) left = atol(getenv("FAIL_ALLOCATION"));
        return next(number, action, old);
    }
    void *malloc(size_t bytes) { return fails() ? 0 : __libc_malloc(bytes); }
    void *calloc(size_t count, size_t bytes) { return fails() ? 0 : __libc_calloc(count, bytes); }
    void *realloc(void *old, size_t bytes) { return fails() ? 0 : __libc_realloc(old, bytes); }
    int posix_memalign(void **out, size_t alignment, size_t bytes) {
        if (fails()) return ENOMEM;
        *out = __libc_memalign(alignment, bytes);
        return *out ? 0 : ENOMEM;
    }
    void *aligned_alloc(size_t alignment, size_t bytes) {
        return fails() ? 0 : __libc_memalign(alignment, bytes);
    }
"#;

/// The whole program, with each of its allocations failed in turn.
#[cfg(target_env = "gnu")]
#[test]
fn every_allocation_may_fail() {
    let bench = Bench::new();
    bench.write("in.st", &[("layer.0", Tensor::maps(1, 1, 3, 0))]);
    let tools = tempfile::tempdir().unwrap();
    let [source, library] = ["fail.c", "fail.so"].map(|name| tools.path().join(name));
    fs::write(&source, FAIL_ALLOCATION).unwrap();
    let mut cc = Command::new("cc");
    let cc = cc
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .arg("-ldl");
    assert!(cc.status().unwrap().success());
    let run = "run in.st --output out --output-kind matrix --device cpu --threads 1";
    let mut failed = 0;
    for k in 1.. {
        let output = Command::new(env!("CARGO_BIN_EXE_attention-rollout"))
            .args(run.split(' '))
            .current_dir(bench.directory.path())
            .env("LD_PRELOAD", &library)
            .env("FAIL_ALLOCATION", k.to_string())
            .env("RUST_BACKTRACE", "0")
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        let status = output.status.code();
        assert!(
            matches!(status, Some(0 | 1)),
            "allocation {k}: {status:?} {stderr}"
        );
        let files = bench.files();
        // Printing what is done may fail too.
        match status {
            Some(0) => assert_eq!(files, ["in.st", "out"], "allocation {k}: {stderr}"),
            _ => assert!(
                files == ["in.st"] || files == ["in.st", "out"],
                "{k}: {files:?}"
            ),
        }
        clear(&bench);
        if !stderr.contains("allocation failed") {
            break;
        }
        failed += 1;
    }
    assert!(failed > 100, "{failed}");
}
