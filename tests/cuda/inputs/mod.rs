//! One plan for runs of different windows and start rows, from the host and from device memory.

mod items;
mod plans;
mod refused;
mod under_way;

use attention_rollout::cuda::cudarc::driver::CudaSlice;
use attention_rollout::cuda::{DeviceIndices, Plan, RunInputs};
use attention_rollout::{DType, Discard, DiscardScope, Output, Problem, Shape, StartRows, Window};

use crate::generate::{Case, Generated};
use crate::machine::{Buffer, Machine, download, machine};
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
    let two_per_item = StartRows::PerItem(vec![0; 6]);
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
        ("two per item", case(rows(two_per_item), DType::F16, false)),
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
        let count = rows.len() / turn.windows.len();
        for (number, row) in rows.iter_mut().enumerate() {
            *row = (index + 1 + number % count) % turn.windows[number / count].len;
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
fn start_rows_that_items_share_are_held_to_the_windows_too() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    let stream = machine.context.default_stream();
    let (what, mut case) = cases().swap_remove(3);
    case.config.output = Output::Rows(StartRows::Rows(vec![0, 7, TOKENS - 1]));
    let problem = Problem::builder(case.shape, case.dtype)
        .config(case.config.clone())
        .max_window(TOKENS);
    let mut plan = machine.plan(&problem.build().unwrap(), |_| {});
    case.windows = vec![window(3, 5), window(1, TOKENS - 1), window(2, 0)];
    let held = [[0, 4, 4], [0, 7, TOKENS - 2], [TOKENS, TOKENS, TOKENS]];
    case.config.output = weights_of(3, held.as_flattened());
    let held = case.generate();
    let on_device = OnDevice::new(&machine, &held);
    let buffers = buffers(&machine, &held);
    let layers: Vec<_> = buffers.iter().map(Buffer::layer).collect();
    let len = held.problem.output_len();
    let mut out = stream.clone_htod(&vec![f32::NAN; len]).unwrap();
    plan.run_with(&stream, &layers, &mut out, on_device.inputs())
        .unwrap();
    assert_right(what, &held, &download(&stream, &out));
}

/// `count` start rows of each item as weights, for the reference: it takes no rows beyond a window.
fn weights_of(count: usize, rows: &[usize]) -> Output {
    let one_hot = |row: usize| (0..TOKENS).map(move |i| f32::from(u8::from(i == row)));
    Output::Rows(StartRows::Weights {
        rows: count,
        weights: rows.iter().flat_map(|&row| one_hot(row)).collect(),
    })
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
        held.config.output = weights_of(1, &held_rows);
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
