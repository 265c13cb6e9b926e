//! The CPU backend against the f64 reference, over everything that can be asked of it.
#![cfg(feature = "cpu")]

mod common;

use std::num::NonZeroUsize;

use attention_rollout::cpu::{Choice, Form, Options, Plan};
use attention_rollout::{HostLayer, Problem, reference};
use common::compare::{Budget, check_close};
use common::generate::case;
use proptest::prelude::*;

fn threads(count: usize) -> Options {
    Options {
        threads: NonZeroUsize::new(count),
    }
}

fn run(problem: &Problem, layers: &[HostLayer<'_>], count: usize, choice: Choice) -> Vec<f32> {
    let mut plan = Plan::with_choice(problem, &threads(count), choice).unwrap();
    let mut out = vec![f32::NAN; problem.output_len()];
    plan.run(layers, &mut out).unwrap();
    out
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 400,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn agrees_with_the_reference(case in case(40), count in 1..=3usize, share_rest: bool) {
        let generated = case.generate();
        let (problem, layers) = (&generated.problem, generated.layers());
        let want = reference::rollout(problem, &layers).unwrap();
        let budget = Budget::new(problem, &layers);
        for form in [Form::Rows, Form::Product] {
            let choice = Choice { form, share_rest, ..Choice::of(problem) };
            let got = run(problem, &layers, count, choice);
            let what = format!("{choice:?}, {count} threads");
            check_close(&what, &problem.output_shape(), &got, &want, |i| budget.tolerance(i))
                .map_err(TestCaseError::fail)?;
        }
    }
}
