//! Tier 0: fuzzing against the clock, on stable Rust. The same checks are libFuzzer's targets in `cargo-fuzz/`.
//!
//! Each check first sees its corpus, then made-up inputs for `ROLLOUT_FUZZ_SECONDS` (2 unless set). What is made up
//! follows from a seed, which is printed; `ROLLOUT_FUZZ_SEED` makes up the same again.

#[path = "../../src/cli/main.rs"]
#[allow(dead_code, reason = "files and devices are left out")]
mod cli;
#[path = "../common/mod.rs"]
mod common;
mod targets;

use std::fs;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

// The command line's rooms, where it looks for them.
use cli::*;
use common::generate::Random;

/// A number from the environment.
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}: {text}")))
}

/// Says something past the harness, which keeps the output of tests that pass.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Runs `check` over its corpus, and over what `make` makes of the corpus and random numbers until the time is up.
fn drive(name: &str, check: fn(&[u8]), make: fn(&mut Random, &[Vec<u8>]) -> Vec<u8>) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz/corpus")
        .join(name);
    let mut files: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    files.sort();
    let corpus: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    assert!(!corpus.is_empty());
    corpus.iter().for_each(|input| check(input));

    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let first = number("ROLLOUT_FUZZ_SEED").unwrap_or_else(|| now.unwrap().as_secs());
    let time = Duration::from_secs(number("ROLLOUT_FUZZ_SECONDS").unwrap_or(2));
    let (started, mut runs) = (Instant::now(), 0);
    while started.elapsed() < time {
        let seed = first + runs;
        let input = make(&mut Random::new(seed), &corpus);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(&input))) {
            say(&format!(
                "fuzz {name}: failed with ROLLOUT_FUZZ_SEED={seed}"
            ));
            resume_unwind(panic);
        }
        runs += 1;
    }
    say(&format!(
        "fuzz {name}: {runs} runs from ROLLOUT_FUZZ_SEED={first}"
    ));
}

#[test]
fn headers_are_read_as_the_safetensors_crate_reads_them() {
    drive("header", targets::header::check, targets::header::mutate);
}

#[test]
fn tokens_are_those_of_a_plain_reading() {
    drive("tokens", targets::tokens::check, targets::tokens::mutate);
}

#[test]
fn photos_are_bounded_and_are_those_that_the_image_crate_reads() {
    drive("photos", targets::photos::check, targets::photos::mutate);
}

#[test]
fn command_lines_are_computed_as_the_reference_does_or_are_refused() {
    drive("options", targets::options::check, targets::options::mutate);
}

#[test]
fn plans_streams_and_groups_agree_with_the_reference() {
    drive("library", targets::library::check, |random, _| {
        (0..512).flat_map(|_| random.bits().to_le_bytes()).collect()
    });
}
