//! What becomes of relevance before it is written: `--exclude-relevance`, `--columns` and `--upsample`.

use attention_rollout::post;
use image::ImageReader;

use crate::support::{Bench, Tensor, assert_close, data};

const TOLERANCE: f64 = 1e-6;

/// f64 as the f32 that they came from.
fn f32s(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}

fn f64s(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| value.into()).collect()
}

#[test]
fn excluded_tokens_are_0_and_the_rest_sums_to_1() {
    let bench = Bench::new();
    let input = data("minilm_batch4.safetensors");
    let all = bench.run_ok(&input, "--device cpu --rows 0,3")["relevance"].values();
    let options = "--device cpu --rows 0,3 --exclude-relevance 0,2,20";
    let left = bench.run_ok(&input, options);
    assert_eq!(left["relevance"].shape, [4, 2, 28]);
    let left = left["relevance"].values();
    for (all, left) in all.chunks(28).zip(left.chunks(28)) {
        let excluded = [0, 2, 20];
        let rest: f64 = (0..28)
            .filter(|j| !excluded.contains(j))
            .map(|j| all[j])
            .sum();
        let want: Vec<f64> = (0..28)
            .map(|j| {
                if excluded.contains(&j) {
                    0.0
                } else {
                    all[j] / rest
                }
            })
            .collect();
        assert_close("excluded", left, &want, TOLERANCE);
    }
    let run = bench.run(&input, "--device cpu --exclude-relevance 28");
    run.expect_failure(2, &["--exclude-relevance", "28 tokens", "got 28"]);
}

#[test]
fn columns_count_from_the_first_valid_token() {
    let bench = Bench::new();
    let mut mask = vec![1.0; 12];
    mask[6..9].fill(0.0);
    let tensors = [
        ("layer.0", Tensor::maps(2, 2, 6, 0)),
        ("attention_mask", Tensor::f32(&[2, 6], mask)),
    ];
    let input = bench.write("padded.safetensors", &tensors);
    let all = bench.run_ok(&input, "--device cpu --rows 1")["relevance"].values();
    let some = bench.run_ok(&input, "--device cpu --rows 1 --columns 1..5");
    assert_eq!(some["relevance"].shape, [2, 4]);
    // The second item has three tokens, at the end.
    let want = [&all[1..5], &all[10..12], &[0.0, 0.0]].concat();
    assert_eq!(some["relevance"].values(), want);
    for (columns, parts) in [
        ("1..7", ["--columns", "6 columns"]),
        ("3..3", ["--columns", "at least one column"]),
    ] {
        let run = bench.run(&input, &format!("--device cpu --columns {columns}"));
        run.expect_failure(2, &parts);
    }
}

#[test]
fn patches_are_enlarged_to_pictures() {
    let bench = Bench::new();
    let input = bench.write("in.safetensors", &[("layer.0", Tensor::maps(2, 2, 7, 0))]);
    let relevance = bench.run_ok(&input, "--device cpu")["relevance"].values();
    // After one special token, and the same as columns.
    for patches in ["--grid 2x3", "--grid 2x3 --columns 1..7"] {
        let options = format!("--device cpu --upsample 5x9 {patches}");
        let got = bench.run_ok(&input, &options);
        assert_eq!(got["upsampled"].shape, [2, 5, 9]);
        let grids = post::grid(&f32s(&relevance), 7, 1, (2, 3)).unwrap();
        let want = post::upsample(&grids, (2, 3), (5, 9)).unwrap();
        assert_eq!(got["upsampled"].values(), f64s(&want), "{patches}");
    }
    let got = bench.run_ok(&input, "--device cpu --rows 0,4 --upsample 4x6 --grid 2x3");
    assert_eq!(got["upsampled"].shape, [2, 2, 4, 6]);
    let draw = "--device cpu --heatmap heat.png --grid 2x3";
    bench
        .run(&input, &format!("{draw} --upsample 40x60"))
        .expect_status(0);
    let size = ImageReader::open(bench.path("heat.png")).unwrap();
    assert_eq!(size.into_dimensions().unwrap(), (60, 40));
    for (options, parts) in [
        ("--upsample 4x6", ["--upsample", "square number"]),
        ("--upsample 4x6 --grid 2x2", ["--grid", "2x2 for 6 of 7"]),
        ("--upsample 99999x2 --grid 2x3", ["--upsample", "99999x2"]),
        ("--upsample 0x2", ["--upsample", "rows and columns"]),
        ("--grid 2x3", ["--grid", "--upsample"]),
    ] {
        let run = bench.run(&input, &format!("--device cpu {options}"));
        run.expect_failure(2, &parts);
    }
}

#[test]
fn what_is_made_of_relevance_asks_for_relevance() {
    let bench = Bench::new();
    let tensors = [
        ("layer.0", Tensor::maps(1, 1, 5, 0)),
        ("value", Tensor::f32(&[1, 5], vec![1.0; 5])),
    ];
    let input = bench.write("in.safetensors", &tensors);
    for option in ["--exclude-relevance 1", "--columns 1..3", "--upsample 4x4"] {
        let options = format!("--device cpu --output-kind matrix {option}");
        let name = option.split(' ').next().unwrap();
        let run = bench.run(&input, &options);
        run.expect_failure(2, &[name, "--output-kind rows", "got matrix"]);
    }
    let run = bench.run(&input, "--device cpu --expand --columns 1..3");
    run.expect_failure(2, &["--expand", "all columns"]);
}
