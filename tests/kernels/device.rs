//! A problem in the interpreter's memory, and the schedules that compute it there: every table and buffer is an
//! allocation of its own, of its exact size.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use attention_rollout::cuda::address::{Address, Base, Bases};
use attention_rollout::cuda::kernel::{
    Fusion, Kernel, MatrixStream, Reading, RingMatrix, RingRows, RolloutRows, RowsStream,
    ScoreSets, ScoreStream, Sets, ShortRows, ShortScores, Splits,
};
use attention_rollout::cuda::launch::MAX_WORDS;
use attention_rollout::cuda::pipeline::Pipeline;
use attention_rollout::cuda::variant::{Entry, Variant};
use attention_rollout::cuda::{DeviceLimits, Schedule};
use attention_rollout::{DType, HostLayer, HostTensor, Problem};
use ptxemu::{Memory, Report};

use crate::cases::{MatrixWay, Path, StreamWay};
use crate::lab::{Lab, Machine};

/// A problem in device memory.
pub struct Device<'a> {
    lab: &'a Lab,
    problem: &'a Problem,
    memory: Rc<Memory>,
    /// Where each layer's tensors begin.
    layers: Vec<Vec<u64>>,
    /// What launches run on, but for the architecture.
    pub machine: Machine,
    /// What launches are laid out for. One, so that blocks are many.
    pub multiprocessors: u32,
    /// Kernels launched, with what they did.
    pub reports: RefCell<Vec<(Arc<Variant>, Report)>>,
}

/// A schedule with memory for all that it works on.
pub struct Prepared {
    pub schedule: Schedule,
    pub bases: Bases,
    pub output: u64,
}

impl<'a> Device<'a> {
    /// Uploads `layers`, each tensor `offset` bytes into its allocation, which ends with it; a second one, where the first is
    /// not at its beginning, 12 bytes further on, so that it has an alignment of its own. A third holds f32.
    pub fn new(
        lab: &'a Lab,
        problem: &'a Problem,
        layers: &[HostLayer<'_>],
        offset: usize,
    ) -> Self {
        Device::beside(Rc::default(), lab, problem, layers, offset)
    }

    /// As [`new`](Device::new), in memory that others use too.
    pub fn beside(
        memory: Rc<Memory>,
        lab: &'a Lab,
        problem: &'a Problem,
        layers: &[HostLayer<'_>],
        offset: usize,
    ) -> Self {
        let layers = layers
            .iter()
            .map(|layer| {
                let further = if offset == 0 { 0 } else { 12 };
                let labels = match layer {
                    HostLayer::QueriesKeys { .. } => ["queries", "keys", "LSE"],
                    _ => ["maps", "gradients", ""],
                };
                let offsets = [offset, offset + further, offset.next_multiple_of(4)];
                let tensors = layer.operands().zip(labels.into_iter().zip(offsets));
                let upload =
                    |(tensor, (label, offset)): (&HostTensor<'_>, (&'static str, usize))| {
                        let bytes = tensor.bytes();
                        let base = memory.alloc(offset + bytes.len());
                        memory.label(base, label);
                        memory.write(base + offset as u64, bytes).unwrap();
                        base + offset as u64
                    };
                tensors.map(upload).collect()
            })
            .collect();
        Device {
            lab,
            problem,
            memory,
            layers,
            machine: Machine::OLDEST,
            multiprocessors: 1,
            reports: RefCell::default(),
        }
    }

    /// Puts other layers in the place of those that it has.
    pub fn replace(&self, layers: &[HostLayer<'_>]) {
        for (addresses, layer) in self.layers.iter().zip(layers) {
            for (&address, tensor) in addresses.iter().zip(layer.operands()) {
                self.memory.write(address, tensor.bytes()).unwrap();
            }
        }
    }

    /// Addresses of the layers' tensors, layer by layer.
    pub fn layers(&self) -> impl Iterator<Item = u64> {
        self.layers.iter().flatten().copied()
    }

    /// Whether all layers begin at multiples of 16 bytes.
    pub fn aligned(&self) -> bool {
        self.layers().all(|address| address.is_multiple_of(16))
    }

    /// The schedule of `path`, and memory for it.
    pub fn prepare(&self, path: Path) -> Prepared {
        let batch = self.problem.shape().batch;
        let limits = DeviceLimits {
            l2_bytes: path.l2_bytes(),
            multiprocessors: self.multiprocessors,
            ..DeviceLimits::H200
        };
        let schedule = pipeline(self.problem, path).schedule(self.problem, batch, &limits);
        let mut bases = schedule.bases();
        for table in schedule.tables() {
            let at = self.memory.alloc(table.bytes.len());
            self.memory.write(at, &table.bytes).unwrap();
            bases.place(table.base, at);
        }
        for (index, &bytes) in schedule.buffers().iter().enumerate() {
            bases.place(Base::Buffer(index), self.memory.alloc(bytes));
        }
        for (layer, addresses) in self.layers.iter().enumerate() {
            for (operand, &address) in addresses.iter().enumerate() {
                bases.place(Base::Layer { layer, operand }, address);
            }
        }
        let output = self.memory.alloc(4 * self.problem.output_len());
        bases.place(Base::Output, output);
        Prepared {
            schedule,
            bases,
            output,
        }
    }

    /// The output of a schedule that has run.
    pub fn download(&self, output: u64) -> Vec<f32> {
        let mut out = vec![0f32; self.problem.output_len()];
        self.memory
            .read(output, bytemuck::cast_slice_mut(&mut out))
            .unwrap();
        out
    }

    /// Fills a table of a schedule with NaN.
    pub fn poison(&self, prepared: &Prepared, base: Base) {
        let len = self.table::<f32>(prepared, base).len();
        let at = prepared.bases.resolve(Address::of(base));
        let values = vec![f32::NAN; len];
        self.memory
            .write(at, bytemuck::cast_slice(&values))
            .unwrap();
    }

    /// A table of a schedule as it is now; nothing where it has none.
    pub fn table<T: bytemuck::Pod>(&self, prepared: &Prepared, base: Base) -> Vec<T> {
        let mut tables = prepared.schedule.tables().iter();
        let bytes = tables
            .find(|table| table.base == base)
            .map_or(0, |table| table.bytes.len());
        let mut values = vec![T::zeroed(); bytes / size_of::<T>()];
        let from = prepared.bases.resolve(Address::of(base));
        self.memory
            .read(from, bytemuck::cast_slice_mut(&mut values))
            .unwrap();
        values
    }

    /// Computes the problem by `path`, one launch after the other.
    pub fn run(&self, path: Path) -> Result<Vec<f32>, String> {
        self.submit(path, &self.prepare(path))
    }

    /// The same by a schedule that may have run before.
    pub fn submit(&self, path: Path, prepared: &Prepared) -> Result<Vec<f32>, String> {
        let machine = Machine {
            arch: path.arch(),
            ..self.machine
        };
        for step in prepared.schedule.steps() {
            let launch = step.launch(self.aligned());
            // What a kernel should not look at is not there.
            let mut params = [u64::MAX; MAX_WORDS];
            launch.link(&prepared.bases, &mut params);
            let variant = launch.variant();
            let kernel = (Entry::Alone, &**variant);
            let params = bytemuck::cast_slice(&params);
            let geometry = *launch.geometry();
            let launched = self
                .lab
                .launch_on(machine, &self.memory, kernel, geometry, params);
            self.reports.borrow_mut().push((variant.clone(), launched?));
        }
        Ok(self.download(prepared.output))
    }
}

/// The pipeline of `path`, with the smallest kernels that take `problem`.
fn pipeline(problem: &Problem, path: Path) -> Pipeline {
    match path {
        Path::Rows(blocks) => rows(problem, blocks, false),
        Path::RowsCluster(blocks) => rows(problem, blocks, true),
        Path::RingMatrix(way) => ring_matrix(problem, way),
        Path::Product(arithmetic, form) => Pipeline::Product { arithmetic, form },
        Path::Stream(way) => stream(problem, way),
        Path::ScoreRows(splits) => Pipeline::ScoreRows(splits),
        Path::ScoreStream { sets, head_splits } => score_stream(problem, sets, head_splits),
        Path::ScoreShort(query_splits) => Pipeline::ShortRows(ShortRows {
            kernel: ShortScores::of(problem, 1).expect("one row of plain scores"),
            query_splits,
        }),
        Path::Tree { kernel, .. } => Pipeline::Tree(Some(kernel)),
    }
}

/// Whether there is something to do to fused maps before the residual, or no map but queries and keys.
fn is_fused_first(problem: &Problem) -> bool {
    let config = problem.config();
    problem.queries_keys().is_some()
        || config.discard.is_some()
        || !config.exclude_from_attention.is_empty()
}

/// The stream of the matrix with the smallest kernel that takes `problem`, in little shared memory.
fn ring_matrix(problem: &Problem, way: MatrixWay) -> Pipeline {
    let window_len = problem.windows().iter().map(|window| window.len).max();
    let mut limits = MatrixStream::TOKENS.into_iter();
    let least = limits.find(|&limit| window_len <= Some(limit as usize));
    let config = problem.config();
    let fused = is_fused_first(problem) || config.gradients.is_some();
    let (dtype, fusion, heads) = match fused {
        true => (DType::F32, Fusion::Mean, 1),
        false => (
            problem.dtype(),
            Fusion::from(&config.head_fusion),
            problem.shape().heads,
        ),
    };
    let kernel = MatrixStream {
        dtype,
        arithmetic: way.arithmetic,
        tokens: way.tokens.or(least).unwrap(),
        fusion,
    };
    let extents = [problem.shape().tokens as u32, heads as u32];
    let most = DeviceLimits::H200.shared_bytes_per_block;
    let short = kernel.variant().shared_bytes as usize + (28 << 10);
    let ring = kernel.ring(extents, short.min(most), way.grouped);
    let ring = ring.or_else(|| kernel.ring(extents, most, way.grouped));
    let batch = problem.shape().batch as u32;
    Pipeline::RingMatrix(RingMatrix {
        kernel,
        sets: if way.grouped {
            batch
        } else {
            batch.clamp(1, 2)
        },
        ring: ring.unwrap_or_else(|| panic!("{kernel:?} takes no {extents:?}")),
    })
}

/// The stream with the smallest kernel that takes `problem`, in little shared memory.
fn stream(problem: &Problem, way: StreamWay) -> Pipeline {
    let config = problem.config();
    let fused = is_fused_first(problem);
    let fusion = Fusion::from(&config.head_fusion);
    let gradients = config.gradients.is_some();
    let (reading, heads) = match fused || gradients && !RowsStream::weighs(fusion) {
        true => (Reading::FUSED, 1),
        false => {
            let dtype = problem.dtype();
            let reading = Reading {
                dtype,
                fusion,
                gradients,
            };
            (reading, problem.shape().heads)
        }
    };
    let start_rows = problem.start_rows();
    let rows = if start_rows == 1 { 1 } else { 8 };
    let tokens = problem.shape().tokens as u32;
    let mut kernel = RowsStream::for_rows(reading, rows, tokens);
    kernel.columns = way.columns.unwrap_or(kernel.columns);
    let StreamWay { sets, .. } = way;
    let sets = Sets {
        sets: sets.sets.min(problem.shape().batch as u32),
        ..sets
    };
    let extents = [tokens, heads as u32, start_rows as u32];
    let ring = kernel.ring(extents, sets, way.shared_bytes, way.sharing);
    Pipeline::RingRows(RingRows {
        kernel,
        sets,
        ring: ring.unwrap_or_else(|| panic!("{way:?} takes no {extents:?}")),
    })
}

fn score_stream(problem: &Problem, sets: u32, head_splits: u32) -> Pipeline {
    let windows = problem.windows().iter().map(|window| window.len);
    let window_len = problem.max_window().or(windows.max()).unwrap_or(0) as u32;
    let kernel = ScoreStream::of(problem, window_len).expect("one row of scores");
    let source = problem.queries_keys().expect("queries and keys");
    Pipeline::ScoreStream(ScoreSets {
        kernel,
        sets: sets.min(problem.shape().batch as u32),
        head_splits,
        key_blocks: kernel.key_blocks(source, window_len),
    })
}

fn rows(problem: &Problem, blocks: u32, clustered: bool) -> Pipeline {
    let start_rows = problem.start_rows();
    let mut held = RolloutRows::ROWS.into_iter();
    Pipeline::Rows {
        rows: held.find(|&held| start_rows <= held as usize).unwrap(),
        splits: Splits { blocks, clustered },
    }
}
