//! Every mode against the f64 reference.

use attention_rollout::{DType, Shape, Window, reference};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

use crate::compare::{Budget, check_close};
use crate::generate::{self, Case};
use crate::machine::{Machine, machine};

/// Devices, and how many random cases of up to how many tokens run on each. The first has every arithmetic; the others
/// are the oldest, which has none of the tensor-core products, and the newest.
const CASES: [(&str, usize, usize); 4] = [
    ("sm_90", 20, 36),
    ("sm_90", 150, 6),
    ("sm_75", 40, 10),
    ("sm_120", 40, 6),
];

/// The error of a plan on a case, as a message.
fn compare(machine: &Machine, case: &Case) -> Result<(), String> {
    let generated = case.generate();
    let layers = generated.layers();
    let mut plan = machine.plan(&generated.problem, |_| {});
    let want = reference::rollout(&generated.problem, &layers).unwrap();
    let got = machine.run(&mut plan, &layers);
    let budget = Budget::new(&generated.problem, &layers);
    check_close(
        "rollout",
        &generated.problem.output_shape(),
        &got,
        &want,
        |index| budget.tolerance(index),
    )
    .map_err(|error| format!("{case:?}\n{plan}\n{error}"))
}

#[test]
fn rows_agree_with_the_reference() {
    // Rows are divided among all multiprocessors: with few of them their blocks fit a small machine's memory.
    let Some(machine) = machine("sm_90/16") else {
        return;
    };
    for dtype in DType::ALL {
        for tokens in [1, 13, 64, 197] {
            let shape = Shape {
                layers: 2,
                batch: 2,
                heads: 3,
                tokens,
            };
            let mut case = Case::new(shape, 7);
            case.windows = vec![Window::full(tokens); 2];
            case.dtype = dtype;
            compare(&machine, &case).unwrap_or_else(|error| panic!("{error}"));
        }
    }
}

#[test]
fn random_problems_agree_with_the_reference() {
    let mut runner = TestRunner::deterministic();
    let mut failures = Vec::new();
    for (model, tokens, count) in CASES {
        let Some(machine) = machine(model) else {
            return;
        };
        let strategy = generate::case(tokens);
        for _ in 0..count {
            let case = strategy.new_tree(&mut runner).unwrap().current();
            failures.extend(compare(&machine, &case).err());
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}
