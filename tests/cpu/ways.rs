//! Every way to run a problem on the CPU, whatever its source of attention.

use std::num::NonZeroUsize;

use attention_rollout::cpu::{
    Choice, Form, GroupItem, GroupPlan, Options, Plan, Prefetch, Simd, StreamingPlan,
};
use attention_rollout::{HostLayer, Problem};
use proptest::test_runner::TestCaseError;

type Checked = Result<(), TestCaseError>;

pub fn threads(count: usize) -> Options {
    Options {
        threads: NonZeroUsize::new(count),
        ..Options::default()
    }
}

/// Both forms on every instruction set; `check` is told which, and shown the output.
pub fn both_forms(
    problem: &Problem,
    layers: &[HostLayer<'_>],
    (count, share_rest): (usize, bool),
    check: impl Fn(&str, &[f32]) -> Checked,
) -> Checked {
    for simd in Simd::available() {
        for form in [Form::Rows, Form::Product] {
            let choice = Choice {
                form,
                simd,
                share_rest,
                prefetch: Prefetch::Near,
            };
            let mut plan = Plan::with_choice(problem, &threads(count), choice).unwrap();
            let mut got = vec![f32::NAN; problem.output_len()];
            plan.run(layers, &mut got).unwrap();
            check(&format!("{choice:?}"), &got)?;
        }
    }
    Ok(())
}

/// A stream, a group of the problem twice, and chunks of `chunk` items.
pub fn streams_groups_and_chunks(
    problem: &Problem,
    layers: &[HostLayer<'_>],
    chunk: usize,
    check: impl Fn(&str, &[f32]) -> Checked,
) -> Checked {
    let mut got = vec![f32::NAN; problem.output_len()];
    let mut stream = StreamingPlan::new(problem, &threads(2)).unwrap();
    for layer in problem.layers() {
        stream.push_layer(layers[layer]).unwrap();
    }
    stream.finish(&mut got).unwrap();
    check("streamed", &got)?;

    let mut twice = [vec![f32::NAN; got.len()], vec![f32::NAN; got.len()]];
    let mut group = GroupPlan::new(&[problem.clone(), problem.clone()], &threads(2)).unwrap();
    let mut items: Vec<_> = twice
        .iter_mut()
        .map(|out| GroupItem::new(layers, out))
        .collect();
    group.run(&mut items).unwrap();
    drop(items);
    for got in &twice {
        check("grouped", got)?;
    }

    let mut got = vec![f32::NAN; problem.output_len()];
    let mut plan = Plan::new(problem, &threads(2)).unwrap();
    let chunk = NonZeroUsize::new(chunk).unwrap();
    plan.run_chunked(layers, &mut got, chunk, &mut |_| ())
        .unwrap();
    check("chunked", &got)
}
