//! The shapes that matter cost no more than `budgets.csv` says. What they cost is predicted, not measured.
//!
//! `cargo run --release -p ptxtime -- budgets > tests/ptxtime/budgets.csv` writes the file anew. A ratio in it may only
//! fall.

use std::collections::BTreeMap;
use std::io::Write;

use attention_rollout::cuda::nvrtc::Cache;
use ptxtime::{Taker, budget};

/// By how much a ratio may exceed its budget: predictions move a little with what the compiler makes.
const TOLERANCE: f64 = 1.1;
/// How many times faster another kernel must be predicted to be for the choice to be wrong.
const BETTER: f64 = 1.3;

#[test]
fn no_shape_costs_more_than_its_budget() {
    let Some(nvrtc) = ptxtime::compiler() else {
        return;
    };
    let committed = include_str!("../budgets.csv");
    let budgets: BTreeMap<&str, f64> = committed
        .lines()
        .filter(|line| !line.starts_with('#') && *line != budget::HEAD)
        .map(|line| {
            let at = line
                .match_indices(',')
                .nth(2)
                .expect("three columns and more")
                .0;
            let ratio = line.split(',').nth(5).and_then(|ratio| ratio.parse().ok());
            (&line[..at], ratio.expect("a ratio"))
        })
        .collect();
    let cache = Cache::at(concat!(env!("CARGO_TARGET_TMPDIR"), "/kernels"));
    let found =
        budget::budgets(&Taker::new(nvrtc, cache)).unwrap_or_else(|error| panic!("{error}"));
    let mut report = format!("{}\n", budget::HEAD);
    let mut failures = Vec::new();
    for shape in &found {
        report += &format!("{}\n", shape.line());
        let name = shape.shape.as_str();
        match budgets.get(name) {
            None => failures.push(format!("{name} has no budget")),
            Some(&allowed) if shape.ratio() > TOLERANCE * allowed => failures.push(format!(
                "{name} is predicted {:.2} times the floor, its budget is {allowed}",
                shape.ratio()
            )),
            Some(_) => {}
        }
        if let Some((other, us)) = &shape.best_other
            && shape.other_is_faster() >= BETTER
        {
            failures.push(format!(
                "{name} is predicted {:.1} us, and {us:.1} us with {other}",
                shape.predicted_us
            ));
        }
        for (launch, share) in shape.unfilled() {
            if share > 0.05 {
                report += &format!(
                    "  {} fills {:.0} % of the device for {:.0} % of the time\n",
                    launch.kernel,
                    100.0 * launch.filled,
                    100.0 * share
                );
            }
        }
    }
    assert_eq!(found.len(), budgets.len(), "shapes and budgets");
    // Past the harness, which keeps the output of tests that pass.
    let _ = std::io::stderr().write_all(report.as_bytes());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
