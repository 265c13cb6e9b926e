//! `plan --gpu`: how a GPU that is not here would compute a problem.

use serde_json::Value;

use crate::support::Bench;

const SIZES: &str = "plan --layers 12 --batch 8 --heads 12 --tokens 197 --dtype f16";

#[test]
fn a_gpu_that_is_not_here_is_planned_for() {
    let bench = Bench::new();
    let print = |options: &str| {
        let arguments = format!("{SIZES} {options}");
        bench
            .command(arguments.split_whitespace())
            .expect_status(0)
            .stdout
    };
    let plan = |options: &str| -> Value {
        let plan = print(&format!("{options} --json"));
        serde_json::from_str(&plan).unwrap()
    };
    let one = plan("--gpu h200 --output-kind matrix");
    assert_eq!(one["gpu"], "h200");
    let all = plan("--gpu h200 --output-kind matrix --explain");
    let [one, all] = [one, all].map(|plan| plan["candidates"].as_array().unwrap().clone());
    assert_eq!(one[..], all[..1], "the first is what is taken");
    let pipelines: Vec<&str> = all
        .iter()
        .map(|candidate| candidate["pipeline"].as_str().unwrap())
        .collect();
    let expected = [
        "tree",
        "product, f16x3, matrix",
        "ring matrix, f16x3, a cluster of 2 to an item",
    ];
    assert_eq!(pipelines, expected);
    assert_eq!(one[0]["launches"], 5);
    assert_eq!(one[0]["variants"][0], "head_fusion_f16_mean_split");
    assert!(one[0]["workspace_bytes"].as_u64().unwrap() > 0);
    // Maps and output once, at 4.9 TB/s.
    let bytes = (12 * 8 * 12 * 2 + 8 * 4) * 197 * 197;
    let floor_us = one[0]["floor_us"].as_f64().unwrap();
    assert!((floor_us * 4.916_736e6 / f64::from(bytes) - 1.0).abs() < 1e-6);
    assert!(one[0]["estimate_us"].as_f64().unwrap() > floor_us);
    // Eight items in pairs of blocks leave multiprocessors idle, and nobody predicted what a ring can take then.
    let origins = all
        .iter()
        .map(|candidate| candidate["estimate_origin"].as_str());
    let expected = ["predicted", "predicted", "assumed"].map(Some);
    assert!(origins.eq(expected), "{all:?}");
    let source = &one[0]["estimate_source"];
    assert_eq!(source, "tests/ptxtime/src/machine/h200.rs");

    let half = plan("--gpu t4 --precision half --output-kind matrix");
    let pipeline = &half["candidates"][0]["pipeline"];
    assert_eq!(pipeline, "product, f32, matrix", "no tensor cores there");
    let lines = print("--gpu a100 --explain");
    assert!(lines.contains("gpu        a100"), "{lines}");
    assert!(lines.contains(" us  assumed    launches:  1  "), "{lines}");
    assert!(!lines.contains("us  predicted"), "{lines}");
    assert!(
        lines.contains("ring rows, 13 blocks to an item, by words"),
        "{lines}"
    );
    assert!(print("--gpu a100").contains("rows_stream_f16_f32_m1_k7_mean: grid"));
}

#[test]
fn what_is_no_gpu_is_refused() {
    let bench = Bench::new();
    for (options, part) in [
        ("--gpu h3", "t4 | a100"),
        ("--gpu h200 --device cpu", "--device"),
        ("--explain", "--gpu"),
    ] {
        let arguments = format!("{SIZES} {options}");
        let run = bench.command(arguments.split_whitespace());
        run.expect_failure(2, &[part]);
    }
}
