//! Rollout from queries and keys through the binary.

use safetensors::Dtype;

use crate::support::{Bench, Tensor, assert_close, data, read};

const MINILM: &str = "qk_minilm_batch4.f32.safetensors";
const CAUSAL: &str = "qk_gqa_causal_64.f32.safetensors";
const HALF: &str = "qk_gqa_causal_64.f16.safetensors";

/// The LSE of the files was rounded to f32.
const TOLERANCE: f64 = 1e-6;

#[test]
fn the_rollout_of_models_in_one_command() {
    let bench = Bench::new();
    let expected = read(&data(MINILM));
    let mask: Vec<f64> = (expected["attention_mask"].bytes.chunks(8))
        .map(|word| f64::from(word[0]))
        .collect();
    let both = "--device cpu --rows tensor:start_0,tensor:start_1";
    for lse in ["", "--lse given", "--lse recompute"] {
        let got = bench.run_ok(&data(MINILM), &format!("{both} {lse}"));
        assert_eq!(got["relevance"].shape, [4, 2, 17]);
        let want: Vec<f64> = (expected["rollout.rows"].values().iter().enumerate())
            .map(|(at, value)| value * mask[at / 34 * 17 + at % 17])
            .collect();
        assert_close("minilm", &got["relevance"].values(), &want, TOLERANCE);
        for file in [CAUSAL, HALF] {
            let got = bench.run_ok(&data(file), &format!("{both} --causal {lse}"));
            let want = read(&data(file))["rollout.rows"].values();
            assert_close(file, &got["relevance"].values(), &want, TOLERANCE);
        }
    }
    let matrix = "--device cpu --causal --output-kind matrix --json";
    let run = bench.run(&data(CAUSAL), matrix).expect_status(0);
    assert!(run.stdout.contains("\"heads\":8"), "{}", run.stdout);
    let got = read(&bench.path("out.safetensors"));
    let want = read(&data(CAUSAL))["rollout.matrix"].values();
    assert_close("matrix", &got["rollout"].values(), &want, TOLERANCE);
}

#[test]
fn captured_queries_and_keys_give_the_relevance_of_eager_maps() {
    let bench = Bench::new();
    let expected = read(&data("qk_models.safetensors"));
    let got = bench.run_ok(&data("qk_models.safetensors"), "--device cpu");
    for model in ["bert", "vit"] {
        let name = format!("{model}/relevance");
        let want = expected[&name].values();
        // Else any row would be near to any other.
        let valid = || want.iter().copied().filter(|&value| value > 0.0);
        let (least, most) = (valid().fold(1.0, f64::min), valid().fold(0.0, f64::max));
        assert!(most > 4.0 * least, "{model}: {least} to {most}");
        assert_close(model, &got[&name].values(), &want, TOLERANCE);
    }
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let bench = Bench::new();
    let causal = "--device cpu --rows last --causal";
    for wrong in ["--scale 0.15", "--lse-base 2"] {
        let run = bench.run(&data(CAUSAL), &format!("{causal} {wrong}"));
        run.expect_failure(2, &["layer 0", "item 0", "head 0", "the scale, the base"]);
    }
    let run = bench.run(&data(CAUSAL), "--device cpu --rows last");
    run.expect_failure(2, &["layer 0", "the mask"]);
    assert!(bench.files().is_empty(), "{:?}", bench.files());
    let off = format!("{causal} --scale 0.15 --mass-tolerance off");
    bench.run(&data(CAUSAL), &off).expect_status(0);
    let run = bench.run(&data(CAUSAL), &format!("{causal} --mass-tolerance 0"));
    run.expect_failure(2, &["layer 3, item 0, row 0", "relevance sums to"]);
    // What the sum is nobody knows then.
    let run = bench.run(&data(CAUSAL), &format!("{causal} --head-fusion max"));
    assert!(run.expect_status(0).stderr.contains("is not known"));
    let run = bench.run(&data(CAUSAL), causal).expect_status(0);
    assert!(!run.stderr.contains("not known"), "{}", run.stderr);
}

#[test]
fn verify_plan_bench_and_pictures_know_queries_and_keys() {
    let bench = Bench::new();
    let input = data(CAUSAL);
    let verify = [
        "verify",
        input.to_str().unwrap(),
        "--causal",
        "--device",
        "cpu",
    ];
    let run = bench.command(verify).expect_status(0);
    assert!(run.stdout.contains("cumulative"), "{}", run.stdout);
    let plan = "plan --layers 2 --heads 4 --tokens 40 --queries-keys 32 --key-heads 2 --device cpu --sample 1 --json";
    let run = bench.command(plan.split(' ')).expect_status(0);
    let bytes = format!("\"map_bytes\":{}", 2 * 40 * 4 * (4 + 2) * 32);
    assert!(run.stdout.contains(&bytes), "{}", run.stdout);
    let timed =
        "bench --shape 2,1,4,60 --queries-keys 16 --key-heads 1 --device cpu --runs 2 --json";
    let run = bench.command(timed.split(' ')).expect_status(0);
    assert!(run.stdout.contains("\"checked\":true"), "{}", run.stdout);
    let picture = [
        "run",
        input.to_str().unwrap(),
        "--causal",
        "--rows",
        "last",
        "--device",
        "cpu",
    ];
    let picture = picture.iter().chain(&[
        "--heatmap",
        "out.png",
        "--grid",
        "8x8",
        "--special-tokens",
        "0",
    ]);
    bench.command(picture).expect_status(0);
    assert_eq!(bench.files(), ["out.png"]);
}

#[test]
fn masks_caps_slopes_and_sinks_come_from_options_and_tensors() {
    let bench = Bench::new();
    let file = read(&data(CAUSAL));
    let mut tensors: Vec<(&str, Tensor)> = Vec::new();
    for (name, tensor) in &file {
        if name.starts_with("query.") || name.starts_with("key.") {
            tensors.push((name, tensor.clone()));
        }
    }
    let windows = |values: [f32; 4]| Tensor::f32(&[4], values.to_vec());
    tensors.push(("same", windows([8.0; 4])));
    tensors.push(("last", windows([0.0, 0.0, 0.0, 8.0])));
    tensors.push(("bad", windows([0.5; 4])));
    let plain = bench.write("plain.safetensors", &tensors);
    let causal = "--device cpu --rows last --causal";
    let run = |input: &std::path::Path, options: &str| {
        bench.run_ok(input, &format!("{causal} {options}"))["relevance"].values()
    };
    let all = run(&plain, "");
    let near = run(&plain, "--sliding-window 8");
    assert_eq!(near, run(&plain, "--sliding-window tensor:same"));
    // Of one layer, what lies less than eight tokens back.
    let seen = run(&plain, "--sliding-window tensor:last --layers 3..");
    assert!(seen[..56].iter().all(|&v| v == 0.0) && seen[56..].iter().all(|&v| v > 0.0));
    assert_ne!(run(&plain, "--soft-cap 1"), all);
    let wrong = format!("{causal} --sliding-window tensor:bad");
    bench
        .run(&plain, &wrong)
        .expect_failure(2, &["tensor bad", "0.5"]);
    let wrong = format!("{causal} --sliding-window tensor:none");
    bench
        .run(&plain, &wrong)
        .expect_failure(2, &["tensor none", "--sliding-window"]);

    let slopes = [("alibi_slopes", Tensor::f32(&[8], vec![0.5; 8]))];
    let sloped = [&tensors[..], &slopes].concat();
    assert_ne!(run(&bench.write("sloped.safetensors", &sloped), ""), all);
    let sinks = |layers: std::ops::Range<usize>| -> Vec<(String, Tensor)> {
        layers
            .map(|l| (format!("sinks.{l}"), Tensor::f32(&[8], vec![1.0; 8])))
            .collect()
    };
    let all_sinks = sinks(0..4);
    let sunk = all_sinks
        .iter()
        .map(|(name, sinks)| (name.as_str(), sinks.clone()));
    let sunk: Vec<_> = tensors.iter().cloned().chain(sunk).collect();
    let got = run(&bench.write("sunk.safetensors", &sunk), "");
    assert!(got.iter().sum::<f64>() < 0.99, "some attention is lost");
    sunk[..sunk.len() - 1].to_vec().clone_into(&mut tensors);
    let missing = bench.write("missing.safetensors", &tensors);
    bench.run(&missing, causal).expect_failure(2, &["sinks.3"]);
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let bench = Bench::new();
    let scores = |shape: &[usize]| Tensor::f32(shape, vec![0.25; shape.iter().product()]);
    let queries = || scores(&[1, 4, 3, 8]);
    let refused = |tensors: &[(&str, Tensor)], options: &str, parts: &[&str]| {
        let input = bench.write("in.safetensors", tensors);
        bench
            .run(&input, &format!("--device cpu {options}"))
            .expect_failure(2, parts);
    };
    let query = ("query.0", queries());
    refused(std::slice::from_ref(&query), "", &["key.0", "query.0"]);
    refused(
        &[
            query.clone(),
            ("key.0", queries()),
            ("layer.0", Tensor::maps(1, 4, 3, 0)),
        ],
        "",
        &["query.<l>", "layer.<l>", "both"],
    );
    refused(
        &[query.clone(), ("key.0", scores(&[1, 3, 3, 8]))],
        "",
        &["key heads", "4", "3"],
    );
    refused(
        &[query.clone(), ("key.0", scores(&[1, 4, 3, 16]))],
        "",
        &["key.0", "[1, 4, 3, 8]"],
    );
    refused(
        &[query.clone(), ("key.0", scores(&[1, 4, 5, 8]))],
        "",
        &["key.0", "[1, 4, 5, 8]"],
    );
    let odd = scores(&[1, 4, 3, 12]);
    refused(
        &[("query.0", odd.clone()), ("key.0", odd)],
        "",
        &["head size", "multiple of 8", "12"],
    );
    let sound = [query.clone(), ("key.0", queries())];
    refused(&sound, "--lse given", &["lse.0", "--lse given"]);
    refused(&sound, "--scale nan", &["the scale", "finite"]);
    refused(&sound, "--mass-tolerance much", &["--mass-tolerance"]);
    refused(
        &sound,
        "--gradients heads",
        &["gradients", "queries and keys"],
    );
    let with = |lse: Tensor| [&sound[..], &[("lse.0", lse)]].concat();
    refused(&with(scores(&[1, 4, 4])), "", &["lse.0", "[1, 4, 3]"]);
    let half = Tensor::raw(Dtype::F16, &[1, 4, 3], vec![0; 24]);
    refused(&with(half), "", &["lse.0", "F32", "F16"]);
    refused(
        &[("layer.0", Tensor::maps(1, 4, 3, 0))],
        "--scale 1",
        &["--scale", "query.<l>"],
    );
    let mut values = vec![0.25; 96];
    values[24 + 8] = f32::NAN;
    let nan = [query, ("key.0", Tensor::f32(&[1, 4, 3, 8], values))];
    refused(&nan, "--validate", &["key.0", "head 1, row 1", "element 0"]);
}
