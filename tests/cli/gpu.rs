//! The binary on a GPU: the stand-in driver's, which interprets the kernels, or a real one where there is one.

use std::path::Path;

use crate::nvrtc::nvrtcs;
use crate::support::{Bench, Tensor, assert_close, data, read};

/// Whether there is a real GPU.
pub fn is_real() -> bool {
    Path::new("/dev/nvidiactl").exists()
}

/// A bench whose binary sees GPUs of these models; `None`, said aloud, where there is no compiler for its kernels.
pub fn bench(models: &str) -> Option<Bench> {
    let nvrtc = nvrtcs().into_iter().next()?;
    let mut bench = Bench::new();
    bench
        .environment
        .push(("ROLLOUT_NVRTC", nvrtc.path().into()));
    if !is_real() {
        let driver = vcuda::client::library_path().unwrap_or_else(|error| panic!("{error}"));
        bench.environment.extend([
            ("LD_PRELOAD", driver.into()),
            ("VCUDA_DEVICES", models.into()),
            ("ROLLOUT_PTX", "1".into()),
        ]);
    }
    Some(bench)
}

#[test]
fn real_maps_give_the_same_on_a_gpu() {
    let Some(bench) = bench("sm_90,sm_80") else {
        return;
    };
    let maps = data("minilm_batch4.safetensors");
    for options in [
        "",
        "--output-kind matrix --normalize-rows",
        "--output-kind cumulative --head-fusion max --normalize-rows",
        "--rows mean --discard-ratio 0.9",
    ] {
        let cpu = bench.run_ok(&maps, &format!("--device cpu {options}"));
        for device in ["auto", "cuda:0", "cuda:all"] {
            let gpu = bench.run_ok(&maps, &format!("--device {device} {options}"));
            assert_eq!(gpu.len(), cpu.len());
            for (name, tensor) in &cpu {
                assert_eq!(gpu[name].shape, tensor.shape);
                let what = format!("{name} {options} on {device}");
                assert_close(&what, &gpu[name].values(), &tensor.values(), 1e-6);
            }
        }
    }
    let run = bench.run(&maps, "--device cuda:0 --json");
    let json: serde_json::Value = serde_json::from_str(&run.expect_status(0).stdout).unwrap();
    assert_eq!(json["device"], "cuda:0");
    let variant = json["features"][0]["variant"].as_str().unwrap();
    assert!(variant.contains("rows_stream_f32"), "{variant}");
}

#[test]
fn pyhealth_features_give_the_same_on_a_gpu() {
    let Some(bench) = bench("sm_90") else {
        return;
    };
    let cases = data("pyhealth_cases.safetensors");
    let options = "--device cuda --expand --rows-for stageattn_nested=count:value";
    let got = bench.run_ok(&cases, options);
    let expected = read(&cases);
    let mut compared = 0;
    for (name, tensor) in &got {
        assert_close(name, &tensor.values(), &expected[name].values(), 1e-6);
        compared += 1;
    }
    assert_eq!(compared, 12, "relevance and attribution of 6 features");
}

#[test]
fn verify_and_selftest_cover_the_gpu() {
    let Some(bench) = bench("sm_90") else {
        return;
    };
    let maps = data("minilm_batch4.safetensors");
    let arguments = ["verify", maps.to_str().unwrap(), "--items", "1"];
    let table = bench.command(arguments).expect_status(0).stdout;
    for backend in [
        "cpu, 1 thread",
        "cuda:0: rows_stream",
        "rollout_product_f32_f16x3",
    ] {
        assert!(table.contains(backend), "{backend:?} not in {table}");
    }
    let half = bench.command(arguments.iter().copied().chain(["--precision", "half"]));
    half.expect_status(0);

    for (only, count) in [
        ("rollout_product_f32_f16x3", 8),
        ("split_product", 10),
        ("zero_fill", 2),
        ("f16_f32_m1_mean_group", 2),
        ("score_rows_f16_mean", 6),
        ("score_masses", 2),
        ("score_stream", 4),
    ] {
        let table = bench.command(["selftest", "--only", only]);
        let table = table.expect_status(0).stdout;
        let verdict = format!("{count} of {count} kernels are right");
        assert!(table.contains(&verdict), "{table}");
    }
    bench
        .command(["selftest", "--only", "no such kernel"])
        .expect_failure(2, &["--only", "no such kernel"]);
}

#[test]
fn devices_says_what_is_there_and_what_lacks() {
    let Some(gpu) = bench("sm_90") else {
        return;
    };
    let list = gpu.command(["devices"]).expect_status(0).stdout;
    assert!(
        list.contains("driver: CUDA") && list.contains("cuda: 0: "),
        "{list}"
    );
    if !is_real() {
        let none = Bench::new();
        let list = none.command(["devices"]).expect_status(0).stdout;
        assert!(list.contains("no NVIDIA driver"), "{list}");
        let run = none
            .run(&data("minilm_batch4.safetensors"), "")
            .expect_status(0);
        assert!(
            run.stderr
                .contains("note: computing on the CPU: no NVIDIA driver")
        );
        none.run(&data("minilm_batch4.safetensors"), "--device cuda")
            .expect_failure(1, &["cuda:0", "no NVIDIA driver", "Install"]);
    }
}

/// A library without its builtins opens, and compiles nothing.
#[test]
fn a_compiler_that_cannot_compile_leaves_the_cpu() {
    let Some(mut gpu) = bench("sm_90") else {
        return;
    };
    let nvrtc = nvrtcs().remove(0);
    let real = std::fs::canonicalize(nvrtc.path()).unwrap();
    let alone = gpu.path("libnvrtc.so");
    std::fs::copy(real, &alone).unwrap();
    gpu.environment.retain(|(name, _)| *name != "ROLLOUT_NVRTC");
    gpu.environment.push(("ROLLOUT_NVRTC", alone.into()));
    let maps = data("minilm_batch4.safetensors");
    let run = gpu.run(&maps, "--device auto").expect_status(0);
    let parts = ["note: computing on the CPU", "builtins"];
    for part in parts {
        assert!(run.stderr.contains(part), "{part:?} not in {}", run.stderr);
    }
    gpu.run(&maps, "--device cuda")
        .expect_failure(1, &["cuda:0", "builtins"]);
    let list = gpu.command(["devices"]).expect_status(0).stdout;
    let line = list.lines().find(|line| line.starts_with("nvrtc: "));
    assert!(line.unwrap().contains("builtins"), "{list}");
}

#[test]
fn queries_and_keys_give_the_same_on_a_gpu() {
    let Some(gpu) = bench("sm_90") else {
        return;
    };
    let sentences = data("qk_minilm_batch4.f32.safetensors");
    let causal = data("qk_gqa_causal_64.f16.safetensors");
    for (input, options) in [
        (&sentences, "--rows tensor:start_0,tensor:start_1"),
        (
            &sentences,
            "--output-kind matrix --layers 4.. --lse recompute",
        ),
        (
            &causal,
            "--causal --rows last --head-fusion max --normalize-rows",
        ),
    ] {
        let cpu = gpu.run_ok(input, &format!("--device cpu {options}"));
        let got = gpu.run_ok(input, &format!("--device auto {options}"));
        for (name, tensor) in &cpu {
            assert_close(options, &got[name].values(), &tensor.values(), 1e-6);
        }
    }
    let wrong = "--device cuda --causal --rows last --scale 0.15";
    let run = gpu.run(&causal, wrong);
    run.expect_failure(2, &["item 0, head 0", "the scale, the base"]);
    let plan = "plan --layers 2 --heads 4 --tokens 40 --queries-keys 32 --device cuda --json";
    let run = gpu.command(plan.split(' ')).expect_status(0);
    assert!(
        run.stdout.contains("score_fusion_f32_mean"),
        "{}",
        run.stdout
    );
    let timed = "bench --shape 2,1,2,20 --queries-keys 16 --device cuda --runs 1 --json";
    let run = gpu.command(timed.split(' ')).expect_status(0);
    assert!(run.stdout.contains("\"checked\":true"), "{}", run.stdout);
    if is_real() {
        return;
    }
    // A GPU without the products.
    let old = bench("sm_75").unwrap();
    let run = old.run(&sentences, "--device auto").expect_status(0);
    assert!(
        run.stderr.contains("computing on the CPU"),
        "{}",
        run.stderr
    );
    old.run(&sentences, "--device cuda")
        .expect_failure(2, &["sm_80", "sm_75"]);
}

#[test]
fn every_way_of_computing_is_timed() {
    let Some(bench) = bench("sm_90") else {
        return;
    };
    let sizes = "--device cuda --output-kind matrix --runs 1";
    let arguments = format!("bench --shape 3,2,2,17 --pipelines {sizes}");
    let run = bench.command(arguments.split_whitespace()).expect_status(0);
    let mut lines = run.stdout.lines();
    let titles = "pipeline,launches,estimate_us,measured_us,graph_us";
    assert_eq!(lines.next(), Some(titles));
    let rows: Vec<(&str, Vec<f64>)> = lines
        .map(|line| {
            let (pipeline, numbers) = line[1..].split_once("\",").unwrap();
            let numbers = numbers.split(',').map(|number| number.parse().unwrap());
            (pipeline, numbers.collect())
        })
        .collect();
    let mut pipelines: Vec<&str> = rows.iter().map(|row| row.0).collect();
    pipelines.sort_unstable();
    let expected = [
        "product, f16x3, matrix",
        "ring matrix, f16x3, a block to an item",
        "tree",
    ];
    assert_eq!(pipelines, expected);
    for (pipeline, numbers) in rows {
        assert_eq!(numbers.len(), 4, "{pipeline}");
        assert!(
            numbers[0] >= 1.0 && numbers[1..].iter().all(|&us| us > 0.0),
            "{pipeline}: {numbers:?}"
        );
    }
    let maps = || Tensor::maps(2, 1, 3, 0);
    bench.write("two.st", &[("a/layer.0", maps()), ("b/layer.0", maps())]);
    for (options, part) in [
        ("--shape 2,1,1,5 --device cpu", "a GPU"),
        ("two.st --device cuda", "one feature"),
        ("--shape 2,1,1,5 --device cuda --json", "--json"),
    ] {
        let arguments = format!("bench --pipelines {options}");
        let run = bench.command(arguments.split_whitespace());
        run.expect_failure(2, &[part]);
    }
}

#[test]
fn the_fastest_way_is_told_and_kept_to() {
    let Some(mut bench) = bench("sm_90") else {
        return;
    };
    bench
        .environment
        .push(("ROLLOUT_CACHE_DIR", bench.path("kernels").into()));
    let problem = "--layers 3 --batch 2 --heads 2 --tokens 17 --output-kind matrix --device cuda";
    let tune = format!("tune {problem}");
    let run = bench.command(tune.split_whitespace()).expect_status(0);
    assert!(run.stderr.contains("remembered in"), "{}", run.stderr);
    let mut lines = run.stdout.lines();
    let titles = "pipeline,launches,estimate_us,measured_us";
    assert_eq!(lines.next(), Some(titles));
    let ways: Vec<(&str, f64)> = lines
        .map(|line| {
            let (pipeline, numbers) = line[1..].split_once("\",").unwrap();
            let measured = numbers.split(',').next_back().unwrap();
            (pipeline, measured.parse().unwrap())
        })
        .collect();
    assert_eq!(ways.len(), 3);
    assert!(ways.is_sorted_by_key(|way| way.1) && ways[0].1 > 0.0);
    let plan = format!("plan {problem} --tune --json");
    let run = bench.command(plan.split_whitespace()).expect_status(0);
    let plan: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    let (way, variant) = (ways[0].0, plan["variant"].as_str().unwrap());
    let kernel = match way.split(',').next().unwrap() {
        "ring matrix" => "matrix_stream",
        "product" => "rollout_product",
        _ => "split_product",
    };
    assert!(variant.contains(kernel), "{way}: {variant}");

    for device in ["cpu", "cuda:all"] {
        let arguments = format!("tune --layers 2 --heads 1 --tokens 5 --device {device}");
        let run = bench.command(arguments.split_whitespace());
        run.expect_failure(2, &["--device", "one GPU"]);
    }
    if !is_real() {
        let none = Bench::new().command(tune.split_whitespace());
        none.expect_failure(1, &["no NVIDIA driver"]);
    }
    bench.environment.push(("ROLLOUT_CACHE", "off".into()));
    let run = bench.command(tune.split_whitespace()).expect_status(0);
    assert!(
        run.stderr.contains("nothing is remembered"),
        "{}",
        run.stderr
    );
}
