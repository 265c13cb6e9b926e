//! Bytes as problems: every way to compute them on the CPU gives what the reference gives, and writes everything.

use std::num::NonZeroUsize;

use attention_rollout::cpu::{
    Choice, Form, GroupItem, GroupPlan, Options, Plan, Prefetch, Simd, StreamingPlan,
};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::compare;
use crate::common::generate::{Case, Generated, case, weighed_case};

/// Computes two problems that `bytes` describe: one weighed by gradients or without some tokens, perhaps, and one plain.
pub fn check(bytes: &[u8]) {
    // Too few bytes to describe anything.
    if bytes.len() < 256 {
        return;
    }
    let rng = TestRng::from_seed(RngAlgorithm::PassThrough, bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let one = weighed_case(20).new_tree(&mut runner);
    let other = case(20).new_tree(&mut runner);
    let (Ok(one), Ok(other)) = (one, other) else {
        return;
    };
    let count = 1 + usize::from(bytes[0] % 3);
    let generated = [one.current(), other.current()].map(|case: Case| case.generate());
    for generated in &generated {
        alone(generated, count, bytes[1]);
    }
    group(&generated, count);
}

fn options(count: usize) -> Options {
    Options {
        threads: NonZeroUsize::new(count),
        ..Options::default()
    }
}

/// Plans, chunks and streams, with the instruction set and form that `pick` picks.
fn alone(generated: &Generated, count: usize, pick: u8) {
    let (problem, layers) = (&generated.problem, generated.layers());
    let simd: Vec<Simd> = Simd::available().collect();
    let choice = Choice {
        simd: simd[usize::from(pick >> 2) % simd.len()],
        form: [Form::Rows, Form::Product][usize::from(pick & 1)],
        share_rest: pick & 2 != 0,
        prefetch: [Prefetch::Near, Prefetch::Far][usize::from(pick >> 7)],
    };
    let options = options(count);
    let poisoned = || vec![f32::NAN; problem.output_len()];
    let mut plan = Plan::with_choice(problem, &options, choice).expect("the case is valid");
    let mut out = poisoned();
    plan.run(&layers, &mut out).expect("the layers fit");
    compare("plan", problem, &layers, &out);
    out.fill(f32::NAN);
    let chunk = NonZeroUsize::MIN;
    plan.run_chunked(&layers, &mut out, chunk, &mut |_| {})
        .expect("the layers fit");
    compare("chunks", problem, &layers, &out);
    let mut stream =
        StreamingPlan::with_choice(problem, &options, choice).expect("the case is valid");
    for layer in problem.layers() {
        stream.push_layer(layers[layer]).expect("the layer fits");
    }
    let mut out = poisoned();
    stream.finish(&mut out).expect("every layer was pushed");
    compare("stream", problem, &layers, &out);
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
        compare("group", &generated.problem, &generated.layers(), out);
    }
}
