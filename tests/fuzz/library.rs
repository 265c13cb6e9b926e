//! Bytes as problems: every way to compute them on the CPU gives what the reference gives, and writes everything.

use std::num::NonZeroUsize;

use attention_rollout::cpu::{
    Choice, Form, GroupItem, GroupPlan, Options, Plan, Simd, StreamingPlan,
};
use attention_rollout::reference;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::common::compare::{Budget, check_close};
use crate::common::generate::{Case, Generated, case};

/// Computes two problems that `bytes` describe.
pub fn check(bytes: &[u8]) {
    // Too few bytes to describe anything.
    if bytes.len() < 256 {
        return;
    }
    let rng = TestRng::from_seed(RngAlgorithm::PassThrough, bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let mut any = || case(20).new_tree(&mut runner).map(|tree| tree.current());
    let (Ok(one), Ok(other)) = (any(), any()) else {
        return;
    };
    let count = 1 + usize::from(bytes[0] % 3);
    let generated = [one, other].map(|case: Case| case.generate());
    for generated in &generated {
        alone(generated, count, bytes[1]);
    }
    group(&generated, count);
}

fn options(count: usize) -> Options {
    Options {
        threads: NonZeroUsize::new(count),
    }
}

fn compare(what: &str, generated: &Generated, got: &[f32]) {
    let (problem, layers) = (&generated.problem, generated.layers());
    let want = reference::rollout(problem, &layers).expect("the case is valid");
    let budget = Budget::new(problem, &layers);
    let shape = problem.output_shape();
    let close = check_close(what, &shape, got, &want, |i| budget.tolerance(i));
    close.unwrap_or_else(|message| panic!("{message}"));
}

/// Plans, chunks and streams, with the instruction set and form that `pick` picks.
fn alone(generated: &Generated, count: usize, pick: u8) {
    let (problem, layers) = (&generated.problem, generated.layers());
    let simd: Vec<Simd> = Simd::available().collect();
    let choice = Choice {
        simd: simd[usize::from(pick >> 2) % simd.len()],
        form: [Form::Rows, Form::Product][usize::from(pick & 1)],
        share_rest: pick & 2 != 0,
    };
    let options = options(count);
    let poisoned = || vec![f32::NAN; problem.output_len()];
    let mut plan = Plan::with_choice(problem, &options, choice).expect("the case is valid");
    let mut out = poisoned();
    plan.run(&layers, &mut out).expect("the layers fit");
    compare("plan", generated, &out);
    out.fill(f32::NAN);
    let chunk = NonZeroUsize::MIN;
    plan.run_chunked(&layers, &mut out, chunk, &mut |_| {})
        .expect("the layers fit");
    compare("chunks", generated, &out);
    let mut stream =
        StreamingPlan::with_choice(problem, &options, choice).expect("the case is valid");
    for layer in problem.layers() {
        stream.push_layer(layers[layer]).expect("the layer fits");
    }
    let mut out = poisoned();
    stream.finish(&mut out).expect("every layer was pushed");
    compare("stream", generated, &out);
}

/// Both problems at once.
fn group(generated: &[Generated; 2], count: usize) {
    let problems: Vec<_> = generated.iter().map(|g| g.problem.clone()).collect();
    let layers: Vec<_> = generated.iter().map(Generated::layers).collect();
    let mut group = GroupPlan::new(&problems, &options(count)).expect("the cases are valid");
    let poisoned = problems.iter().map(|p| vec![f32::NAN; p.output_len()]);
    let mut outs: Vec<_> = poisoned.collect();
    let items = layers.iter().zip(&mut outs);
    let mut items: Vec<_> = items
        .map(|(layers, out)| GroupItem::new(layers, out))
        .collect();
    group.run(&mut items).expect("the layers fit");
    for (generated, out) in generated.iter().zip(&outs) {
        compare("group", generated, out);
    }
}
