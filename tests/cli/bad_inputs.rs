//! Wrong files and arguments: the exit status, what the message names, and that nothing is written.

use safetensors::Dtype;

use crate::support::{Bench, Tensor, data};

/// A one-feature file with these tensors beside two good layers `[2, 2, 3, 3]`.
fn good_and(more: &[(&'static str, Tensor)]) -> Vec<(&'static str, Tensor)> {
    let mut tensors = vec![
        ("layer.0", Tensor::maps(2, 2, 3, 1)),
        ("layer.1", Tensor::maps(2, 2, 3, 2)),
    ];
    tensors.extend_from_slice(more);
    tensors
}

/// Runs over `tensors` and expects status 2 with a message that holds all of `parts`.
fn refuses(tensors: &[(&'static str, Tensor)], options: &str, parts: &[&str]) {
    let bench = Bench::new();
    let input = bench.write("in.safetensors", tensors);
    bench.run(&input, options).expect_failure(2, parts);
    assert_eq!(bench.files(), ["in.safetensors"], "{options}");
}

#[test]
fn layers() {
    let maps = |tokens| Tensor::maps(2, 2, tokens, 1);
    refuses(
        &[("other", maps(3)), ("layer.x", maps(3))],
        "",
        &["expected tensors named layer.<l>", "got none"],
    );
    refuses(
        &[("a/layer.0", maps(3)), ("a/layer.2", maps(3))],
        "",
        &["tensor a/layer.1", "expected by a/layer.2"],
    );
    refuses(
        &good_and(&[("layer.01", maps(3))]),
        "",
        &["tensor layer.01", "without leading zeros", "got 01"],
    );
    refuses(
        &good_and(&[("layer.99999999999999999999", maps(3))]),
        "",
        &["tensor layer.99999999999999999999"],
    );
    refuses(
        &good_and(&[("layer.2", maps(4))]),
        "",
        &["tensor layer.2", "[2, 2, 3, 3]", "got [2, 2, 4, 4]"],
    );
    let f64_maps = Tensor::raw(Dtype::F64, &[2, 2, 3, 3], vec![0; 36 * 8]);
    refuses(
        &[("layer.0", f64_maps)],
        "",
        &["tensor layer.0", "F32, F16 or BF16", "got F64"],
    );
    let f16_maps = Tensor::raw(Dtype::F16, &[2, 2, 3, 3], vec![0; 36 * 2]);
    refuses(
        &good_and(&[("layer.2", f16_maps)]),
        "",
        &["tensor layer.2", "expected f32 as in layer.0", "got f16"],
    );
    for shape in [&[2, 2, 3, 4][..], &[3, 3], &[1, 2, 2, 3, 3], &[]] {
        let len = shape.iter().product();
        let tensor = Tensor::f32(shape, vec![0.5; len]);
        let got = format!("got {shape:?}");
        refuses(
            &[("layer.0", tensor)],
            "",
            &["tensor layer.0", "[batch, tokens, tokens]", &got],
        );
    }
    for shape in [[2, 0, 3, 3], [2, 2, 0, 0]] {
        let tensor = Tensor::f32(&shape, []);
        refuses(&[("layer.0", tensor)], "", &["must be at least 1, got 0"]);
    }
    let huge = Tensor::f32(&[1 << 55, 0, 3, 3], []);
    refuses(&[("layer.0", huge)], "--rows count:value", &["input: "]);
}

#[test]
fn masks() {
    let mask = |values: [f32; 6]| [("attention_mask", Tensor::f32(&[2, 3], values))];
    let refuses_mask =
        |tensors: &[(&'static str, Tensor)], parts: &[&str]| refuses(&good_and(tensors), "", parts);
    refuses_mask(
        &mask([1.0, 1.0, 1.0, 1.0, 0.0, 1.0]),
        &["tensor attention_mask", "item 1", "not contiguous"],
    );
    refuses_mask(
        &mask([0.0, 0.0, -1e9, 0.0, 0.0, 0.0]),
        &["tensor attention_mask", "positive where valid", "got -1"],
    );
    refuses_mask(
        &mask([1.0, 1.0, f32::NAN, 1.0, 1.0, 1.0]),
        &["tensor attention_mask", "got NaN"],
    );
    refuses_mask(
        &[("attention_mask", Tensor::i64(&[3, 2], [1; 6]))],
        &["tensor attention_mask", "shape [2, 3]", "got [3, 2]"],
    );
    let f8_mask = Tensor::raw(Dtype::F8_E4M3, &[2, 3], vec![1; 6]);
    refuses_mask(
        &[("attention_mask", f8_mask)],
        &["tensor attention_mask", "element type", "got F8_E4M3"],
    );
    let one_token = good_and(&mask([1.0, 1.0, 1.0, 0.0, 1.0, 0.0]));
    refuses(
        &one_token,
        "--rows 1",
        &["item 1", "start row 1", "window of 1 tokens"],
    );
}

#[test]
fn tensors_that_options_need() {
    for (options, name) in [
        ("--rows tensor:first", "first"),
        ("--rows count:value", "value"),
        ("--head-fusion weights:w", "w"),
        ("--expand", "value"),
    ] {
        let needed_by = options.strip_suffix(" value").unwrap_or(options);
        let in_message = format!("expected by {needed_by}");
        refuses(
            &good_and(&[]),
            options,
            &[&format!("tensor {name}"), &in_message, "no such tensor"],
        );
    }
    let index = |values: [f32; 2]| good_and(&[("row", Tensor::f32(&[2], values))]);
    let rows = "--rows tensor:row";
    for shape in [&[2, 0][..], &[3], &[2, 1, 1], &[]] {
        let values = vec![0.0; shape.iter().product()];
        refuses(
            &good_and(&[("row", Tensor::f32(shape, values))]),
            rows,
            &[
                "tensor row",
                "shape [2] or [2, rows]",
                &format!("{shape:?}"),
            ],
        );
    }
    refuses(
        &index([0.0, 3.0]),
        rows,
        &["item 1", "row 3", "window of 3"],
    );
    refuses(
        &index([0.0, -1.0]),
        rows,
        &["tensor row", "not negative", "got -1"],
    );
    refuses(
        &index([0.5, 1.0]),
        rows,
        &["tensor row", "whole", "got 0.5"],
    );
    refuses(
        &index([0.0, f32::INFINITY]),
        rows,
        &["tensor row", "got inf"],
    );
    let short = [("row", Tensor::i64(&[1], [0]))];
    refuses(
        &good_and(&short),
        rows,
        &["tensor row", "shape [2]", "got [1]"],
    );
    let weights = [("w", Tensor::f32(&[3], [0.1, 0.2, 0.3]))];
    refuses(
        &good_and(&weights),
        "--head-fusion weights:w",
        &["tensor w", "shape [2]", "got [3]"],
    );
    let value = [("value", Tensor::i64(&[2, 4], [1; 8]))];
    for options in ["--expand", "--rows count:value"] {
        let parts = ["tensor value", "shape [2, 3, ...]", "got [2, 4]"];
        refuses(&good_and(&value), options, &parts);
    }
}

#[test]
fn arguments() {
    for (options, parts) in [
        ("--rows 3", &["item 0", "row 3", "window of 3"][..]),
        ("--rows=-1", &["--rows", "-1"]),
        ("--rows x", &["--rows", "expected row numbers"]),
        ("--rows tensor:", &["name of a tensor"]),
        ("--rows-for a", &["FEATURE=ROWS"]),
        ("--head-fusion median", &["expected mean, max, min"]),
        ("--layers 2", &["expected a range"]),
        ("--layers 2..", &["layer range 2..2", "2 layers"]),
        ("--layers ..3", &["layer range 0..3", "2 layers"]),
        (
            "--discard-ratio 1",
            &["--discard-ratio", "less than 1", "got 1"],
        ),
        ("--discard-ratio -0.1", &["--discard-ratio", "got -0.1"]),
        ("--discard-ratio NaN", &["--discard-ratio", "got NaN"]),
        (
            "--discard-ratio 0.5 --discard-scope patches --special-tokens 4",
            &["special tokens", "the 3 tokens", "got 4"],
        ),
        (
            "--attention-weight 1,2,3",
            &["--attention-weight", "2 layers", "got 3"],
        ),
        (
            "--identity-weight inf",
            &["identity weight", "finite", "got inf"],
        ),
        ("--threads 0", &["--threads"]),
        (
            "--threads 1000000",
            &["--threads", "at most", "got 1000000"],
        ),
        (
            "--device tpu",
            &["expected auto, cpu, cuda, cuda:N or cuda:all"],
        ),
        ("--feature nowhere", &["--feature", "nowhere"]),
        (
            "--expand --output-kind matrix",
            &["--expand", "rows", "got matrix"],
        ),
        ("--no-such-option", &["--no-such-option"]),
    ] {
        refuses(&good_and(&[]), options, parts);
    }
    let value = [("value", Tensor::i64(&[2, 3], [1; 6]))];
    let parts = ["--expand", "one start row", "got 2"];
    refuses(&good_and(&value), "--expand --rows 0,1", &parts);
}

#[test]
fn maps_that_are_no_attention() {
    let maps = |item: usize, row: usize, value: f32| {
        let mut tensor = Tensor::f32(&[2, 3, 3], vec![1.0 / 3.0; 18]);
        let first = 4 * (item * 9 + row * 3);
        tensor.bytes[first..first + 4].copy_from_slice(&value.to_le_bytes());
        tensor
    };
    for (value, part) in [
        (f32::NAN, "column 0 is NaN"),
        (f32::INFINITY, "column 0 is inf"),
        (-0.25, "column 0 is negative: -0.25"),
        (0.3334, "sums to 1.0000"),
    ] {
        let tensors = [
            ("f/layer.0", maps(0, 0, 1.0 / 3.0)),
            ("f/layer.1", maps(1, 2, value)),
        ];
        let place = "layer 1, item 1, head 0, row 2";
        refuses(
            &tensors,
            "--validate --rows last",
            &["tensor f/layer.1", place, part],
        );
        // Without the option they are the caller's business.
        let bench = Bench::new();
        let input = bench.write("in.safetensors", &tensors);
        bench.run(&input, "").expect_status(0);
    }
    let tensors = [("layer.0", maps(1, 0, 0.3334))];
    refuses(&tensors, "--validate=1e-6", &["sums to"]);
    refuses(&tensors, "--validate=-1", &["tolerance", "got -1"]);
    let bench = Bench::new();
    let input = bench.write("in.safetensors", &tensors);
    bench.run(&input, "--validate=1e-3").expect_status(0);
    let real = data("minilm_batch4.safetensors");
    bench.run(&real, "--validate").expect_status(0);
    let f16 = data("vit_s14_grace_hopper_fused.safetensors");
    bench.run(&f16, "--validate").expect_status(0);
}

#[test]
fn files() {
    let bench = Bench::new();
    bench
        .run(&bench.path("missing"), "")
        .expect_failure(2, &["missing", "No such file"]);
    bench
        .run(bench.directory.path(), "")
        .expect_failure(2, &["expected a regular file"]);
    bench
        .run(&data("grace_hopper_448.jpg"), "")
        .expect_failure(2, &["not a valid safetensors file", "expected a header"]);
    for (bytes, part) in [
        (&b""[..], "got 0"),
        (b"\x01\x02\x03", "got 3"),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff", "18446744073709551615"),
        (b"\x02\0\0\0\0\0\0\0{", "inside the 1 bytes"),
        (b"\x02\0\0\0\0\0\0\0{]", "invalid header"),
        (b"\x02\0\0\0\0\0\0\0{}", "got none"),
    ] {
        let input = bench.path("in");
        std::fs::write(&input, bytes).unwrap();
        bench.run(&input, "").expect_failure(2, &[part]);
    }
    assert_eq!(bench.files(), ["in"]);
}

/// A file with this header and `data` bytes of zeros.
fn with_header(header: &str, data: usize) -> Vec<u8> {
    let length = (header.len() as u64).to_le_bytes();
    [&length[..], header.as_bytes(), &vec![0; data]].concat()
}

#[test]
fn headers() {
    let layer = |name: &str, shape: &str, start: u64, end: u64| {
        format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[{start},{end}]}}"#)
    };
    let bench = Bench::new();
    let refuses = |header: String, data: usize, part: &str| {
        let input = bench.path("in");
        std::fs::write(&input, with_header(&header, data)).unwrap();
        bench.run(&input, "").expect_failure(2, &[part]);
    };
    let one = |shape: &str, start, end| format!("{{{}}}", layer("layer.0", shape, start, end));
    refuses(one("[1,1,1]", 0, 8), 4, "tensor layer.0: expected offsets");
    refuses(one("[1,1,1]", 4, 0), 4, "got 4..0");
    refuses(one("[1,1,1]", 0, 4), 8, "expected 4 bytes of data");
    refuses(one("[1,1,1]", 0, 4), 0, "got 0..4");
    let wrong_size = "tensor layer.0: expected 8 bytes for F32 [2, 1, 1], got 4";
    refuses(one("[2,1,1]", 0, 4), 4, wrong_size);
    let wrong_type = one("[1,1,1]", 0, 4).replace("F32", "F33");
    refuses(wrong_type, 4, "tensor layer.0: unknown variant `F33`");
    refuses(
        one("[4294967296,4294967296,4294967296]", 0, 4),
        4,
        "overflow",
    );
    refuses(one("[-1,1,1]", 0, 4), 4, "tensor layer.0: invalid value");
    // A zero extent hides the others from the size of the file.
    let end = u64::MAX - 7;
    refuses(
        one("[2305843009213693951,1,1]", 0, end),
        4,
        "expected offsets",
    );
    refuses(
        one("[36028797018963968,0,0]", 0, 0),
        0,
        "must be at least 1, got 0",
    );
    let two = |second| format!("{{{},{second}}}", layer("layer.0", "[1,1,1]", 0, 4));
    let follows = "follows the tensor before it, at 4, got";
    refuses(two(layer("layer.1", "[1,1,1]", 0, 4)), 4, follows);
    refuses(two(layer("layer.1", "[1,1,1]", 8, 12)), 12, follows);
    refuses(
        two(layer("layer.0", "[1,1,1]", 4, 8)),
        8,
        "layer.0 is listed twice",
    );
    let deep = format!("{{\"layer.0\":{}", "[".repeat(100_000));
    refuses(deep, 0, "invalid header");
    assert_eq!(bench.files(), ["in"]);
}

#[test]
fn devices_that_are_not_there() {
    let bench = Bench::new();
    bench
        .run(&data("minilm_batch4.safetensors"), "--device cuda:99")
        .expect_failure(1, &["cuda:99"]);
    assert_eq!(bench.files(), [""; 0]);
}
