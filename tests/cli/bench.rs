//! `bench`: checked answers, times that a script can read, refusals; on the CPU and on a GPU.

use crate::support::{Bench, Tensor, data};
use serde_json::{Value, json};

/// Runs `bench` with these options (split at spaces) and `--json`; what it printed.
fn times(bench: &Bench, options: &str) -> Value {
    let fixed = ["bench", "--json"].into_iter();
    let run = bench
        .command(fixed.chain(options.split_whitespace()))
        .expect_status(0);
    assert_eq!(run.stderr, "", "{options}");
    serde_json::from_str(&run.stdout).unwrap()
}

/// The numbers of a list.
fn numbers(times: &Value, name: &str) -> Vec<f64> {
    let list = times[name].as_array().unwrap();
    list.iter().map(|time| time.as_f64().unwrap()).collect()
}

/// The smallest number of a list.
fn minimum(times: &Value, name: &str) -> f64 {
    numbers(times, name)
        .into_iter()
        .fold(f64::INFINITY, f64::min)
}

#[test]
fn times_of_a_file_are_json() {
    let input = data("pyhealth_cases.safetensors");
    let options = format!("{} --runs 3 --threads 1 --device cpu", input.display());
    let times = times(&Bench::new(), &options);
    assert_eq!(times["device"], "cpu");
    assert_eq!(times["checked"], true);
    assert_eq!(times["threads"], 1);
    for list in ["runs_us", "floor_us"] {
        assert_eq!(numbers(&times, list).len(), 3, "{list}");
    }
    for list in ["graph_us", "graph_latency_us"] {
        assert_eq!(numbers(&times, list).len(), 0, "{list}");
    }
    assert_eq!(
        times["shapes"].as_array().unwrap().len(),
        6,
        "every feature"
    );
    assert_eq!(times["dtypes"], json!(vec!["f32"; 6]));
    let ratio = minimum(&times, "runs_us") / minimum(&times, "floor_us");
    assert!((times["floor_ratio"].as_f64().unwrap() / ratio - 1.0).abs() < 1e-9);
}

#[test]
fn random_maps_take_every_configuration() {
    for options in [
        "--dtype f16",
        "--dtype bf16 --output-kind matrix --normalize-rows",
        "--output-kind cumulative --discard-ratio 0.5",
        "--rows last --causal",
    ] {
        let fixed = "--shape 2,3,2,19 --runs 1 --device cpu";
        let times = times(&Bench::new(), &format!("{fixed} {options}"));
        assert_eq!(times["shapes"], json!([[2, 3, 2, 19]]), "{options}");
    }
}

/// Random queries and keys have the LSE that a model would have given, and what is made of products has their times.
#[test]
fn random_queries_and_keys_have_their_lse() {
    let fixed = "--shape 2,2,4,70 --queries-keys 16 --key-heads 2 --runs 2 --device cpu";
    for (options, products) in [
        ("--lse recompute", 2),
        ("--lse given", 2),
        ("--lse given --lse-base 2 --scale 0.5 --dtype f16", 2),
        ("--lse given --causal --rows last", 0),
        ("--lse given --sliding-window 9 --soft-cap 2", 0),
        ("--lse given --output-kind matrix", 0),
    ] {
        let times = times(&Bench::new(), &format!("{fixed} {options}"));
        assert_eq!(times["checked"], true);
        assert_eq!(numbers(&times, "products_us").len(), products, "{options}");
    }
    let maps = times(
        &Bench::new(),
        "--shape 2,2,4,30 --output-kind matrix --runs 2 --device cpu",
    );
    assert_eq!(numbers(&maps, "products_us").len(), 2);
    let rows = times(&Bench::new(), "--shape 2,2,4,30 --runs 2 --device cpu");
    assert_eq!(numbers(&rows, "products_us").len(), 0);
}

#[test]
fn an_answer_that_is_not_a_number_is_a_wrong_one() {
    let bench = Bench::new();
    let tensor = Tensor::f32(&[1, 1, 2, 2], [0.5, f32::NAN, 0.5, 0.5]);
    let input = bench.write("nan.safetensors", &[("layer.0", tensor)]);
    let arguments = ["bench", input.to_str().unwrap(), "--device", "cpu"];
    bench
        .command(arguments)
        .expect_failure(1, &["wrong answer: item 0, layer 0, row 0, column 1"]);
    let unchecked = arguments.into_iter().chain(["--no-check", "--json"]);
    let run = bench.command(unchecked).expect_status(0);
    let times: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(times["checked"], false);
}

#[test]
fn shapes_and_inputs_that_cannot_be_are_refused() {
    let bench = Bench::new();
    for (options, parts) in [
        ("--shape 1,2,3", &["--shape", "1,2,3"][..]),
        ("--shape 0,1,1,1", &["layers"]),
        ("--shape 1,0,1,1", &["maps to read", "none"]),
        ("--shape 99999999,99999999,99999999,99999999", &["overflow"]),
        ("--runs 0", &["--runs", "0"]),
        ("--rows tensor:rows", &["rows"]),
        ("missing.safetensors", &["missing.safetensors"]),
        ("missing.safetensors --dtype f16", &["--dtype"]),
        ("--device cuda:all", &["--device", "cuda:N", "cuda:all"]),
        ("--device gpu", &["--device", "gpu"]),
    ] {
        bench
            .command(["bench"].into_iter().chain(options.split_whitespace()))
            .expect_failure(2, parts);
    }
}

#[cfg(feature = "cuda")]
mod on_a_gpu {
    use super::*;
    use crate::gpu;

    #[test]
    fn times_on_a_gpu_are_json() {
        let Some(bench) = gpu::bench("sm_90") else {
            return;
        };
        for (options, shape, bytes, kernel) in [
            // Of the last layer only row 0 is read.
            (
                "--shape 2,3,2,19",
                [2, 3, 2, 19],
                4 * 3 * 2 * (19 * 19 + 19),
                "rows_stream_f32_f32_",
            ),
            (
                "--shape 3,2,2,33 --dtype f16 --output-kind matrix",
                [3, 2, 2, 33],
                2 * 3 * 2 * 2 * 33 * 33,
                "split_product_f32_f16x3_",
            ),
            (
                "--shape 3,2,2,33 --dtype bf16 --output-kind matrix --normalize-rows --precision half",
                [3, 2, 2, 33],
                2 * 3 * 2 * 2 * 33 * 33,
                "matrix_stream_bf16_f16x2_n64_mean",
            ),
        ] {
            let times = times(&bench, &format!("--device cuda:0 --runs 2 {options}"));
            assert_eq!(times["device"], "cuda:0");
            assert!(times["device_name"].as_str().unwrap().contains("NVIDIA"));
            assert_eq!(times["checked"], true);
            assert_eq!(times["shapes"], json!([shape]), "{options}");
            assert_eq!(times["map_bytes"], bytes, "{options}");
            assert_eq!(times["floor_bytes"], bytes / 16 * 16, "{options}");
            let variants = times["variants"].as_array().unwrap();
            let has = |part: &str| {
                let mut variants = variants.iter();
                variants.any(|variant| variant.as_str().unwrap().contains(part))
            };
            assert!(has(kernel), "{options}: {variants:?}");
            let half = options.contains("half");
            assert!(!half || !has("f16x3"), "{options}: {variants:?}");
            assert!(times["copies"].as_u64().unwrap() > 1, "{options}");
            assert!(times["workspace_bytes"].is_u64() && times["repeats"].is_u64());
            for list in ["runs_us", "floor_us", "graph_us", "graph_latency_us"] {
                let times = numbers(&times, list);
                assert_eq!(times.len(), 2, "{list} {options}");
                assert!(times.iter().all(|&time| time > 0.0), "{list} {options}");
            }
            assert!(times["floor_ratio"].as_f64().unwrap() > 0.0);
        }
    }

    #[test]
    fn features_and_forced_kernels_are_timed_on_a_gpu() {
        let Some(mut bench) = gpu::bench("sm_90") else {
            return;
        };
        let input = data("pyhealth_cases.safetensors");
        let features = times(
            &bench,
            &format!("{} --device cuda --runs 1", input.display()),
        );
        assert_eq!(features["shapes"].as_array().unwrap().len(), 6);
        assert_eq!(numbers(&features, "graph_us").len(), 1);

        let kernel = "rollout_product_f32_f32_matrix";
        bench.environment.push(("ROLLOUT_VARIANT", kernel.into()));
        let options = "--device cuda --shape 3,2,1,20 --output-kind matrix --runs 1";
        let forced = times(&bench, options);
        let variants = forced["variants"].as_array().unwrap();
        assert!(variants.contains(&json!(kernel)), "{variants:?}");
        bench
            .environment
            .push(("ROLLOUT_VARIANT", "no_such".into()));
        bench
            .command(["bench"].into_iter().chain(options.split_whitespace()))
            .expect_failure(1, &["no_such"]);
    }

    #[test]
    fn auto_takes_the_gpu_and_says_when_there_is_none() {
        if let Some(bench) = gpu::bench("sm_90") {
            let times = times(&bench, "--shape 1,1,1,5 --runs 1");
            assert_eq!(times["device"], "cuda:0");
            bench
                .command(["bench", "--device", "cuda:99"])
                .expect_failure(1, &["cuda:99", "no CUDA device 99"]);
        }
        if !gpu::is_real() {
            let bench = Bench::new();
            let run = bench
                .command(["bench", "--shape", "1,1,1,5", "--runs", "1"])
                .expect_status(0);
            assert!(run.stderr.contains("note: computing on the CPU"));
            bench
                .command(["bench", "--device", "cuda"])
                .expect_failure(1, &["cuda:0", "no NVIDIA driver"]);
        }
    }
}
