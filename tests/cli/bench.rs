//! `bench`: checked answers, times that a script can read, refusals.

use crate::support::{Bench, data};
use serde_json::{Value, json};

#[test]
fn times_of_a_file_are_json() {
    let input = data("pyhealth_cases.safetensors");
    let arguments = ["bench", input.to_str().unwrap(), "--json", "--runs", "3"];
    let run = Bench::new()
        .command(arguments.into_iter().chain(["--threads", "1"]))
        .expect_status(0);
    let times: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(times["checked"], true);
    assert_eq!(times["threads"], 1);
    for list in ["runs_us", "floor_us"] {
        assert_eq!(times[list].as_array().unwrap().len(), 3, "{list}");
    }
    assert!(
        times["shapes"].as_array().unwrap().len() > 1,
        "every feature"
    );
    assert!(times["floor_ratio"].as_f64().unwrap() > 0.0);
}

#[test]
fn random_maps_take_every_configuration() {
    for options in [
        "--dtype f16",
        "--dtype bf16 --output-kind matrix --normalize-rows",
        "--output-kind cumulative --discard-ratio 0.5",
        "--rows last --causal",
    ] {
        let fixed = "bench --shape 2,3,2,19 --runs 1 --json".split_whitespace();
        let run = Bench::new()
            .command(fixed.chain(options.split_whitespace()))
            .expect_status(0);
        let times: Value = serde_json::from_str(&run.stdout).unwrap();
        assert_eq!(times["shapes"], json!([[2, 3, 2, 19]]), "{options}");
    }
}

#[test]
fn shapes_and_inputs_that_cannot_be_are_refused() {
    let bench = Bench::new();
    for options in [
        "--shape 1,2,3",
        "--shape 0,1,1,1",
        "--shape 99999999,99999999,99999999,99999999",
        "--runs 0",
        "--rows tensor:rows",
        "missing.safetensors",
        "missing.safetensors --dtype f16",
    ] {
        bench
            .command(["bench"].into_iter().chain(options.split_whitespace()))
            .expect_status(2);
    }
}
