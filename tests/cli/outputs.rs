//! Options, the summary, and when output files appear.

use crate::support::{Bench, Tensor, assert_close, data};
use safetensors::Dtype;

#[test]
fn summary_is_json() {
    let bench = Bench::new();
    let run = bench
        .run(&data("minilm_batch4.safetensors"), "--json --threads 1")
        .expect_status(0);
    let summary: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(summary["device"], "cpu");
    assert_eq!(summary["threads"], 1);
    assert!(summary["seconds"].as_f64().unwrap() > 0.0);
    let feature = &summary["features"][0];
    assert_eq!(feature["layers"], 6);
    assert_eq!(feature["tokens"], 28);
    assert_eq!(feature["dtype"], "f32");
    assert_eq!(feature["outputs"]["relevance"], serde_json::json!([4, 28]));
    assert!(feature["variant"].as_str().unwrap().starts_with("row form"));
}

#[test]
fn output_replaces_an_older_file_only_on_success() {
    let bench = Bench::new();
    std::fs::write(bench.path("out.safetensors"), "older").unwrap();
    let input = data("minilm_batch4.safetensors");
    bench.run(&input, "--rows 20").expect_status(2);
    let older = std::fs::read(bench.path("out.safetensors")).unwrap();
    assert_eq!(older, b"older");
    bench.run_ok(&input, "");
    assert_eq!(bench.files(), ["out.safetensors"]);
}

#[cfg(unix)]
#[test]
fn output_has_the_permissions_of_a_new_file() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::new();
    bench.run_ok(&data("minilm_batch4.safetensors"), "");
    std::fs::write(bench.path("plain"), "").unwrap();
    let mode = |name: &str| {
        std::fs::metadata(bench.path(name))
            .unwrap()
            .permissions()
            .mode()
    };
    assert_eq!(mode("out.safetensors"), mode("plain"));
}

#[test]
fn no_directory_no_output() {
    let bench = Bench::new();
    let input = data("minilm_batch4.safetensors");
    bench
        .run(&input, "--output missing/out.safetensors")
        .expect_status(2);
    let run = bench.command([
        "run",
        input.to_str().unwrap(),
        "-o",
        "missing/out.safetensors",
    ]);
    run.expect_failure(1, &["missing/out.safetensors", "cannot create"]);
    let run = bench.command(["run", input.to_str().unwrap(), "-o", "."]);
    run.expect_failure(1, &["expected the name of a regular file"]);
    assert_eq!(bench.files(), [""; 0]);
}

#[cfg(unix)]
#[test]
fn only_regular_files_are_replaced() {
    let bench = Bench::new();
    let input = data("minilm_batch4.safetensors");
    // A socket stands for everything that is neither a file nor a directory, such as /dev/null.
    let socket = std::os::unix::net::UnixListener::bind(bench.path("socket")).unwrap();
    for option in ["--output", "--heatmap"] {
        let run = [
            "run",
            input.to_str().unwrap(),
            "--grid",
            "1x8",
            "--heatmap",
            "heat.png",
        ];
        let run = match option {
            "--output" => bench.command(run.into_iter().chain(["--output", "socket"])),
            _ => bench.command(run[..4].iter().chain(&["--heatmap", "socket"])),
        };
        run.expect_failure(1, &["socket", "regular file"]);
    }
    drop(socket);
    assert_eq!(bench.files(), ["socket"]);

    // A link keeps pointing at the file, which is replaced.
    std::fs::write(bench.path("target"), "older").unwrap();
    std::os::unix::fs::symlink("target", bench.path("out.safetensors")).unwrap();
    let got = bench.run_ok(&input, "");
    assert!(bench.path("out.safetensors").is_symlink());
    assert_eq!(crate::support::read(&bench.path("target")), got);
}

#[test]
fn input_is_never_overwritten() {
    let bench = Bench::new();
    let input = bench.write("in.safetensors", &[("layer.0", Tensor::maps(1, 1, 3, 0))]);
    let before = std::fs::read(&input).unwrap();
    let run = bench.command(["run", "in.safetensors", "-o", "./in.safetensors"]);
    run.expect_failure(2, &["--output", "a file of its own"]);
    assert_eq!(std::fs::read(&input).unwrap(), before);
}

#[test]
fn weights_per_head_and_per_layer() {
    let bench = Bench::new();
    let (first, second) = (Tensor::maps(2, 2, 3, 1), Tensor::maps(2, 2, 3, 2));
    let input = bench.write(
        "in.safetensors",
        &[
            ("layer.0", first.clone()),
            ("layer.1", second.clone()),
            ("weights", Tensor::f32(&[2], [0.25, 0.5])),
        ],
    );
    let options = "--output-kind matrix --head-fusion weights:weights \
                   --attention-weight 0.75,1 --identity-weight=-0.5,0.25";
    let got = bench.run_ok(&input, options)["rollout"].values();

    let layer = |maps: &Tensor, item: usize, i: usize, j: usize, a: f64, b: f64| {
        let at = |head: usize| maps.values()[((item * 2 + head) * 3 + i) * 3 + j];
        a * (0.25 * at(0) + 0.5 * at(1)) + if i == j { b } else { 0.0 }
    };
    let mut expected = Vec::new();
    for (item, i, j) in (0..18).map(|index| (index / 9, index / 3 % 3, index % 3)) {
        let terms = (0..3)
            .map(|k| layer(&second, item, i, k, 1.0, 0.25) * layer(&first, item, k, j, 0.75, -0.5));
        expected.push(terms.sum());
    }
    assert_close("two layers by hand", &got, &expected, 1e-6);
}

#[test]
fn row_indices_per_item() {
    let bench = Bench::new();
    let maps = Tensor::maps(3, 1, 4, 5);
    let input = bench.write(
        "in.safetensors",
        &[
            ("layer.0", maps.clone()),
            ("row", Tensor::i64(&[3], [2, 0, 3])),
        ],
    );
    let got = bench.run_ok(
        &input,
        "--rows tensor:row --attention-weight 1 --identity-weight 0",
    );
    let values = maps.values();
    let rows = [2, 0, 3].into_iter().enumerate();
    let expected: Vec<f64> = rows
        .flat_map(|(item, row)| values[(item * 4 + row) * 4..][..4].to_vec())
        .collect();
    assert_close("rows", &got["relevance"].values(), &expected, 1e-7);
}

#[test]
fn several_row_indices_per_item() {
    let bench = Bench::new();
    let maps = Tensor::maps(2, 1, 4, 5);
    let input = bench.write(
        "in.safetensors",
        &[
            ("layer.0", maps.clone()),
            ("row", Tensor::i64(&[2, 3], [2, 0, 3, 1, 1, 0])),
        ],
    );
    let alone = "--attention-weight 1 --identity-weight 0";
    let got = bench.run_ok(&input, &format!("--rows tensor:row {alone}"));
    let values = maps.values();
    let rows = [[2, 0, 3], [1, 1, 0]].into_iter().enumerate();
    let expected: Vec<f64> = rows
        .flat_map(|(item, rows)| rows.map(|row| values[(item * 4 + row) * 4..][..4].to_vec()))
        .flatten()
        .collect();
    assert_eq!(got["relevance"].shape, [2, 3, 4]);
    assert_close("rows", &got["relevance"].values(), &expected, 1e-7);
}

#[test]
fn an_item_without_valid_tokens_has_an_output_of_zeros() {
    let bench = Bench::new();
    let input = bench.write(
        "in.safetensors",
        &[
            ("layer.0", Tensor::maps(2, 1, 3, 5)),
            ("attention_mask", Tensor::i64(&[2, 3], [1, 1, 1, 0, 0, 0])),
        ],
    );
    for rows in ["0", "last", "mean"] {
        let got = bench.run_ok(&input, &format!("--rows {rows}"));
        let values = got["relevance"].values();
        assert!(values[..3].iter().all(|&value| value > 0.0));
        assert_eq!(values[3..], [0.0; 3]);
    }
}

#[test]
fn mask_of_any_type_and_padding_side() {
    let bench = Bench::new();
    let maps = Tensor::maps(2, 1, 4, 5);
    let bits: [u8; 8] = [0, 0, 1, 1, 1, 1, 1, 0];
    let bool_mask = Tensor::raw(Dtype::BOOL, &[2, 4], bits.to_vec());
    let f32_mask = Tensor::f32(&[2, 4], bits.map(f32::from));
    let i64_mask = Tensor::i64(&[2, 4], bits.map(i64::from));
    let f16_bytes = bits.iter().flat_map(|&b| [0, 0x3c * b]).collect();
    let f16_mask = Tensor::raw(Dtype::F16, &[2, 4], f16_bytes);
    let mut results = Vec::new();
    for mask in [bool_mask, f32_mask, i64_mask, f16_mask] {
        let tensors = [("layer.0", maps.clone()), ("attention_mask", mask)];
        let input = bench.write("in.safetensors", &tensors);
        results.push(bench.run_ok(&input, "--rows last")["relevance"].values());
    }
    assert!(results.iter().all(|result| *result == results[0]));
    let zero: Vec<bool> = results[0].iter().map(|&v| v == 0.0).collect();
    assert_eq!(zero, bits.map(|b| b == 0));
}

#[test]
fn misaligned_maps_give_the_same_result() {
    let bench = Bench::new();
    let tensors = [
        ("layer.0", Tensor::maps(2, 2, 5, 3)),
        ("layer.1", Tensor::maps(2, 2, 5, 4)),
    ];
    let aligned = bench.write("aligned.safetensors", &tensors);
    // One space more in the header moves all data by one byte.
    let bytes = std::fs::read(&aligned).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let header = &bytes[8..8 + length as usize];
    let moved = [
        &(length + 1).to_le_bytes()[..],
        header,
        b" ",
        &bytes[8 + header.len()..],
    ];
    let misaligned = bench.path("misaligned.safetensors");
    std::fs::write(&misaligned, moved.concat()).unwrap();
    let options = "--output-kind matrix";
    assert_eq!(
        bench.run_ok(&aligned, options),
        bench.run_ok(&misaligned, options)
    );
}

#[test]
fn empty_batch_gives_an_empty_result() {
    let bench = Bench::new();
    let input = bench.write("in.safetensors", &[("layer.0", Tensor::maps(0, 2, 5, 3))]);
    assert_eq!(bench.run_ok(&input, "")["relevance"].shape, [0, 5]);
    let cumulative = bench.run_ok(&input, "--output-kind cumulative");
    assert_eq!(cumulative["rollout.0"].shape, [0, 5, 5]);
}

#[test]
fn verify_compares_every_output_with_the_reference() {
    let bench = Bench::new();
    let input = data("minilm_batch4.safetensors");
    let verify = [
        "verify",
        input.to_str().unwrap(),
        "--threads",
        "2",
        "--json",
    ];
    let options = ["--normalize-rows", "--discard-ratio", "0.9", "--items", "3"];
    let run = bench
        .command(verify.into_iter().chain(options))
        .expect_status(0);
    let report: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap();
    for output in ["rows", "matrix", "cumulative"] {
        for backend in ["cpu, 1 thread: ", "cpu, 2 threads: product form, portable"] {
            let is_here = |check: &serde_json::Value| {
                check["output"] == output && check["backend"].as_str().unwrap().starts_with(backend)
            };
            assert!(checks.iter().any(is_here), "{output}, {backend}");
        }
    }
    for check in checks {
        assert_eq!(check["ok"], true, "{check}");
        // A budget that any result meets shows nothing: entries are below 1.
        assert!(check["budget"].as_f64().unwrap() < 1e-4, "{check}");
    }
    let cases = data("pyhealth_cases.safetensors");
    let run = bench
        .command(["verify", cases.to_str().unwrap(), "--threads", "2"])
        .expect_status(0);
    let checks = run.stdout.lines().skip(1);
    assert!(checks.clone().all(|line| line.ends_with("  ok")));
    let stage = checks.filter(|line| line.starts_with("stageattn_nested/procedures"));
    assert!(stage.count() >= 6);
    bench
        .command(["verify", "missing.safetensors"])
        .expect_failure(2, &["missing.safetensors"]);
}

#[test]
fn devices_lists_the_cpu() {
    let bench = Bench::new();
    let run = bench.command(["devices", "--json"]).expect_status(0);
    let devices: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert!(devices["cpu"]["threads"].as_u64().unwrap() >= 1);
    let run = bench.command(["devices"]).expect_status(0);
    assert!(run.stdout.starts_with("cpu: "));
}

#[test]
fn plan_shows_what_would_run() {
    let bench = Bench::new();
    let sizes = "--layers 12 --batch 8 --heads 12 --tokens 197";
    let plan = |options: &str| {
        let arguments = format!("plan --json --sample 1 {sizes} {options}");
        let stdout = bench
            .command(arguments.split_whitespace())
            .expect_status(0)
            .stdout;
        serde_json::from_str::<serde_json::Value>(&stdout).unwrap()
    };
    let rows = plan("");
    assert!(rows["variant"].as_str().unwrap().starts_with("row form"));
    // Eleven whole maps and one row of the last, for each item and head.
    assert_eq!(rows["map_bytes"], 8 * 12 * (11 * 197 * 197 + 197) * 4);
    assert_eq!(rows["output_bytes"], 8 * 197 * 4);
    assert!(rows["floor_seconds"].as_f64().unwrap() > 0.0);
    let matrix = plan("--output-kind matrix --dtype f16");
    assert!(
        matrix["variant"]
            .as_str()
            .unwrap()
            .starts_with("product form")
    );
    assert_eq!(matrix["map_bytes"], 8 * 12 * 12 * 197 * 197 * 2);
    assert!(matrix["workspace_bytes"].as_u64().unwrap() > 0);

    for (options, parts) in [
        (
            "--layers 2 --heads 0 --tokens 5",
            &["heads must be at least 1"][..],
        ),
        (
            "--layers 2 --heads 2 --tokens 5 --rows 5",
            &["row 5", "window of 5"],
        ),
        (
            "--layers 2 --heads 2 --tokens 5 --rows tensor:x",
            &["tensor x"],
        ),
        ("--layers 2 --heads 2 --tokens 99999999999", &["overflow"]),
        (
            "--layers 2 --heads 2 --tokens 5 --dtype f64",
            &["f32, f16 or bf16"],
        ),
        ("--heads 2 --tokens 5", &["--layers"]),
    ] {
        let arguments = ["plan"].into_iter().chain(options.split_whitespace());
        bench.command(arguments).expect_failure(2, parts);
    }
}

#[test]
fn help_and_usage() {
    let bench = Bench::new();
    bench.command(["--version"]).expect_status(0);
    for command in ["run", "verify", "bench", "plan", "devices"] {
        let help = bench.command([command, "--help"]).expect_status(0);
        assert!(help.stdout.contains("--json"));
    }
    let nothing: [&str; 0] = [];
    bench.command(nothing).expect_status(2);
    bench.command(["rum"]).expect_status(2);
}
