//! Work in more than one chunk, and a run that is killed half-way.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use half::f16;
use safetensors::Dtype;

use crate::support::{Bench, Tensor, read};

#[test]
fn matrices_are_written_chunk_by_chunk() {
    // 20 items of 4 MiB of output, 64 MiB at a time; 4 valid tokens each, at the end.
    const BATCH: usize = 20;
    const TOKENS: usize = 1024;
    const VALID: usize = 4;
    let entry = |item: usize, i: usize, j: usize| f16::from_f64((1 + item * 16 + i * 4 + j) as f64);
    let mut maps = vec![f16::NAN; BATCH * TOKENS * TOKENS];
    let mut mask = vec![0; BATCH * TOKENS];
    let first = TOKENS - VALID;
    for item in 0..BATCH {
        for i in 0..VALID {
            mask[item * TOKENS + first + i] = 1;
            for j in 0..VALID {
                let row = item * TOKENS + first + i;
                maps[row * TOKENS + first + j] = entry(item, i, j);
            }
        }
    }
    let bench = Bench::new();
    let bytes = bytemuck::cast_slice(&maps).to_vec();
    let input = bench.write(
        "in.safetensors",
        &[
            (
                "layer.0",
                Tensor::raw(Dtype::F16, &[BATCH, TOKENS, TOKENS], bytes),
            ),
            (
                "attention_mask",
                Tensor::raw(Dtype::U8, &[BATCH, TOKENS], mask),
            ),
        ],
    );
    for (kind, name) in [("matrix", "rollout"), ("cumulative", "rollout.0")] {
        let options = format!("--output-kind {kind} --attention-weight 1 --identity-weight 0");
        let got = &bench.run_ok(&input, &options)[name];
        let values: &[f32] = bytemuck::cast_slice(&got.bytes);
        for (index, &value) in values.iter().enumerate() {
            let (row, j) = (index / TOKENS, index % TOKENS);
            let (item, i) = (row / TOKENS, row % TOKENS);
            let expected = if i >= first && j >= first {
                entry(item, i - first, j - first).to_f32()
            } else {
                0.0
            };
            assert_eq!(value, expected, "{kind}: item {item}, row {i}, column {j}");
        }
    }
}

#[test]
fn attributions_are_written_chunk_by_chunk() {
    // 40 items of 2.2 MB of attribution.
    const SHAPE: [usize; 3] = [40, 8, 70_000];
    let bench = Bench::new();
    let value = vec![1; SHAPE.iter().product()];
    let input = bench.write(
        "in.safetensors",
        &[
            ("layer.0", Tensor::maps(40, 2, 8, 3)),
            ("value", Tensor::raw(Dtype::BOOL, &SHAPE, value)),
        ],
    );
    let got = bench.run_ok(&input, "--expand");
    let relevance: &[f32] = bytemuck::cast_slice(&got["relevance"].bytes);
    assert_eq!(got["attribution"].shape, SHAPE);
    let attribution: &[f32] = bytemuck::cast_slice(&got["attribution"].bytes);
    for (&relevance, token) in relevance.iter().zip(attribution.chunks_exact(SHAPE[2])) {
        assert!(relevance > 0.0 && token.iter().all(|&value| value == relevance));
    }
}

#[test]
fn a_killed_run_leaves_the_older_output() {
    let bench = Bench::new();
    let maps = Tensor::maps(16, 1, 256, 1);
    let layers: Vec<String> = (0..8).map(|l| format!("layer.{l}")).collect();
    let tensors: Vec<_> = layers
        .iter()
        .map(|name| (&name[..], maps.clone()))
        .collect();
    bench.write("in.safetensors", &tensors);
    let older = bench.write("out.safetensors", &[("older", Tensor::maps(1, 1, 2, 1))]);
    let before = read(&older);

    let mut run = Command::new(env!("CARGO_BIN_EXE_attention-rollout"))
        .args(["run", "in.safetensors", "--output", "out.safetensors"])
        .args(["--output-kind", "cumulative", "--threads", "1"])
        .current_dir(bench.directory.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while bench.files().len() < 3 && started.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(1));
    }
    run.kill().unwrap();
    let status = run.wait().unwrap();
    let after = read(&older);
    if status.success() {
        assert!(
            after.contains_key("rollout.7"),
            "it was done before it could be killed"
        );
    } else {
        assert_eq!(after, before);
    }
}
