//! `--gradients`, `--exclude-attention` and the mean of the first rows through the binary.

use safetensors::Dtype;

use crate::support::{Bench, Tensor, assert_close, data, read};

/// PyHealth in f32 is within 3.4e-7 of f64.
const TOLERANCE: f64 = 1e-6;

const CHEFER: &str = "--device cpu --gradients heads --attention-weight 1 --identity-weight 1";

#[test]
fn chefer_relevance_in_one_command() {
    let bench = Bench::new();
    let input = data("chefer_cases.safetensors");
    let expected = read(&input);
    let got = bench.run_ok(&input, &format!("{CHEFER} --expand --rows tensor:row"));
    assert_eq!(got.len(), 12);
    for (name, got) in &got {
        assert_eq!(got.shape, expected[name].shape, "{name}");
        assert_close(name, &got.values(), &expected[name].values(), TOLERANCE);
    }
    let got = bench.run_ok(&input, &format!("{CHEFER} --output-kind matrix"));
    for (name, got) in &got {
        assert_close(name, &got.values(), &expected[name].values(), TOLERANCE);
    }
}

#[test]
fn gradients_without_the_option_are_ignored_and_told_of() {
    let bench = Bench::new();
    let input = data("chefer_cases.safetensors");
    let run = bench.run(&input, "--device cpu").expect_status(0);
    assert!(
        run.stderr.contains("are ignored; --gradients"),
        "{}",
        run.stderr
    );
    let run = bench.run(&input, CHEFER).expect_status(0);
    assert!(!run.stderr.contains("ignored"), "{}", run.stderr);
    let run = bench.run(&data("pyhealth_cases.safetensors"), "--device cpu");
    assert!(!run.expect_status(0).stderr.contains("ignored"));
}

#[test]
fn verify_weighs_by_gradients_too() {
    let bench = Bench::new();
    let input = data("chefer_cases.safetensors");
    let input = input.to_str().unwrap();
    for rule in ["heads", "fused"] {
        let arguments = [
            "verify",
            input,
            "--gradients",
            rule,
            "--exclude-attention",
            "1",
        ];
        bench.command(arguments).expect_status(0);
    }
}

#[test]
fn gradients_that_are_missing_or_of_another_shape_are_named() {
    let bench = Bench::new();
    let maps = || Tensor::maps(1, 2, 3, 0);
    let missing = [
        ("layer.0", maps()),
        ("layer.1", maps()),
        ("gradient.0", maps()),
    ];
    let input = bench.write("missing.safetensors", &missing);
    let run = bench.run(&input, CHEFER);
    run.expect_failure(2, &["gradient.1", "--gradients"]);
    let other = [
        ("layer.0", maps()),
        ("gradient.0", Tensor::maps(1, 1, 3, 0)),
    ];
    let input = bench.write("other.safetensors", &other);
    let run = bench.run(&input, CHEFER);
    run.expect_failure(2, &["gradient.0", "[1, 2, 3, 3]", "[1, 1, 3, 3]"]);
    let half = Tensor::raw(Dtype::F16, &[1, 2, 3, 3], [0x00, 0x38].repeat(18));
    let input = bench.write(
        "type.safetensors",
        &[("layer.0", maps()), ("gradient.0", half)],
    );
    let run = bench.run(&input, CHEFER);
    run.expect_failure(2, &["gradient.0", "F32", "F16"]);
}

#[test]
fn plan_and_bench_weigh_by_gradients_too() {
    let bench = Bench::new();
    for options in [
        "--gradients heads",
        "--gradients fused --exclude-attention 1",
    ] {
        let options: Vec<&str> = options.split(' ').collect();
        let shape = [
            "bench", "--shape", "2,3,2,9", "--device", "cpu", "--runs", "2", "--json",
        ];
        let run = bench.command(shape.iter().chain(&options)).expect_status(0);
        // Maps and gradients: the first layer's, and the first row of the last.
        let bytes = format!("\"map_bytes\":{}", 2 * 4 * 3 * 2 * (81 + 9));
        assert!(run.stdout.contains(&bytes), "{}", run.stdout);
        let shape = "plan --layers 2 --batch 3 --heads 2 --tokens 9 --device cpu --sample 1 --json";
        let run = bench.command(shape.split(' ').chain(options));
        let run = run.expect_status(0);
        assert!(run.stdout.contains(&bytes), "{}", run.stdout);
    }
}

#[test]
fn the_first_gradient_that_is_not_a_number_is_named() {
    let bench = Bench::new();
    let mut gradients = vec![0.5; 18];
    gradients[13] = f32::NAN;
    let tensors = [
        ("layer.0", Tensor::maps(1, 2, 3, 0)),
        ("gradient.0", Tensor::f32(&[1, 2, 3, 3], gradients)),
    ];
    let input = bench.write("nan.safetensors", &tensors);
    let run = bench.run(&input, &format!("{CHEFER} --validate"));
    let parts = ["gradient.0", "head 1, row 1", "column 1 is NaN"];
    run.expect_failure(2, &parts);
    let got = bench.run_ok(&input, &format!("{CHEFER} --output-kind matrix"));
    let is_nan: Vec<bool> = got["rollout"].values().iter().map(|v| v.is_nan()).collect();
    assert_eq!(
        is_nan,
        [false, false, false, false, true, false, false, false, false]
    );
}

#[test]
fn the_mean_of_the_first_rows() {
    let bench = Bench::new();
    let input = data("minilm_batch4.safetensors");
    let rows = bench.run_ok(&input, "--device cpu --rows 0,1,2")["relevance"].values();
    let mean = bench.run_ok(&input, "--device cpu --rows mean:3");
    assert_eq!(mean["relevance"].shape, [4, 28]);
    let want: Vec<f64> = (0..4 * 28)
        .map(|at| {
            let row = |m: usize| rows[(at / 28 * 3 + m) * 28 + at % 28];
            (row(0) + row(1) + row(2)) / 3.0
        })
        .collect();
    assert_close("mean:3", &mean["relevance"].values(), &want, TOLERANCE);
    let run = bench.run(&input, "--rows mean:10");
    run.expect_failure(2, &["--rows", "9 valid tokens", "mean:10"]);
    bench
        .run(&input, "--rows mean:0")
        .expect_failure(2, &["at least 1"]);
}

#[test]
fn excluded_tokens_get_no_attention() {
    let bench = Bench::new();
    let input = data("minilm_batch4.safetensors");
    // Nothing attends to token 0, and row 5 of each item keeps its sum.
    let options = "--device cpu --exclude-attention 0,2 --rows 5";
    let got = bench.run_ok(&input, options)["relevance"].values();
    for item in got.chunks(28) {
        assert_eq!((item[0], item[2]), (0.0, 0.0));
        assert!((item.iter().sum::<f64>() - 1.0).abs() < TOLERANCE);
    }
    let run = bench.run(&input, "--device cpu --exclude-attention 28");
    run.expect_failure(2, &["token 28", "28 tokens"]);
}
