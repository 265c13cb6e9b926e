//! What is said, and how: nothing is dropped in silence, and nothing from a file reaches a terminal as it is.

use std::fs::File;
use std::process::{Command, Stdio};

use crate::support::{Bench, Tensor, data};

#[cfg(target_os = "linux")]
#[test]
fn results_that_cannot_be_printed_are_status_1() {
    let bench = Bench::new();
    let maps = data("minilm_batch4.safetensors");
    let maps = maps.to_str().unwrap();
    let plan = "--layers 2 --heads 2 --tokens 5 --sample 1";
    for arguments in [
        "devices".to_owned(),
        "devices --json".to_owned(),
        format!("plan {plan} --device cpu"),
        format!("plan {plan} --device cpu --json"),
        format!("verify {maps} --items 1 --device cpu --threads 1"),
        format!("verify {maps} --items 1 --device cpu --threads 1 --json"),
        "bench --shape 1,1,1,4 --runs 1 --device cpu".to_owned(),
        "bench --shape 1,1,1,4 --runs 1 --device cpu --json".to_owned(),
        format!("run {maps} --output out --device cpu"),
        format!("run {maps} --output out --device cpu --json"),
    ] {
        let output = |stdout: Stdio| {
            Command::new(env!("CARGO_BIN_EXE_attention-rollout"))
                .args(arguments.split_whitespace())
                .current_dir(bench.directory.path())
                .stdout(stdout)
                .output()
                .unwrap()
        };
        let full = output(File::create("/dev/full").unwrap().into());
        let stderr = String::from_utf8(full.stderr).unwrap();
        assert_eq!(full.status.code(), Some(1), "{arguments}: {stderr}");
        assert!(stderr.contains("standard output: cannot write"), "{stderr}");
        // Whoever stops reading has seen enough.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        assert_eq!(output(writer.into()).status.code(), Some(0), "{arguments}");
    }
}

#[test]
fn nothing_of_a_file_reaches_a_terminal_as_it_is() {
    let bench = Bench::new();
    let evil = "a\nerror: fake\n\x1b]0;title\x07\u{202e}b";
    let long = "n".repeat(3 << 20);
    for name in [evil, &long] {
        for tensors in [
            // No such layer 0.
            vec![(format!("{name}/layer.1"), Tensor::maps(1, 1, 2, 0))],
            // No map.
            vec![(format!("{name}/layer.0"), Tensor::f32(&[2], [1.0, 1.0]))],
            // No mask.
            vec![
                (format!("{name}/layer.0"), Tensor::maps(1, 1, 2, 0)),
                (format!("{name}/attention_mask"), Tensor::i64(&[1], [1])),
            ],
            // No token that is attended to in one run.
            vec![
                (format!("{name}/layer.0"), Tensor::maps(1, 1, 3, 0)),
                (
                    format!("{name}/attention_mask"),
                    Tensor::i64(&[1, 3], [1, 0, 1]),
                ),
            ],
        ] {
            let tensors: Vec<_> = tensors.iter().map(|(n, t)| (&n[..], t.clone())).collect();
            let input = bench.write("in.st", &tensors);
            for options in ["", "--feature nowhere", "--rows-for nowhere=last"] {
                assert_is_clean(bench.run(&input, options).expect_status(2).stderr);
            }
        }
    }
    // A header that is wrong is quoted too.
    let header = format!(r#"{{"{}":{{"dtype":"{long}"}}}}"#, evil.escape_default());
    let header = header.replace("\\u{", "\\u00").replace("}b", "b");
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    let input = bench.path("in.st");
    std::fs::write(&input, bytes).unwrap();
    assert_is_clean(bench.run(&input, "").expect_status(2).stderr);
    // And so are paths, in the summary as well.
    let input = bench.write("in.st", &[("layer.0", Tensor::maps(1, 1, 2, 0))]);
    let input = input.to_str().unwrap();
    let written = bench.command(["run", input, "--output", "out\x1b[2J", "--device", "cpu"]);
    assert!(
        written
            .expect_status(0)
            .stdout
            .ends_with("wrote out\\u{1b}[2J\n")
    );
    let refused = bench.command(["run", "no\nsuch\x1bfile", "--output", "out"]);
    assert_is_clean(refused.expect_status(2).stderr);
}

/// One line, of bounded length, that begins as errors do and holds no control characters.
#[track_caller]
fn assert_is_clean(message: String) {
    let line = message.strip_suffix('\n').unwrap();
    assert!(line.starts_with("error: "), "{line:?}");
    let is_strange = |c: char| c.is_control() || c == '\u{202e}';
    assert!(!line.contains(is_strange), "{line:?}");
    assert!(line.len() < 4000, "{} bytes", line.len());
}

#[test]
fn options_that_nothing_heeds_are_refused() {
    let bench = Bench::new();
    let tensors = [
        ("a/layer.0", Tensor::maps(1, 1, 4, 0)),
        ("b/layer.0", Tensor::maps(1, 1, 4, 1)),
    ];
    let input = bench.write("in.st", &tensors);
    for (options, parts) in [
        (
            "--rows-for typo=last",
            &["--rows-for", "\"a/\", \"b/\"", "got typo"][..],
        ),
        ("--rows-for a=last --rows-for b/c=0", &["got b/c"]),
        ("--discard-scope patches", &["--discard-ratio"]),
        (
            "--special-tokens 2",
            &["--special-tokens", "--discard-scope patches"],
        ),
        (
            "--rows last --output-kind matrix",
            &["--rows:", "got matrix"],
        ),
        (
            "--rows-for a=last --output-kind cumulative",
            &["--rows-for:", "got cumulative"],
        ),
    ] {
        bench.run(&input, options).expect_failure(2, parts);
    }
    for options in [
        "--rows-for a=last --feature b",
        "--discard-scope patches --discard-ratio 0.5 --special-tokens 2",
    ] {
        bench.run(&input, options).expect_status(0);
    }
    let drawn = "--feature a --heatmap map.png --special-tokens 0 --rows last";
    bench.run(&input, drawn).expect_status(0);
    let plan = "plan --layers 1 --heads 1 --tokens 4 --device cpu --sample 1";
    for options in ["--rows-for a=last", "--special-tokens 2"] {
        let arguments = format!("{plan} {options}");
        let option = options.split_once(' ').unwrap().0;
        bench
            .command(arguments.split_whitespace())
            .expect_failure(2, &[option]);
    }
}

#[test]
fn one_list_of_tokens_is_that_of_item_0() {
    let bench = Bench::new();
    let input = bench.write("in.st", &[("layer.0", Tensor::maps(2, 1, 3, 0))]);
    std::fs::write(bench.path("flat.json"), r#"["a", "b", "c"]"#).unwrap();
    let options = "--heatmap map.png --tokens flat.json";
    bench.run(&input, options).expect_status(0);
    bench
        .run(&input, &format!("{options} --item 1"))
        .expect_failure(2, &["flat.json", "tokens of item 1", "got 1 items"]);
}

#[test]
fn large_layer_numbers_and_like_names_are_told_apart() {
    let bench = Bench::new();
    let maps = Tensor::maps(1, 1, 2, 0);
    let input = bench.write("in.st", &[("layer.18446744073709551616", maps.clone())]);
    let parts = ["layer number of at most 18446744073709551615"];
    bench.run(&input, "").expect_failure(2, &parts);
    let names = [
        "layer.0",
        "/layer.0",
        "./layer.0",
        "a/layer.0",
        "a//layer.0",
    ];
    let tensors = names.map(|name| (name, maps.clone()));
    let input = bench.write("in.st", &tensors);
    let run = bench.run(&input, "--json").expect_status(0);
    let summary: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    let mut features: Vec<&str> = summary["features"]
        .as_array()
        .unwrap()
        .iter()
        .map(|feature| feature["feature"].as_str().unwrap())
        .collect();
    features.sort_unstable();
    assert_eq!(features, ["", ".", "/", "a", "a//"]);
}

#[test]
fn verify_says_that_maps_are_not_finite() {
    let bench = Bench::new();
    for value in [f32::NAN, f32::INFINITY] {
        let mut values = vec![0.5; 8];
        values[5] = value;
        let maps = Tensor::f32(&[2, 1, 2, 2], values);
        let input = bench.write("in.st", &[("f/layer.0", maps)]);
        let verify = ["verify", input.to_str().unwrap(), "--device", "cpu"];
        let place = "layer 0, item 1, head 0, row 0: column 1";
        bench
            .command(verify)
            .expect_failure(2, &["tensor f/layer.0", "finite entries", place]);
        // Items that are not looked at do not matter.
        let first = verify.into_iter().chain(["--items", "1"]);
        bench.command(first).expect_status(0);
    }
}
