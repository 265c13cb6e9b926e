//! Host data in chunks, on one device and on several.

use std::num::NonZeroUsize;

use attention_rollout::cuda::{self, HostPlan, Options, Runtime, run_host};
use attention_rollout::{Output, Progress, Shape, StartRows, Window, reference};

use crate::compare::{Budget, check_close};
use crate::generate::{Case, Layout};
use crate::machine::{directed, machine};

fn cases() -> Vec<Case> {
    let shape = Shape {
        layers: 3,
        batch: 7,
        heads: 2,
        tokens: 12,
    };
    let windows: Vec<Window> = (0..7)
        .map(|item| Window {
            start: item % 3,
            len: 12 - item,
        })
        .map(|window| Window {
            len: window.len.min(12 - window.start),
            ..window
        })
        .collect();
    let case = |output, layout, windows: &[Window]| {
        let mut case = Case::new(shape, 21);
        case.config.output = output;
        case.layout = layout;
        case.windows = windows.to_vec();
        case
    };
    let full = vec![Window::full(12); 7];
    let per_item = (0..7).map(|item| item % 3).collect();
    let mut range = case(Output::Matrix, Layout::PaddedRows, &full);
    range.config.layers = Some(1..3);
    // Large enough to be packed by several threads.
    let mut large = Case::new(
        Shape {
            layers: 3,
            batch: 2,
            heads: 2,
            tokens: 200,
        },
        22,
    );
    large.config.layers = Some(1..3);
    vec![
        large,
        case(Output::default(), Layout::Contiguous, &full),
        case(
            Output::Rows(StartRows::PerItem(per_item)),
            Layout::HeadMajor,
            &windows,
        ),
        case(
            Output::Rows(StartRows::Rows((0..4).chain(0..5).collect())),
            Layout::LayersInside,
            &windows,
        ),
        case(
            Output::Rows(StartRows::Weights {
                rows: 9,
                weights: (0..7 * 9 * 12).map(|i| (i % 17) as f32 / 16.0).collect(),
            }),
            Layout::Contiguous,
            &full,
        ),
        case(Output::Cumulative, Layout::HeadStrideZero, &windows),
        range,
    ]
}

#[test]
fn chunks_of_any_size_on_any_number_of_devices_agree() {
    let Some(machine) = machine("sm_90/16,sm_80/16") else {
        return;
    };
    let mut runtimes = vec![machine.runtime()];
    if machine.vcuda.is_some() {
        let other = cuda::context(1).unwrap();
        runtimes.push(Runtime::new(&other, &machine.compiler).unwrap());
    }
    for case in cases() {
        let generated = case.generate();
        let layers = generated.layers();
        let problem = &generated.problem;
        let want = reference::rollout(problem, &layers).unwrap();
        let budget = Budget::new(problem, &layers);
        for (devices, chunk) in [(1, Some(3)), (1, None), (runtimes.len(), Some(2))] {
            let mut seen = Vec::new();
            let mut out = vec![f32::NAN; problem.output_len()];
            run_host(
                &runtimes[..devices],
                problem,
                &layers,
                &mut out,
                &Options::default(),
                chunk.and_then(NonZeroUsize::new),
                &mut |progress| seen.push(progress),
            )
            .unwrap_or_else(|error| panic!("{error}: {}", machine.message()));
            check_close("chunks", &problem.output_shape(), &out, &want, |index| {
                budget.tolerance(index)
            })
            .unwrap_or_else(|error| {
                panic!("{devices} devices, chunks of {chunk:?}\n{error}\n{case:?}")
            });
            assert!(seen.is_sorted_by(|a, b| a.done < b.done), "{seen:?}");
            let total = problem.shape().batch;
            assert_eq!(seen.last(), Some(&Progress { done: total, total }));
        }
    }
}

#[test]
fn data_larger_than_the_device_passes_through_it() {
    let Some(machine) = directed("sm_90") else {
        return;
    };
    let vcuda = machine.vcuda();
    // Late execution shows buffers that are filled again too early.
    vcuda.set_ordering(vcuda::client::Ordering::Lazy);
    let case = Case::new(
        Shape {
            layers: 3,
            batch: 20,
            heads: 2,
            tokens: 24,
        },
        8,
    );
    let generated = case.generate();
    let item = 3 * 2 * 24 * 24 * 4;
    vcuda.set_memory_limit(0, vcuda.usage().bytes + 6 * item);
    let mut plan = HostPlan::on(
        &[machine.runtime()],
        &generated.problem,
        &Options::default(),
        None,
    )
    .unwrap_or_else(|error| panic!("{error}"));
    assert!(plan.items_per_chunk() < 4, "{}", plan.items_per_chunk());
    let layers = generated.layers();
    let mut out = vec![f32::NAN; generated.problem.output_len()];
    let mut chunks = 0;
    plan.run(&layers, &mut out, &mut |_| chunks += 1)
        .unwrap_or_else(|error| panic!("{error}: {}", machine.message()));
    assert!(chunks > 5);
    let budget = Budget::new(&generated.problem, &layers);
    let want = reference::rollout(&generated.problem, &layers).unwrap();
    check_close(
        "chunks",
        &generated.problem.output_shape(),
        &out,
        &want,
        |index| budget.tolerance(index),
    )
    .unwrap();
}
