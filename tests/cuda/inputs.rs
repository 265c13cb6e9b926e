//! One plan for runs of different windows and start rows, from the host and from device memory.

use std::num::NonZeroUsize;

use attention_rollout::cuda::cudarc::driver::{CudaSlice, sys};
use attention_rollout::cuda::{
    self, DeviceIndices, DeviceLayer, DeviceOutput, GroupItem, GroupPlan, HostPlan, Options, Plan,
    PlanCache, RunInputs, StreamingPlan,
};
use attention_rollout::{
    DType, Discard, DiscardScope, Error, Output, Problem, Shape, StartRows, Window,
};
use vcuda::client::Ordering;

use crate::generate::{Case, Generated};
use crate::machine::{Buffer, Machine, directed, download, machine, upload};
use crate::problems::{assert_right, bits, buffers};

const TOKENS: usize = 24;

fn window(start: usize, len: usize) -> Window {
    Window { start, len }
}

/// What every pipeline makes of windows: rows of each kind, the matrix, steps of a product, discard.
fn cases() -> Vec<(&'static str, Case)> {
    let case = |output, dtype, discard: bool| {
        let shape = Shape {
            layers: 2,
            batch: 3,
            heads: 2,
            tokens: TOKENS,
        };
        let mut case = Case::new(shape, 21);
        case.config.output = output;
        case.dtype = dtype;
        case.config.discard = discard.then_some(Discard {
            ratio: 0.37,
            scope: DiscardScope::Map,
        });
        case
    };
    let rows = |rows| Output::Rows(rows);
    let per_item = StartRows::PerItem(vec![0; 3]);
    vec![
        ("last", case(rows(StartRows::Last), DType::F32, false)),
        (
            "mean, discard",
            case(rows(StartRows::Mean), DType::F16, true),
        ),
        ("per item", case(rows(per_item), DType::Bf16, false)),
        (
            "shared",
            case(rows(StartRows::Rows(vec![0, 2])), DType::F16, false),
        ),
        ("matrix", case(Output::Matrix, DType::F32, false)),
        ("cumulative", case(Output::Cumulative, DType::F32, true)),
    ]
}

/// Turn `index` of a case: other windows, aligned in some turns only, and other rows and maps.
fn turn(case: &Case, index: usize) -> Generated {
    let shift = |item: usize| (index * 5 + item * 7) % 9;
    let mut turn = case.clone();
    turn.windows = (0..3)
        .map(|item| match index % 3 {
            0 => window(0, 3 + (index * 4 + item * 6) % (TOKENS - 2)),
            1 => window(8, TOKENS - 8 - item),
            _ => window(shift(item), 3 + shift(item + 1)),
        })
        .collect();
    if let Output::Rows(StartRows::PerItem(rows)) = &mut turn.config.output {
        for (row, window) in rows.iter_mut().zip(&turn.windows) {
            *row = (index + 1) % window.len;
        }
    }
    turn.seed = 100 + index as u64;
    turn.generate()
}

/// The problem of a turn, whose runs may have any windows.
fn open(generated: &Generated) -> Problem {
    Problem::builder(*generated.problem.shape(), generated.problem.dtype())
        .config(generated.problem.config().clone())
        .windows(generated.problem.windows().to_vec())
        .max_window(TOKENS)
        .build()
        .unwrap()
}

fn rows(problem: &Problem) -> Option<&[usize]> {
    match &problem.config().output {
        Output::Rows(StartRows::PerItem(rows)) => Some(rows),
        _ => None,
    }
}

fn tell(plan: &mut Plan, turn: &Generated) {
    plan.set_windows(turn.problem.windows()).unwrap();
    if let Some(rows) = rows(&turn.problem) {
        plan.set_rows(rows).unwrap();
    }
}

fn indices(values: impl IntoIterator<Item = usize>) -> Vec<i32> {
    values.into_iter().map(|value| value as i32).collect()
}

/// The windows and rows of a turn in device memory.
struct OnDevice {
    windows: CudaSlice<i32>,
    rows: Option<CudaSlice<i32>>,
}

impl OnDevice {
    fn new(machine: &Machine, turn: &Generated) -> Self {
        let stream = machine.context.default_stream();
        let windows = turn.problem.windows().iter();
        let windows = indices(windows.flat_map(|window| [window.start, window.len]));
        let rows = rows(&turn.problem).map(|rows| indices(rows.iter().copied()));
        OnDevice {
            windows: stream.clone_htod(&windows).unwrap(),
            rows: rows.map(|rows| stream.clone_htod(&rows).unwrap()),
        }
    }

    fn inputs(&self) -> RunInputs<'_> {
        RunInputs {
            windows: Some((&self.windows).into()),
            rows: self.rows.as_ref().map(DeviceIndices::from),
        }
    }
}

#[test]
fn windows_of_each_run_from_host_and_device() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    let stream = machine.context.default_stream();
    for (what, case) in cases() {
        let turns: Vec<Generated> = (0..4).map(|index| turn(&case, index)).collect();
        let mut plan = machine.plan(&open(&turns[0]), |_| {});
        assert_right(what, &turns[0], &machine.run(&mut plan, &turns[0].layers()));
        for turn in &turns[1..] {
            tell(&mut plan, turn);
            let told = machine.run(&mut plan, &turn.layers());
            assert_right(what, turn, &told);
            // From device memory, for that run alone: the next has again what the host said.
            let other = &turns[0];
            let on_device = OnDevice::new(&machine, other);
            let buffers = buffers(&machine, other);
            let layers: Vec<_> = buffers.iter().map(Buffer::layer).collect();
            let len = other.problem.output_len();
            let mut out = stream.clone_htod(&vec![f32::NAN; len]).unwrap();
            plan.run_with(&stream, &layers, &mut out, on_device.inputs())
                .unwrap();
            assert_right(what, other, &download(&stream, &out));
            let again = machine.run(&mut plan, &turn.layers());
            assert_eq!(bits(&again), bits(&told), "{what}");
        }
    }
}

#[test]
fn eight_runs_on_their_way_have_each_its_own() {
    let Some(machine) = directed("sm_90") else {
        return;
    };
    let vcuda = machine.vcuda();
    vcuda.set_ordering(Ordering::Lazy);
    let stream = machine.context.default_stream();
    for (what, case) in cases().into_iter().take(3) {
        let turns: Vec<Generated> = (0..8).map(|index| turn(&case, index)).collect();
        let mut plan = machine.plan(&open(&turns[7]), |_| {});
        let maps: Vec<Vec<Buffer>> = turns.iter().map(|t| buffers(&machine, t)).collect();
        let len = turns[0].problem.output_len();
        let mut outs: Vec<CudaSlice<f32>> = turns
            .iter()
            .map(|_| stream.alloc_zeros(len).unwrap())
            .collect();
        machine.context.synchronize().unwrap();
        let before = vcuda.counters();
        for ((turn, maps), out) in turns.iter().zip(&maps).zip(&mut outs) {
            let layers: Vec<_> = maps.iter().map(Buffer::layer).collect();
            tell(&mut plan, turn);
            plan.run(&stream, &layers, out).unwrap();
        }
        let after = vcuda.counters();
        assert_eq!(after.host_waits, before.host_waits, "{what}");
        assert_eq!(
            after.copies_to_device - before.copies_to_device,
            8,
            "{what}"
        );
        assert_eq!(
            after.device_allocations, before.device_allocations,
            "{what}"
        );
        assert_eq!(after.host_allocations, before.host_allocations, "{what}");
        let launched = (after.launches - before.launches) as usize;
        assert_eq!(launched, 8 * (plan.schedule().launches() + 1), "{what}");
        for (turn, out) in turns.iter().zip(&outs) {
            assert_right(what, turn, &download(&stream, out));
        }
        // The ninth finds its slot free, and one that changes nothing launches what the schedule says.
        let layers: Vec<_> = maps[7].iter().map(Buffer::layer).collect();
        tell(&mut plan, &turns[7]);
        plan.run(&stream, &layers, &mut outs[0]).unwrap();
        let before = vcuda.counters();
        plan.run(&stream, &layers, &mut outs[1]).unwrap();
        let after = vcuda.counters();
        let launched = (after.launches - before.launches) as usize;
        assert_eq!(launched, plan.schedule().launches(), "{what}");
        assert_eq!(after.copies_to_device, before.copies_to_device, "{what}");
        for out in &outs[..2] {
            assert_right(what, &turns[7], &download(&stream, out));
        }
    }
}

#[test]
fn a_full_ring_waits_for_its_oldest_copy() {
    let Some(machine) = directed("sm_90") else {
        return;
    };
    machine.vcuda().set_ordering(Ordering::Lazy);
    let stream = machine.context.default_stream();
    let (what, case) = cases().swap_remove(0);
    let turns: Vec<Generated> = (0..19).map(|index| turn(&case, index)).collect();
    let mut plan = machine.plan(&open(&turns[0]), |_| {});
    let maps: Vec<Vec<Buffer>> = turns.iter().map(|t| buffers(&machine, t)).collect();
    let len = turns[0].problem.output_len();
    let mut outs: Vec<CudaSlice<f32>> = turns
        .iter()
        .map(|_| stream.alloc_zeros(len).unwrap())
        .collect();
    for ((turn, maps), out) in turns.iter().zip(&maps).zip(&mut outs) {
        let layers: Vec<_> = maps.iter().map(Buffer::layer).collect();
        tell(&mut plan, turn);
        plan.run(&stream, &layers, out).unwrap();
    }
    for (turn, out) in turns.iter().zip(&outs) {
        assert_right(what, turn, &download(&stream, out));
    }
}

#[test]
fn a_captured_run_reads_windows_anew_whenever_it_is_replayed() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    let (what, case) = cases().swap_remove(2);
    let turns: Vec<Generated> = (0..3).map(|index| turn(&case, index)).collect();
    // The windows of any turn over maps that hold numbers everywhere.
    let over = |turn: &Generated| {
        let mut full = case.clone();
        full.windows = vec![Window::full(TOKENS); 3];
        Generated {
            problem: turn.problem.clone(),
            ..full.generate()
        }
    };
    let mut plan = machine.plan(&open(&turns[0]), |_| {});
    let stream = machine.context.new_stream().unwrap();
    let mut on_device = OnDevice::new(&machine, &turns[0]);
    let maps: Vec<Buffer> = over(&turns[0])
        .layers()
        .iter()
        .map(|maps| upload(&stream, maps))
        .collect();
    let layers: Vec<_> = maps.iter().map(Buffer::layer).collect();
    let len = turns[0].problem.output_len();
    let mut out = stream.alloc_zeros::<f32>(len).unwrap();
    machine.context.synchronize().unwrap();
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    let output = DeviceOutput::from(&mut out);
    let inputs = on_device.inputs();
    // What the host says has no place in a graph, and the error says what has.
    tell(&mut plan, &turns[1]);
    stream.begin_capture(mode).unwrap();
    // SAFETY: nothing is submitted.
    let nowhere = unsafe { DeviceOutput::from_raw(output.address(), len) };
    let refused = plan.run(&stream, &layers, nowhere).unwrap_err();
    assert!(matches!(refused, Error::Capturing { .. }));
    assert!(refused.to_string().contains("run_with"));
    plan.run_with(&stream, &layers, output, inputs).unwrap();
    let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0));
    let graph = graph.unwrap().unwrap();
    for turn in [&turns[0], &turns[2], &turns[1]] {
        let now = OnDevice::new(&machine, turn);
        machine.context.synchronize().unwrap();
        stream
            .memcpy_dtod(&now.windows, &mut on_device.windows)
            .unwrap();
        let rows = on_device.rows.as_mut().unwrap();
        stream
            .memcpy_dtod(now.rows.as_ref().unwrap(), rows)
            .unwrap();
        graph.launch().unwrap();
        assert_right(what, &over(turn), &download(&stream, &out));
        // A run between replays has what the host said, whatever the graph left in the tables.
        let told = machine.run(&mut plan, &turns[1].layers());
        assert_right(what, &turns[1], &told);
    }
}

#[test]
fn what_the_device_says_is_held_to_what_there_is() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    let stream = machine.context.default_stream();
    let (what, case) = cases().swap_remove(2);
    let mut plan = machine.plan(&open(&turn(&case, 0)), |_| {});
    // Windows and rows given, and what they are held to.
    let given = [
        ([-3, TOKENS as i32 + 9, 20, 9, 2, 5], [40, -1, 2]),
        (
            [i32::MAX, i32::MAX, i32::MIN, 4, 3, i32::MIN],
            [0, i32::MAX, 7],
        ),
    ];
    let held = [
        (
            [window(0, TOKENS), window(20, 4), window(2, 5)],
            [TOKENS - 1, 0, 2],
        ),
        ([window(TOKENS, 0), window(0, 4), window(3, 0)], [0, 3, 0]),
    ];
    for ((windows, rows), (held_windows, held_rows)) in given.iter().zip(held) {
        let mut held = case.clone();
        held.windows = held_windows.into();
        // The reference takes an item without tokens as one without rows.
        held.config.output = Output::Rows(StartRows::Weights {
            rows: 1,
            weights: held_rows
                .iter()
                .flat_map(|&row| (0..TOKENS).map(move |i| f32::from(u8::from(i == row))))
                .collect(),
        });
        let held = held.generate();
        let windows = stream.clone_htod(windows).unwrap();
        let rows = stream.clone_htod(rows).unwrap();
        let inputs = RunInputs {
            windows: Some((&windows).into()),
            rows: Some((&rows).into()),
        };
        let buffers = buffers(&machine, &held);
        let layers: Vec<_> = buffers.iter().map(Buffer::layer).collect();
        let len = held.problem.output_len();
        let mut out = stream.clone_htod(&vec![f32::NAN; len]).unwrap();
        plan.run_with(&stream, &layers, &mut out, inputs).unwrap();
        assert_right(what, &held, &download(&stream, &out));
    }
}

#[test]
fn streams_groups_and_hosts_take_windows_too() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    let stream = machine.context.default_stream();
    let mut problems = Vec::new();
    for (what, case) in cases() {
        let turns: Vec<Generated> = (0..3).map(|index| turn(&case, index)).collect();
        let problem = open(&turns[0]);
        let mut streaming =
            StreamingPlan::on(&machine.runtime(), &problem, &Options::default()).unwrap();
        let two = NonZeroUsize::new(2);
        let runtimes = [machine.runtime()];
        let mut host = HostPlan::on(&runtimes, &problem, &Options::default(), two).unwrap();
        for turn in [&turns[1], &turns[2], &turns[0]] {
            streaming.set_windows(turn.problem.windows()).unwrap();
            host.set_windows(turn.problem.windows()).unwrap();
            if let Some(rows) = rows(&turn.problem) {
                streaming.set_rows(rows).unwrap();
                host.set_rows(rows).unwrap();
            }
            let len = problem.output_len();
            let mut out = stream.clone_htod(&vec![f32::NAN; len]).unwrap();
            let mut pass = streaming.begin(&stream, &mut out).unwrap();
            for maps in &turn.layers() {
                pass.push_layer(upload(&stream, maps).layer()).unwrap();
            }
            pass.finish().unwrap();
            assert_right(what, turn, &download(&stream, &out));
            let mut out = vec![f32::NAN; len];
            host.run(&turn.layers(), &mut out, &mut |_| {}).unwrap();
            assert_right(what, turn, &out);
            let on_device = OnDevice::new(&machine, turn);
            let mut out = stream.clone_htod(&vec![f32::NAN; len]).unwrap();
            let mut pass = streaming
                .begin_with(&stream, &mut out, on_device.inputs())
                .unwrap();
            for maps in &turn.layers() {
                pass.push_layer(upload(&stream, maps).layer()).unwrap();
            }
            pass.finish().unwrap();
            assert_right(what, turn, &download(&stream, &out));
        }
        problems.push((case, problem));
    }
    let opened: Vec<Problem> = problems
        .iter()
        .map(|(_, problem)| problem.clone())
        .collect();
    let mut group = GroupPlan::on(&machine.runtime(), &opened, &Options::default()).unwrap();
    for index in 1..3 {
        let turns: Vec<Generated> = problems.iter().map(|(case, _)| turn(case, index)).collect();
        for (member, turn) in turns.iter().enumerate() {
            group.set_windows(member, turn.problem.windows()).unwrap();
            if let Some(rows) = rows(&turn.problem) {
                group.set_rows(member, rows).unwrap();
            }
        }
        let maps: Vec<Vec<Buffer>> = turns.iter().map(|t| buffers(&machine, t)).collect();
        let layers: Vec<Vec<DeviceLayer<'_>>> = maps
            .iter()
            .map(|maps| maps.iter().map(Buffer::layer).collect())
            .collect();
        let mut outs: Vec<CudaSlice<f32>> = opened
            .iter()
            .map(|problem| {
                let poison = vec![f32::NAN; problem.output_len()];
                stream.clone_htod(&poison).unwrap()
            })
            .collect();
        let items = layers.iter().zip(&mut outs);
        let mut items: Vec<_> = items
            .map(|(layers, out)| GroupItem {
                layers,
                out: out.into(),
            })
            .collect();
        group.run(&stream, &mut items).unwrap();
        drop(items);
        for (turn, out) in turns.iter().zip(&outs) {
            assert_right("grouped", turn, &download(&stream, out));
        }
    }
}

#[test]
fn what_is_not_taken_or_does_not_fit_is_refused() {
    let Some(machine) = directed("sm_90,sm_80") else {
        return;
    };
    let vcuda = machine.vcuda();
    let (_, case) = cases().swap_remove(2);
    let turn = turn(&case, 0);
    let mut fixed = case.clone();
    fixed.config.output = Output::Rows(StartRows::Last);
    let fixed = fixed.generate();
    let stream = machine.context.default_stream();
    let buffers = buffers(&machine, &fixed);
    let layers: Vec<_> = buffers.iter().map(Buffer::layer).collect();
    let len = fixed.problem.output_len();
    let mut out = stream.alloc_zeros::<f32>(len).unwrap();
    let on_device = OnDevice::new(&machine, &turn);
    let launched = vcuda.counters().launches;
    let full = Problem::new(
        *fixed.problem.shape(),
        fixed.problem.dtype(),
        fixed.problem.config().clone(),
    );
    let mut plan = machine.plan(&full.unwrap(), |_| {});
    let windows = turn.problem.windows();
    assert!(matches!(
        plan.set_windows(windows),
        Err(Error::FixedInput {
            what: "windows",
            ..
        })
    ));
    assert!(matches!(
        plan.set_rows(&[0; 3]),
        Err(Error::FixedInput {
            what: "start rows",
            ..
        })
    ));
    let refused = plan.run_with(&stream, &layers, &mut out, on_device.inputs());
    assert!(matches!(refused, Err(Error::FixedInput { .. })));
    let mut plan = machine.plan(&open(&turn), |_| {});
    let mut with = |inputs| {
        plan.run_with(&stream, &layers, &mut out, inputs)
            .unwrap_err()
    };
    let short = on_device.windows.slice(..5);
    let short = RunInputs {
        windows: Some((&short).into()),
        ..RunInputs::default()
    };
    assert!(matches!(
        with(short),
        Error::Len {
            expected: 6,
            got: 5,
            ..
        }
    ));
    let odd = RunInputs {
        // SAFETY: never read.
        rows: Some(unsafe { DeviceIndices::from_raw(0x1002, 3) }),
        ..RunInputs::default()
    };
    assert!(matches!(with(odd), Error::Misaligned { required: 4, .. }));
    let other = cuda::context(1).unwrap().default_stream();
    let foreign = other.alloc_zeros::<i32>(3).unwrap();
    let foreign = RunInputs {
        rows: Some((&foreign).into()),
        ..RunInputs::default()
    };
    assert!(matches!(
        with(foreign),
        Error::WrongDevice {
            expected: 0,
            got: 1,
            ..
        }
    ));
    plan.set_windows(&[window(0, 2); 3]).unwrap();
    plan.set_rows(&[0, 2, 0]).unwrap();
    let outside = plan.run(&stream, &layers, &mut out).unwrap_err();
    assert!(matches!(
        outside,
        Error::StartRow {
            item: 1,
            row: 2,
            len: 2
        }
    ));
    assert_eq!(vcuda.counters().launches, launched);
    // A copy that fails is made again.
    tell(&mut plan, &turn);
    vcuda.fail_call("cuMemcpyHtoDAsync_v2", 1, vcuda::Code::NotPermitted);
    assert!(plan.run(&stream, &layers, &mut out).is_err());
    vcuda.fail_launch(1, vcuda::Code::NotPermitted);
    assert!(plan.run(&stream, &layers, &mut out).is_err());
    let got = machine.run(&mut plan, &turn.layers());
    assert_right("after failures", &turn, &got);
}

#[test]
fn a_cache_has_one_plan_for_all_windows() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    let mut plans = PlanCache::new(&machine.runtime(), &Options::default(), NonZeroUsize::MIN);
    let (what, case) = cases().swap_remove(2);
    for index in 0..3 {
        let turn = turn(&case, index);
        let plan = plans.get(&open(&turn)).unwrap();
        let got = machine.run(plan, &turn.layers());
        assert_right(what, &turn, &got);
    }
    assert_eq!(plans.len(), 1);
}
