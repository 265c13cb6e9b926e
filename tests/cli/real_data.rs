//! The vendored real maps through the binary, against what other systems computed from them.

use crate::support::{Bench, Tensor, assert_close, data, read};

/// Valid tokens of the sentences in `minilm_batch4`.
const LENGTHS: [usize; 4] = [9, 14, 17, 28];
const TOKENS: usize = 28;

/// f32 against f64 over 6 layers of real maps; `tests/data/README.md` puts PyHealth's own f32 within 3.4e-7.
const TOLERANCE: f64 = 1e-6;

/// `expected` with everything outside the items' windows set to 0, as a masked run leaves it.
fn masked(expected: &Tensor) -> Vec<f64> {
    let mut values = expected.values();
    for (item, matrix) in values.chunks_exact_mut(TOKENS * TOKENS).enumerate() {
        for (index, value) in matrix.iter_mut().enumerate() {
            let (row, column) = (index / TOKENS, index % TOKENS);
            if row >= LENGTHS[item] || column >= LENGTHS[item] {
                *value = 0.0;
            }
        }
    }
    values
}

#[test]
fn minilm_matches_every_system() {
    let bench = Bench::new();
    let expected = read(&data("minilm_batch4_expected.safetensors"));
    for (name, options, tolerance) in [
        ("float64/mean/half", "", TOLERANCE),
        ("pyhealth/mean/half", "", TOLERANCE),
        ("float64/mean/normalized", "--normalize-rows", TOLERANCE),
        ("chefer/mean/normalized", "--normalize-rows", TOLERANCE),
        (
            "float64/max/normalized",
            "--normalize-rows --head-fusion max",
            TOLERANCE,
        ),
        // Rows of the smallest entries sum to little, and dividing by that sum enlarges what f32 rounded away.
        (
            "float64/min/normalized",
            "--normalize-rows --head-fusion min",
            5e-6,
        ),
        ("float64/mean/half/from_layer_2", "--layers 2..", TOLERANCE),
    ] {
        let options = format!("--output-kind matrix {options}");
        let got = bench.run_ok(&data("minilm_batch4.safetensors"), &options);
        assert_eq!(got.len(), 1, "{name}");
        let rollout = &got["rollout"];
        assert_eq!(rollout.shape, [4, TOKENS, TOKENS], "{name}");
        assert_close(name, &rollout.values(), &masked(&expected[name]), tolerance);

        let unmasked = format!("{options} --no-mask");
        let got = bench.run_ok(&data("minilm_batch4.safetensors"), &unmasked);
        let expected = expected[name].values();
        assert_close(name, &got["rollout"].values(), &expected, tolerance);
    }
}

#[test]
fn minilm_discard_matches_float64() {
    let bench = Bench::new();
    let expected = read(&data("minilm_batch4_expected.safetensors"));
    for fusion in ["mean", "max", "min"] {
        let options = format!(
            "--output-kind matrix --normalize-rows --discard-ratio 0.9 --head-fusion {fusion}"
        );
        let got = bench.run_ok(&data("minilm_batch4.safetensors"), &options);
        let item_3 = &got["rollout"].values()[3 * TOKENS * TOKENS..];
        let name = format!("float64/{fusion}/normalized/discard_map_0.9/item_3");
        assert_close(&name, item_3, &expected[&name].values(), 5e-6);
    }
}

#[test]
fn minilm_rows_are_rows_of_the_matrix() {
    let bench = Bench::new();
    let input = data("minilm_batch4.safetensors");
    let matrix = bench.run_ok(&input, "--output-kind matrix")["rollout"].values();
    let row = |item: usize, row: usize| &matrix[(item * TOKENS + row) * TOKENS..][..TOKENS];

    let check = |options: &str, expected: Vec<f64>, shape: &[usize]| {
        let got = bench.run_ok(&input, options);
        assert_eq!(got["relevance"].shape, shape, "{options}");
        assert_close(options, &got["relevance"].values(), &expected, TOLERANCE);
    };
    let items = 0..4;
    let first = items.clone().flat_map(|item| row(item, 0).to_vec());
    check("", first.clone().collect(), &[4, TOKENS]);
    check("--rows 0", first.collect(), &[4, TOKENS]);
    let last = items
        .clone()
        .flat_map(|item| row(item, LENGTHS[item] - 1).to_vec());
    check("--rows last", last.collect(), &[4, TOKENS]);
    let two = items
        .clone()
        .flat_map(|item| [row(item, 3), row(item, 7)].concat());
    check("--rows 3,7", two.collect(), &[4, 2, TOKENS]);
    let mean = items.flat_map(|item| {
        let len = LENGTHS[item];
        (0..TOKENS)
            .map(|column| (0..len).map(|r| row(item, r)[column]).sum::<f64>() / len as f64)
            .collect::<Vec<_>>()
    });
    check("--rows mean", mean.collect(), &[4, TOKENS]);
}

#[test]
fn minilm_cumulative_ends_in_the_rollout() {
    let bench = Bench::new();
    let input = data("minilm_batch4.safetensors");
    let cumulative = bench.run_ok(&input, "--output-kind cumulative --layers 2..");
    let mut names: Vec<&String> = cumulative.keys().collect();
    names.sort();
    assert_eq!(names, ["rollout.2", "rollout.3", "rollout.4", "rollout.5"]);
    let matrix = bench.run_ok(&input, "--output-kind matrix --layers 2..");
    assert_eq!(cumulative["rollout.5"].shape, [4, TOKENS, TOKENS]);
    assert_close(
        "rollout.5",
        &cumulative["rollout.5"].values(),
        &matrix["rollout"].values(),
        TOLERANCE,
    );
    let two = bench.run_ok(&input, "--output-kind matrix --layers 2..4");
    assert_close(
        "rollout.3",
        &cumulative["rollout.3"].values(),
        &two["rollout"].values(),
        TOLERANCE,
    );
}

#[test]
fn pyhealth_features_in_one_command() {
    let bench = Bench::new();
    let input = data("pyhealth_cases.safetensors");
    let expected = read(&input);
    let got = bench.run_ok(&input, "--expand --rows-for stageattn_nested=count:value");
    let names: Vec<&String> = expected
        .keys()
        .filter(|name| name.ends_with("/relevance") || name.ends_with("/attribution"))
        .collect();
    assert_eq!(names.len(), 12);
    assert_eq!(got.len(), names.len());
    for name in names {
        assert_eq!(got[name].shape, expected[name].shape, "{name}");
        let (got, expected) = (got[name].values(), expected[name].values());
        assert_close(name, &got, &expected, TOLERANCE);
    }

    let matrices = bench.run_ok(&input, "--output-kind matrix --feature transformer_nested");
    assert_eq!(matrices.len(), 1);
    let name = "transformer_nested/codes/rollout";
    let (got, expected) = (matrices[name].values(), expected[name].values());
    assert_close(name, &got, &expected, TOLERANCE);
}
