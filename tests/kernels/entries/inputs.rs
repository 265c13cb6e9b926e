//! What a run is given, held to what there is: the tables that `run_inputs` makes.

use attention_rollout::cuda::address::{Base, Bases};
use attention_rollout::cuda::kernel::TakeInputs;
use attention_rollout::cuda::launch::MAX_WORDS;
use attention_rollout::cuda::variant::Entry as Entered;
use attention_rollout::{
    DType, Discard, DiscardScope, Output, Problem, RolloutConfig, Shape, StartRows,
};
use bytemuck::Pod;
use ptxemu::Memory;

use super::Entry;
use crate::lab::Lab;

pub const ENTRIES: &[Entry] = &[Entry {
    name: "inputs",
    kernels: &["run_inputs"],
    short: true,
    run: |lab| {
        let starts = [
            StartRows::Last,
            StartRows::Mean,
            StartRows::PerItem(vec![0; BATCH]),
            StartRows::PerItem(vec![0; 3 * BATCH]),
            StartRows::Rows(vec![0, 4, 150]),
        ];
        starts.into_iter().try_for_each(|start| check(lab, start))
    },
}];

const BATCH: usize = 6;
/// More than a block has threads.
const TOKENS: usize = 160;
const MAX_WINDOW: usize = 155;
/// From one start row to the next.
const STRIDE: usize = 164;
const RATIO: f64 = 0.3;

/// Starts and lengths, and the windows that they are held to.
const GIVEN: [([i32; 2], [usize; 2]); BATCH] = [
    ([3, 150], [3, 150]),
    ([-1, 7], [0, 7]),
    ([140, 30], [140, 20]),
    ([0, 160], [0, MAX_WINDOW]),
    ([i32::MAX, 1], [TOKENS, 0]),
    ([5, i32::MIN], [5, 0]),
];

/// Rows as they are given, in turn.
const ROWS: [i32; 5] = [4, -2, i32::MAX, 149, 0];

fn check(lab: &Lab, start: StartRows) -> Result<(), String> {
    let shape = Shape {
        layers: 1,
        batch: BATCH,
        heads: 1,
        tokens: TOKENS,
    };
    let scope = DiscardScope::Patches { special_tokens: 2 };
    let config = RolloutConfig {
        output: Output::Rows(start.clone()),
        discard: Some(Discard {
            ratio: RATIO,
            scope,
        }),
        ..RolloutConfig::default()
    };
    let problem = Problem::builder(shape, DType::F32).config(config);
    let problem = problem.max_window(MAX_WINDOW).build();
    let problem = problem.map_err(|error| error.to_string())?;
    let rows = problem.start_rows();

    let memory = Memory::default();
    let mut bases = Bases::new(0, 1);
    let mut place = |base, bytes: &[u8]| {
        let at = memory.alloc(bytes.len());
        memory.write(at, bytes).unwrap();
        bases.place(base, at);
        at
    };
    let windows: Vec<i32> = GIVEN.iter().flat_map(|(given, _)| *given).collect();
    place(Base::GivenWindows, bytemuck::cast_slice(&windows));
    let per_item = ROWS.iter().copied().cycle().take(rows * BATCH).collect();
    let given: Vec<i32> = match &start {
        StartRows::PerItem(_) => per_item,
        StartRows::Rows(shared) => shared.iter().map(|&row| row as i32).collect(),
        _ => Vec::new(),
    };
    if !given.is_empty() {
        place(Base::GivenRows, bytemuck::cast_slice(&given));
    }
    let count = |len: usize| (RATIO * (len.saturating_sub(2).pow(2)) as f64).floor() as u64;
    let counts: Vec<u64> = (0..=MAX_WINDOW).map(count).collect();
    place(Base::CountsOf, bytemuck::cast_slice(&counts));
    let poison = |bytes: usize| vec![0xff; bytes];
    let windows = place(Base::Windows, &poison(8 * BATCH));
    let counts = place(Base::Counts, &poison(8 * BATCH));
    let weights = place(Base::Start, &poison(4 * BATCH * rows * STRIDE));

    let launch = TakeInputs.launch(&problem, STRIDE);
    let mut params = [u64::MAX; MAX_WORDS];
    launch.link(&bases, &mut params);
    let kernel = (Entered::Alone, &**launch.variant());
    let params = bytemuck::cast_slice(&params);
    lab.launch(&memory, kernel, *launch.geometry(), params)?;

    let held = GIVEN.map(|(_, [start, len])| [start as u32, len as u32]);
    equal("windows", &read(&memory, windows, BATCH), &held)?;
    let held = GIVEN.map(|(_, [_, len])| count(len));
    equal("counts", &read(&memory, counts, BATCH), &held)?;
    let mut expected = vec![0f32; BATCH * rows * STRIDE];
    for (number, row) in expected.chunks_exact_mut(STRIDE).enumerate() {
        let (item, m) = (number / rows, number % rows);
        let len = GIVEN[item].1[1];
        let Some(last) = len.checked_sub(1) else {
            continue;
        };
        let held = |row: i32| usize::try_from(row).unwrap_or(0).min(last);
        match &start {
            StartRows::Mean => row[..len].fill(1.0 / len as f32),
            StartRows::PerItem(_) => row[held(given[number])] = 1.0,
            StartRows::Rows(_) => row[held(given[m])] = 1.0,
            _ => row[last] = 1.0,
        }
    }
    equal(
        "weights",
        &read(&memory, weights, expected.len()),
        &expected,
    )
}

fn read<T: Pod>(memory: &Memory, at: u64, count: usize) -> Vec<T> {
    let mut values = vec![T::zeroed(); count];
    memory
        .read(at, bytemuck::cast_slice_mut(&mut values))
        .unwrap();
    values
}

fn equal<T: PartialEq + std::fmt::Debug>(
    what: &str,
    got: &[T],
    expected: &[T],
) -> Result<(), String> {
    let mut pairs = got.iter().zip(expected).enumerate();
    match pairs.find(|(_, (got, expected))| got != expected) {
        None => Ok(()),
        Some((index, (got, expected))) => Err(format!(
            "{what} {index}: expected {expected:?}, got {got:?}"
        )),
    }
}
