//! Runs of fewer items than the plan's, whose memory ends with them.

use std::ops::Range;

use attention_rollout::cuda::cudarc::driver::sys;
use attention_rollout::cuda::{DeviceOutput, HostPlan, Options, Plan, StreamingPlan, choose};
use attention_rollout::{DType, Error, Output, Problem, StartRows, Window};

use super::{OnDevice, TOKENS, cases, open, rows, turn, window};
use crate::generate::{Case, Generated};
use crate::machine::{Buffer, Machine, directed, download, machine, upload};
use crate::problems::{assert_right, bits, buffers};

/// Items of the plans.
const BATCH: usize = 5;

/// Which items runs take.
const RANGES: [Range<usize>; 3] = [0..1, 2..5, 1..3];

/// The problem of a case for more items, whose other windows and rows are like no run's.
fn larger(case: &Case) -> Problem {
    let mut larger = case.clone();
    larger.shape.batch = BATCH;
    larger.windows = vec![Window::full(TOKENS); BATCH];
    if let Output::Rows(StartRows::PerItem(rows)) = &mut larger.config.output {
        *rows = vec![TOKENS - 1; rows.len() / case.shape.batch * BATCH];
    }
    open(&larger.generate())
}

/// Turn `index` of a case, of its first `count` items.
fn part(case: &Case, index: usize, count: usize) -> Generated {
    let whole = turn(case, index);
    let mut part = case.clone();
    part.shape.batch = count;
    part.windows = whole.problem.windows()[..count].to_vec();
    if let (Output::Rows(StartRows::PerItem(mine)), Some(all)) =
        (&mut part.config.output, rows(&whole.problem))
    {
        *mine = all[..all.len() / case.shape.batch * count].to_vec();
    }
    part.seed = 300 + index as u64;
    part.generate()
}

/// The windows and rows of all items of `problem`, where `items` have those of `part`.
fn among(
    problem: &Problem,
    items: &Range<usize>,
    part: &Problem,
) -> (Vec<Window>, Option<Vec<usize>>) {
    let mut windows = problem.windows().to_vec();
    windows[items.clone()].copy_from_slice(part.windows());
    let rows = rows(problem).map(|all| {
        let (mut all, count) = (all.to_vec(), all.len() / BATCH);
        all[items.start * count..items.end * count].copy_from_slice(rows(part).unwrap());
        all
    });
    (windows, rows)
}

#[test]
fn a_run_of_fewer_items_touches_theirs_alone() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    let stream = machine.context.default_stream();
    for (what, case) in cases() {
        let problem = larger(&case);
        let mut plan = machine.plan(&problem, |_| {});
        let mut streaming =
            StreamingPlan::on(&machine.runtime(), &problem, &Options::default()).unwrap();
        for (index, items) in RANGES.into_iter().enumerate() {
            let part = part(&case, index, items.len());
            let (windows, rows) = among(&problem, &items, &part.problem);
            plan.set_windows(&windows).unwrap();
            streaming.set_windows(&windows).unwrap();
            if let Some(rows) = rows {
                plan.set_rows(&rows).unwrap();
                streaming.set_rows(&rows).unwrap();
            }
            // Buffers of exactly the items' size.
            let buffers = buffers(&machine, &part);
            let layers: Vec<_> = buffers.iter().map(Buffer::layer).collect();
            let poison = vec![f32::NAN; part.problem.output_len()];
            let mut out = stream.clone_htod(&poison).unwrap();
            plan.run_items(&stream, items.clone(), &layers, &mut out)
                .unwrap();
            let told = download(&stream, &out);
            assert_right(what, &part, &told);
            let mut out = stream.clone_htod(&poison).unwrap();
            let mut pass = streaming
                .begin_items(&stream, items.clone(), &mut out)
                .unwrap();
            for maps in &part.layers() {
                pass.push_layer(upload(&stream, maps).layer()).unwrap();
            }
            pass.finish().unwrap();
            assert_right(what, &part, &download(&stream, &out));
            // From device memory, where those of the items alone lie; the host says something else.
            plan.set_windows(&[window(0, 3); BATCH]).unwrap();
            let on_device = OnDevice::new(&machine, &part);
            let mut out = stream.clone_htod(&poison).unwrap();
            plan.run_items_with(&stream, items, &layers, &mut out, on_device.inputs())
                .unwrap();
            assert_eq!(bits(&download(&stream, &out)), bits(&told), "{what}");
        }
        // The whole batch is as it was.
        let mut all = case.clone();
        all.shape.batch = BATCH;
        all.windows = vec![Window::full(TOKENS); BATCH];
        all.config = problem.config().clone();
        let all = all.generate();
        plan.set_windows(all.problem.windows()).unwrap();
        if let Some(rows) = rows(&problem) {
            plan.set_rows(rows).unwrap();
        }
        assert_right(what, &all, &machine.run(&mut plan, &all.layers()));
    }
}

#[test]
fn host_plans_take_fewer_items_too() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    for (what, case) in cases().into_iter().skip(4) {
        let problem = larger(&case);
        let runtimes = [machine.runtime()];
        let two = std::num::NonZeroUsize::new(2);
        let mut host = HostPlan::on(&runtimes, &problem, &Options::default(), two).unwrap();
        for (index, items) in RANGES.into_iter().enumerate() {
            let part = part(&case, index, items.len());
            let (windows, rows) = among(&problem, &items, &part.problem);
            host.set_windows(&windows).unwrap();
            if let Some(rows) = rows {
                host.set_rows(&rows).unwrap();
            }
            let mut out = vec![f32::NAN; part.problem.output_len()];
            let mut chunks = 0;
            host.run_items(items.clone(), &part.layers(), &mut out, &mut |progress| {
                chunks += 1;
                assert_eq!(progress.total, items.len());
            })
            .unwrap();
            assert_eq!(chunks, items.len().div_ceil(2));
            assert_right(what, &part, &out);
        }
    }
}

/// A plan of full windows, larger than a run.
fn full(machine: &Machine, case: &Case) -> (Plan, Generated) {
    let mut part = case.clone();
    part.windows = vec![Window::full(TOKENS); case.shape.batch];
    let whole = Case {
        shape: attention_rollout::Shape {
            batch: BATCH,
            ..case.shape
        },
        windows: vec![Window::full(TOKENS); BATCH],
        ..part.clone()
    };
    (
        machine.plan(&whole.generate().problem, |_| {}),
        part.generate(),
    )
}

#[test]
fn runs_of_fewer_items_are_captured_and_load_nothing() {
    let Some(machine) = directed("sm_90") else {
        return;
    };
    let vcuda = machine.vcuda();
    for number in [3, 4] {
        let (what, case) = cases().swap_remove(number);
        let (mut plan, part) = full(&machine, &case);
        let stream = machine.context.new_stream().unwrap();
        let maps: Vec<Buffer> = part
            .layers()
            .iter()
            .map(|maps| upload(&stream, maps))
            .collect();
        let layers: Vec<_> = maps.iter().map(Buffer::layer).collect();
        let mut out = stream
            .clone_htod(&vec![f32::NAN; part.problem.output_len()])
            .unwrap();
        machine.context.synchronize().unwrap();
        let before = vcuda.counters();
        let output = DeviceOutput::from(&mut out);
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).unwrap();
        plan.run_items(&stream, 1..4, &layers, output).unwrap();
        let graph = stream
            .end_capture(sys::CUgraphInstantiate_flags(0))
            .unwrap()
            .unwrap();
        let after = vcuda.counters();
        assert_eq!(
            after.device_allocations, before.device_allocations,
            "{what}"
        );
        assert_eq!(after.host_waits, before.host_waits, "{what}");
        graph.launch().unwrap();
        assert_right(what, &part, &download(&stream, &out));
    }
}

#[test]
fn items_that_the_batch_does_not_have_are_refused() {
    let Some(machine) = directed("sm_90") else {
        return;
    };
    let (what, case) = cases().swap_remove(4);
    let (mut plan, part) = full(&machine, &case);
    let stream = machine.context.default_stream();
    let buffers = buffers(&machine, &part);
    let layers: Vec<_> = buffers.iter().map(Buffer::layer).collect();
    let len = part.problem.output_len();
    let mut out = stream.alloc_zeros::<f32>(len).unwrap();
    let launched = machine.vcuda().counters().launches;
    #[allow(clippy::reversed_empty_ranges, reason = "that is what is refused")]
    for items in [3..6, 4..3, usize::MAX - 1..usize::MAX] {
        let (start, end) = (items.start, items.end);
        let refused = plan
            .run_items(&stream, items, &layers, &mut out)
            .unwrap_err();
        assert!(
            matches!(refused, Error::Items { start: s, end: e, batch: BATCH } if (s, e) == (start, end)),
            "{refused}"
        );
    }
    // Maps and outputs of other numbers of items.
    let refused = plan
        .run_items(&stream, 0..4, &layers, &mut out)
        .unwrap_err();
    assert!(
        matches!(refused, Error::LayerLen { layer: 0, .. }),
        "{refused}"
    );
    let refused = plan
        .run_items(&stream, 0..2, &layers, &mut out)
        .unwrap_err();
    assert!(matches!(refused, Error::Len { .. }), "{refused}");
    assert_eq!(machine.vcuda().counters().launches, launched);
    plan.run_items(&stream, 5..5, &layers, &mut out.slice_mut(..0))
        .unwrap();
    assert_eq!(
        machine.vcuda().counters().launches,
        launched,
        "no items, no launches"
    );
    plan.run_items(&stream, 2..5, &layers, &mut out).unwrap();
    assert_right(what, &part, &download(&stream, &out));
}

#[test]
fn sizes_that_are_forgotten_are_laid_out_again() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    let (what, mut case) = cases().swap_remove(0);
    case.shape.batch = 12;
    case.windows = vec![Window::full(TOKENS); 12];
    case.dtype = DType::F16;
    let mut plan = machine.plan(&case.generate().problem, |_| {});
    let stream = machine.context.default_stream();
    for count in (1..12).chain(1..3) {
        let mut part = case.clone();
        part.shape.batch = count;
        part.windows.truncate(count);
        let part = part.generate();
        let buffers = buffers(&machine, &part);
        let layers: Vec<_> = buffers.iter().map(Buffer::layer).collect();
        let mut out = stream
            .alloc_zeros::<f32>(part.problem.output_len())
            .unwrap();
        plan.run_items(&stream, 0..count, &layers, &mut out)
            .unwrap();
        assert_right(what, &part, &download(&stream, &out));
    }
    let chosen = choose(
        plan.problem(),
        machine.runtime().limits(),
        &Options::default(),
    );
    assert_eq!(plan.schedule(), &chosen.unwrap());
}
