//! Damaged and hostile files: whatever is in them, the binary ends with status 0 or 2, in little memory.

use std::process::Command;

use proptest::prelude::*;

use crate::support::{Bench, Tensor, serialize};

/// Address space the binary may use, in KiB: far more than any file here needs.
const MEMORY_KIB: usize = 2 << 20;

const OPTIONS: [&str; 5] = [
    "",
    "--output-kind cumulative --discard-ratio 0.5",
    "--rows count:f/value --expand",
    "--rows tensor:row --head-fusion weights:w",
    "--output-kind matrix --no-mask --heatmap heat.png",
];

/// A file with something of everything.
fn valid_file() -> Vec<u8> {
    serialize(&[
        ("layer.0", Tensor::maps(2, 2, 4, 1)),
        ("layer.1", Tensor::maps(2, 2, 4, 2)),
        ("row", Tensor::i64(&[2], [1, 2])),
        ("w", Tensor::f32(&[2], [0.5, 0.5])),
        ("value", Tensor::i64(&[2, 4, 3], 0..24)),
        (
            "attention_mask",
            Tensor::i64(&[2, 4], [1, 1, 1, 0, 1, 1, 1, 1]),
        ),
        ("f/layer.0", Tensor::maps(1, 1, 3, 3)),
        ("f/value", Tensor::i64(&[1, 3], [5, 6, 0])),
    ])
}

fn check(file: &[u8], options: &str) -> Result<(), TestCaseError> {
    let bench = Bench::new();
    let input = bench.path("in.safetensors");
    std::fs::write(&input, file).unwrap();
    let limited = format!("ulimit -v {MEMORY_KIB} && exec \"$@\"");
    let output = Command::new("sh")
        .args(["-c", &limited, "sh"])
        .arg(env!("CARGO_BIN_EXE_attention-rollout"))
        .args(["run", "in.safetensors", "--output", "out.safetensors"])
        .args(["--threads", "1", "--device", "cpu"])
        .args(options.split_whitespace())
        .current_dir(bench.directory.path())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) => prop_assert!(bench.files().contains(&"out.safetensors".to_owned())),
        Some(2) => {
            prop_assert!(stderr.starts_with("error: "), "{stderr}");
            prop_assert_eq!(bench.files(), ["in.safetensors"]);
        }
        status => prop_assert!(false, "status {status:?}: {stderr}"),
    }
    Ok(())
}

/// Replaces number `which` of the header by `number`, and sets the header's length right.
fn with_number(file: &[u8], which: usize, number: &str) -> Vec<u8> {
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header = std::str::from_utf8(&file[8..8 + length]).unwrap();
    let starts: Vec<usize> = header
        .char_indices()
        .filter(|&(i, c)| c.is_ascii_digit() && matches!(header.as_bytes()[i - 1], b'[' | b','))
        .map(|(i, _)| i)
        .collect();
    let start = starts[which % starts.len()];
    let digits = header[start..].find(|c: char| !c.is_ascii_digit()).unwrap();
    let header = [&header[..start], number, &header[start + digits..]].concat();
    let size = (header.len() as u64).to_le_bytes();
    [&size[..], header.as_bytes(), &file[8 + length..]].concat()
}

#[test]
fn the_valid_file_is_valid() {
    let bench = Bench::new();
    let input = bench.path("in.safetensors");
    std::fs::write(&input, valid_file()).unwrap();
    bench.run(&input, "").expect_status(0);
}

#[cfg(target_os = "linux")]
proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(
        length in 0u64..64,
        bytes in proptest::collection::vec(any::<u8>(), 0..64),
        options in 0..OPTIONS.len(),
    ) {
        let file = [&length.to_le_bytes()[..], &bytes].concat();
        check(&file, OPTIONS[options])?;
    }

    #[test]
    fn changed_bytes(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        options in 0..OPTIONS.len(),
    ) {
        let mut file = valid_file();
        for (at, byte) in changes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        check(&file, OPTIONS[options])?;
    }

    #[test]
    fn cut_or_extended(
        length in any::<prop::sample::Index>(),
        more in proptest::collection::vec(any::<u8>(), 0..9),
        options in 0..OPTIONS.len(),
    ) {
        let file = valid_file();
        let mut file = file[..length.index(file.len() + 1)].to_vec();
        file.extend(more);
        check(&file, OPTIONS[options])?;
    }

    #[test]
    fn changed_numbers(
        changes in proptest::collection::vec((any::<usize>(), 0..NUMBERS.len()), 1..4),
        options in 0..OPTIONS.len(),
    ) {
        let file = changes.into_iter().fold(valid_file(), |file, (which, number)| {
            with_number(&file, which, NUMBERS[number])
        });
        check(&file, OPTIONS[options])?;
    }
}

/// Where arithmetic on extents and offsets goes wrong.
const NUMBERS: [&str; 12] = [
    "0",
    "1",
    "3",
    "-1",
    "1.5",
    "4294967295",
    "4294967296",
    "2305843009213693951",
    "9223372036854775807",
    "18446744073709551608",
    "18446744073709551615",
    "99999999999999999999999",
];
