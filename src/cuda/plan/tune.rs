//! Which way of computing a problem is the fastest on a device, by the clock.

use std::ops::Range;

use sha2::{Digest, Sha256};

use super::engine::Engine;
use super::inputs::RunInputs;
use super::workspace::Workspace;
use crate::cuda::choose::{Candidate, candidates_for};
use crate::cuda::driver::{self, DeviceMemory, Event, Stream, bind, driver_error};
use crate::cuda::options::Options;
use crate::cuda::runtime::Runtime;
use crate::cuda::schedule::PART_ALIGNMENT;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::problem::Problem;

/// Times that are taken of each way.
const ROUNDS: usize = 5;

/// Events tell times to half a microsecond, so runs are timed together until they take 400 times that, in microseconds.
const CLOCK_US: f64 = 200.0;

/// Runs that are timed together at most.
const MOST_RUNS: f64 = 100.0;

/// What takes so many times as long as the fastest way before it is timed no further.
const HOPELESS: f64 = 4.0;

/// Copies of the smallest layers.
const MOST_COPIES: usize = 256;

/// A way of computing a problem, and how long it took.
#[derive(Clone, Debug, PartialEq)]
pub struct Timed {
    /// What was launched.
    pub candidate: Candidate,
    /// The time of a run that follows straight after another, on the device, in microseconds: the least of five, or the first
    /// one where that is four times as long as the fastest way's before it.
    pub measured_us: f64,
}

/// Times every way of computing `problem` on the device of `runtime`, the fastest first, and remembers that one for plans
/// with [`Options::tune`]: in `runtime`, and in the directory of compiled kernels, for this device, driver and version of
/// this crate. Of `options` the precision counts.
///
/// Layers for it are made in device memory, of small entries that are all alike, and so often that they do not stay in L2;
/// the caller's are not touched. Windows and start rows are those that the problem has. Ways whose workspace does not fit
/// beside them are left out. Compiles the kernels of all ways, runs most of them some ten times or more, and waits.
/// Entries that are alike make the search of a discard longer than those of real maps do, in every way alike.
///
/// # Errors
/// As [`candidates`](crate::cuda::candidates()); [`Error::Nvrtc`] where the compiler is missing or fails;
/// [`Error::OutOfDeviceMemory`] where layers and output, or every workspace beside them, do not fit; [`Error::Driver`].
pub fn tune(runtime: &Runtime, problem: &Problem, options: &Options) -> Result<Vec<Timed>> {
    let open = Options {
        precision: options.precision,
        ..Options::default()
    };
    let batch = problem.shape().batch;
    let candidates = candidates_for(problem, batch, runtime.limits(), &open)?;
    let key = key(runtime, problem, &candidates)?;
    timed(runtime, problem, batch, candidates, key)
}

/// `options` for runs of `batch` items of `problem` at a time, with what they leave to the clock decided: as it is remembered, or
/// timed now.
pub(super) fn decided(
    runtime: &Runtime,
    problem: &Problem,
    batch: usize,
    options: &Options,
) -> Result<Options> {
    let left_open = options.pipeline.is_none() && options.variant.is_none();
    if !options.tune || !left_open || problem.output_len() == 0 {
        return Ok(options.clone());
    }
    let candidates = candidates_for(problem, batch, runtime.limits(), options)?;
    let key = key(runtime, problem, &candidates)?;
    let noted = runtime.noted(&key);
    let mut known = candidates.iter();
    let known = known.find(|&candidate| noted.as_ref() == Some(&name(candidate)));
    let pipeline = match known {
        Some(candidate) => candidate.schedule.pipeline(),
        None => {
            let timed = timed(runtime, problem, batch, candidates, key)?;
            timed[0].candidate.schedule.pipeline()
        }
    };
    Ok(Options {
        pipeline: Some(pipeline),
        ..options.clone()
    })
}

/// Tells the candidates of a problem apart.
fn name(candidate: &Candidate) -> String {
    format!("{:?}", candidate.schedule.pipeline())
}

/// What there was to choose from, and where.
fn key(runtime: &Runtime, problem: &Problem, candidates: &[Candidate]) -> Result<[u8; 32]> {
    let device = runtime
        .context()
        .name()
        .map_err(driver_error("cuDeviceGetName"))?;
    let crate_version = env!("CARGO_PKG_VERSION");
    let place = format!("{crate_version}, {device}, driver {}", driver::version()?);
    let what = format!("{}, {}", problem.shape(), problem.dtype());
    let mut ways: Vec<String> = candidates
        .iter()
        .map(|candidate| format!("{}: {}", name(candidate), candidate.schedule))
        .collect();
    ways.sort();
    let digest = Sha256::digest(format!("{place}\n{what}\n{}", ways.join("\n")));
    Ok(digest.into())
}

/// Times those of `candidates` that fit into memory, the fastest first and at least one, and notes that one under `key`.
fn timed(
    runtime: &Runtime,
    problem: &Problem,
    batch: usize,
    candidates: Vec<Candidate>,
    key: [u8; 32],
) -> Result<Vec<Timed>> {
    let mut clock = Clock::new(runtime, problem, batch)?;
    let mut timed = Vec::new();
    let mut fastest_us = f64::INFINITY;
    let mut no_room = None;
    for candidate in candidates {
        match clock.time(runtime, problem, &candidate, fastest_us) {
            Ok(measured_us) => {
                fastest_us = fastest_us.min(measured_us);
                timed.push(Timed {
                    candidate,
                    measured_us,
                });
            }
            Err(error @ Error::OutOfDeviceMemory { .. }) => no_room = Some(error),
            Err(error) => return Err(error),
        }
    }
    timed.sort_by(|a, b| a.measured_us.total_cmp(&b.measured_us));
    match (timed.first(), no_room) {
        (None, Some(error)) => return Err(error),
        (Some(fastest), _) => runtime.note(key, name(&fastest.candidate)),
        (None, None) => {}
    }
    Ok(timed)
}

/// Layers and an output to run with, and what tells how long that takes.
struct Clock {
    // What uses memory goes before it.
    stream: Stream,
    start: Event,
    end: Event,
    items: Range<usize>,
    /// Where the tensors of each copy begin.
    copies: Vec<Vec<u64>>,
    next: usize,
    output: DeviceMemory,
    _layers: DeviceMemory,
}

impl Clock {
    fn new(runtime: &Runtime, problem: &Problem, batch: usize) -> Result<Self> {
        let context = runtime.context();
        let problem = problem.slice_batch(0..batch);
        let mut tensors = Vec::new();
        for layer in 0..problem.shape().layers {
            for operand in problem.operands(layer)?.operands() {
                tensors.push((operand.dtype, operand.len * operand.dtype.size_bytes()));
            }
        }
        let padded = |bytes: usize| bytes.next_multiple_of(PART_ALIGNMENT);
        let copy_bytes: usize = tensors.iter().map(|&(_, bytes)| padded(bytes)).sum();
        let output = DeviceMemory::new(context, "the output", 4 * problem.output_len())?;
        let (free, _) = driver::memory(context)?;
        let most = (free / 2 / copy_bytes.max(1)).clamp(1, MOST_COPIES);
        let wanted = (2 * runtime.limits().l2_bytes).div_ceil(copy_bytes.max(1));
        let copies = wanted.clamp(1, most);
        let layers = DeviceMemory::new(context, "attention maps", copies * copy_bytes)?;
        let stream = Stream::new(context)?;
        let mut offset = 0;
        let mut addresses = |stream: &Stream| -> Result<Vec<u64>> {
            let mut of_copy = Vec::with_capacity(tensors.len());
            for &(dtype, bytes) in &tensors {
                layers.fill(offset, bytes, small(dtype), stream)?;
                of_copy.push(layers.address() + offset as u64);
                offset += padded(bytes);
            }
            Ok(of_copy)
        };
        Ok(Clock {
            copies: (0..copies)
                .map(|_| addresses(&stream))
                .collect::<Result<_>>()?,
            stream,
            start: Event::timed(context)?,
            end: Event::timed(context)?,
            items: 0..batch,
            next: 0,
            output,
            _layers: layers,
        })
    }

    /// The least time of a run of `candidate`, in microseconds; the first one, where it has no hope to become `fastest_us`.
    fn time(
        &mut self,
        runtime: &Runtime,
        problem: &Problem,
        candidate: &Candidate,
        fastest_us: f64,
    ) -> Result<f64> {
        let schedule = candidate.schedule.clone();
        let mut engine = Engine::alone(runtime, problem, schedule, &Workspace::default())?;
        bind(runtime.context())?;
        let once = self.round(&mut engine, 1)?;
        if once > HOPELESS * fastest_us {
            return Ok(once);
        }
        let runs = (CLOCK_US / once).clamp(1.0, MOST_RUNS).ceil() as usize;
        let mut least = f64::INFINITY;
        for _ in 0..ROUNDS {
            least = least.min(self.round(&mut engine, runs)?);
        }
        Ok(least)
    }

    /// The time of one of `runs` runs that follow straight after another.
    fn round(&mut self, engine: &mut Engine, runs: usize) -> Result<f64> {
        self.submit(engine)?;
        self.start.record(self.stream.raw())?;
        for _ in 0..runs {
            self.submit(engine)?;
        }
        self.end.record(self.stream.raw())?;
        self.end.synchronize()?;
        Ok(self.start.microseconds_until(&self.end)? / runs as f64)
    }

    fn submit(&mut self, engine: &mut Engine) -> Result<()> {
        self.next = (self.next + 1) % self.copies.len();
        let (stream, items) = (self.stream.raw(), self.items.clone());
        let given = RunInputs::default().addresses();
        let steps = 0..engine.schedule().steps.len();
        let layers = &self.copies[self.next];
        // SAFETY: the context is bound, and all runs follow each other on one stream of it. The layers and the output are of
        // the sizes that the problem says, used by nobody else, and given back only when their last run is done.
        unsafe {
            engine.give(stream, false, given, items.clone())?;
            engine.submit(items, steps, stream, layers, self.output.address())
        }
    }
}

/// A byte of which an element of a map, or of queries and keys, can be made that is small and not 0: where it were, rows would
/// be left out.
fn small(dtype: DType) -> u8 {
    match dtype {
        // 0.0041
        DType::F16 => 0x1c,
        // 0.0029
        DType::F32 | DType::Bf16 => 0x3b,
    }
}
