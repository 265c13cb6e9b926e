//! Whole rollouts from kernel launches, as a host would issue them, with buffers of exact size.

mod chain;
mod product;
mod rows;
mod sources;

use std::cell::RefCell;
use std::rc::Rc;

use attention_rollout::cuda::entry::Entry;
use attention_rollout::cuda::geometry::{Columns, Extents, Geometry, Splits};
use attention_rollout::cuda::params::Window;
use attention_rollout::cuda::variant::Variant;
use attention_rollout::{HeadFusion, Problem};
use ptxemu::{Memory, Report};

use crate::cases::Path;
use crate::lab::Lab;
use crate::maps::Layer;

/// One launch, as recorded.
pub struct Launch {
    pub variant: Variant,
    pub geometry: Geometry,
    pub params: Vec<u8>,
}

/// A problem in device memory. Its kernels are recorded first, and then launched.
pub struct Device<'a> {
    lab: &'a Lab,
    problem: &'a Problem,
    pub memory: Rc<Memory>,
    /// Address of each layer's first element.
    bases: Vec<u64>,
    windows: u64,
    head_weights: u64,
    window_len: u32,
    launches: RefCell<Vec<Launch>>,
    /// Variants launched, with what they did.
    pub reports: RefCell<Vec<(Variant, Report)>>,
}

impl<'a> Device<'a> {
    /// Uploads `layers`, each `offset` bytes into its allocation, which ends with the layer.
    pub fn new(lab: &'a Lab, problem: &'a Problem, layers: &[Layer], offset: usize) -> Self {
        Device::beside(Rc::default(), lab, problem, layers, offset)
    }

    /// As [`new`](Device::new), in memory that others use too.
    pub fn beside(
        memory: Rc<Memory>,
        lab: &'a Lab,
        problem: &'a Problem,
        layers: &[Layer],
        offset: usize,
    ) -> Self {
        let bases = layers
            .iter()
            .map(|layer| {
                let bytes = layer.bytes();
                let base = memory.alloc(offset + bytes.len());
                memory.label(base, "maps");
                memory.write(base + offset as u64, bytes).unwrap();
                base + offset as u64
            })
            .collect();
        let upload = |bytes: &[u8]| {
            let base = memory.alloc(bytes.len());
            memory.write(base, bytes).unwrap();
            base
        };
        let windows: Vec<Window> = problem.windows().iter().map(|&w| w.into()).collect();
        let head_weights = match &problem.config().head_fusion {
            HeadFusion::Weighted(weights) => upload(bytemuck::cast_slice(weights)),
            _ => 0,
        };
        let windows = upload(bytemuck::cast_slice(&windows));
        let window_len = problem.windows().iter().map(|w| w.len).max().unwrap_or(0) as u32;
        Device {
            lab,
            problem,
            bases,
            windows,
            head_weights,
            window_len,
            memory,
            launches: RefCell::default(),
            reports: RefCell::default(),
        }
    }

    fn upload<T: bytemuck::NoUninit>(&self, data: &[T]) -> u64 {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        let base = self.memory.alloc(bytes.len());
        self.memory.write(base, bytes).unwrap();
        base
    }

    fn floats(&self, len: usize) -> u64 {
        self.memory.alloc(4 * len)
    }

    /// The output at `base`.
    pub fn download(&self, base: u64) -> Vec<f32> {
        let mut out = vec![0f32; self.problem.output_len()];
        self.memory
            .read(base, bytemuck::cast_slice_mut(&mut out))
            .unwrap();
        out
    }

    fn launch<P: bytemuck::Pod>(&self, variant: Variant, extents: &Extents, params: &P) {
        self.launches.borrow_mut().push(Launch {
            variant,
            geometry: variant.geometry(extents),
            params: bytemuck::bytes_of(params).to_vec(),
        });
    }

    /// The launches of `path`, and where the output will be.
    pub fn record(&self, path: Path) -> (Vec<Launch>, u64) {
        let out = match path {
            Path::Rows(blocks) => self.rows(Splits {
                blocks,
                clustered: false,
            }),
            Path::RowsCluster(blocks) => self.rows(Splits {
                blocks,
                clustered: true,
            }),
            Path::Chain(arithmetic) => self.chain(arithmetic),
            Path::Product(arithmetic, form) => self.product(arithmetic, form),
        };
        (self.launches.take(), out)
    }

    /// Computes the problem by `path`, one kernel after the other.
    pub fn run(&self, path: Path) -> Result<Vec<f32>, String> {
        let (launches, out) = self.record(path);
        for launch in launches {
            let kernel = (Entry::Alone, &launch.variant);
            let report = self
                .lab
                .launch(&self.memory, kernel, launch.geometry, &launch.params)?;
            self.reports.borrow_mut().push((launch.variant, report));
        }
        Ok(self.download(out))
    }

    fn dims(&self) -> (u32, u32) {
        let shape = self.problem.shape();
        (shape.batch as u32, shape.tokens as u32)
    }

    fn extents(&self, layers: usize, columns: Columns) -> Extents {
        let (batch, tokens) = self.dims();
        Extents {
            batch,
            layers: layers as u32,
            tokens,
            window_len: self.window_len,
            rows: self.window_len,
            splits: Splits::ONE,
            columns,
        }
    }

    /// Start weights `[batch, rows, pitch]`, zeros beyond each window.
    fn start_weights(&self, tokens: usize, pitch: usize) -> Vec<f32> {
        let rows = self.problem.start_rows();
        let mut weights = vec![0.0; self.problem.shape().batch * rows * pitch];
        for (slot, row) in weights.chunks_exact_mut(pitch).enumerate() {
            let (item, m) = (slot / rows, slot % rows);
            let len = self.problem.windows()[item].len.min(tokens);
            self.problem.start_weights(item, m, &mut row[..len]);
        }
        weights
    }
}
