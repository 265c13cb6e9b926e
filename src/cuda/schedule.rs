//! What a plan will launch: variants, extents and where operands lie, without an address in it.
//!
//! A [`Schedule`] is a value that the heuristics make for any device, real or made up. It prints itself. A plan gives
//! it addresses and launches it.

use std::fmt;
use std::ops::Range;

use super::constants::Constants;
use super::geometry::{Columns, Extents, Geometry, Splits};
use super::limits::DeviceLimits;
use super::pipelines::Pipeline;
use super::variant::Variant;
use crate::dtype::DType;

/// Memory that the operands of a launch lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Region {
    /// The plan's workspace.
    Workspace,
    /// What the plan uploaded when it was made.
    Constants,
    /// The caller's output.
    Output,
}

/// A place in a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub region: Region,
    /// In bytes.
    pub offset: usize,
}

/// One f32 matrix per item; strides in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Matrix {
    pub place: Place,
    pub stride_batch: usize,
    pub stride_row: usize,
}

impl Matrix {
    /// The matrices without those of the first `item` items.
    pub fn skip_items(mut self, item: usize) -> Self {
        self.place.offset += size_of::<f32>() * item * self.stride_batch;
        self
    }
}

/// Fused maps in window coordinates, `[layers, items, len, len]` with rows padded to 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fused {
    pub maps: Matrix,
    pub stride_layer: usize,
}

impl Fused {
    /// The maps of the layer `index` layers later.
    pub fn layer(&self, index: usize) -> Matrix {
        let mut maps = self.maps;
        maps.place.offset += size_of::<f32>() * self.stride_layer * index;
        maps
    }
}

/// Where a kernel that fuses heads finds its maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The caller's layers.
    Layers,
    /// Fused maps; its first layer is the first of the launch.
    Fused(Fused),
}

/// One fused layer as the factor of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Factor {
    pub maps: Matrix,
    /// The layer whose residual weights make it `Ahat`; `None` takes the maps as they are.
    pub layer: Option<usize>,
    /// Cuts `[items]`, where entries are discarded.
    pub cuts: Option<Place>,
    /// Reciprocal row sums `[items, tokens]`, where rows are normalised.
    pub scales: Option<Place>,
}

/// What a step does with which operands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Work {
    ZeroFill {
        out: Place,
        /// Entries.
        len: usize,
    },
    RolloutRows {
        source: Source,
        layers: Range<usize>,
        cuts: Option<Place>,
        partials_in: Option<(Place, u32)>,
        partials_out: Option<Place>,
    },
    RolloutChain {
        source: Source,
        layers: Range<usize>,
        cuts: Option<Place>,
        /// The output holds the product of the later layers.
        resumes: bool,
    },
    HeadFusion {
        layers: Range<usize>,
        fused: Fused,
    },
    Discard {
        fused: Fused,
        layers: usize,
        cuts: Place,
    },
    RowScales {
        factor: Factor,
        scales: Place,
    },
    RolloutFirst {
        factor: Factor,
        out: Matrix,
        windowed: bool,
    },
    RolloutProduct {
        factor: Factor,
        state: Matrix,
        out: Matrix,
        /// Rows of the state; 0: as many as the window has tokens.
        rows: u32,
        windowed: bool,
    },
}

/// The stream of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// The caller's.
    Main,
    /// The plan's own, beside the caller's.
    Side,
}

/// One submission to the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub variant: Variant,
    pub work: Work,
    pub items: Range<usize>,
    /// Rows that the launch geometry counts: see [`Extents::rows`].
    pub rows: u32,
    pub splits: Splits,
    pub lane: Lane,
    /// Event that the step waits for.
    pub wait: Option<usize>,
    /// Event that marks the step's end.
    pub signal: Option<usize>,
}

/// The extents that all launches of a schedule share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Common {
    pub dtype: DType,
    pub tokens: u32,
    /// Tokens of the longest window.
    pub window_len: u32,
    /// Every row of every window starts at a multiple of 16 bytes if the maps' first elements do.
    pub aligned: bool,
}

impl Common {
    /// How the columns of the longest row of `source` are divided.
    pub(super) fn columns(&self, source: Source, bases_aligned: bool) -> Columns {
        let (dtype, aligned) = match source {
            Source::Fused(_) => (DType::F32, true),
            Source::Layers => (self.dtype, self.aligned && bases_aligned),
        };
        Columns::new(dtype, self.window_len, aligned)
    }
}

/// What a plan will launch, for one problem on one device.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    pub(super) title: String,
    pub(super) pipeline: Pipeline,
    /// Items of one run.
    pub(super) batch: usize,
    pub(super) common: Common,
    pub(super) variants: Vec<Variant>,
    pub(super) steps: Vec<Step>,
    pub(super) workspace_bytes: usize,
    pub(super) constants: Constants,
    pub(super) map_bytes: usize,
    pub(super) output_bytes: usize,
    /// Bytes of intermediate results that do not stay in L2.
    pub(super) spilled_bytes: usize,
    pub(super) events: usize,
    /// One past the last step of each pushed layer, where layers are pushed one by one.
    pub(super) pushes: Vec<usize>,
}

impl Step {
    /// How the step's kernel is launched; `bases_aligned` tells whether every layer's first element is 16-byte aligned.
    pub(super) fn geometry(&self, common: &Common, bases_aligned: bool) -> (Geometry, Columns) {
        let source = match self.work {
            Work::RolloutRows { source, .. } | Work::RolloutChain { source, .. } => source,
            _ => Source::Layers,
        };
        let mut columns = common.columns(source, bases_aligned);
        let layers = match &self.work {
            Work::RolloutRows { layers, .. }
            | Work::RolloutChain { layers, .. }
            | Work::HeadFusion { layers, .. } => layers.len(),
            Work::Discard { layers, .. } => *layers,
            _ => 1,
        };
        if layers == 0 {
            // A reduction reads all columns and writes them once.
            columns.tiles = 1;
        }
        let batch = match self.work {
            Work::ZeroFill { len, .. } => len.div_ceil(Variant::FILL_PIECE as usize),
            _ => self.items.len(),
        };
        let geometry = self.variant.geometry(&Extents {
            batch: batch as u32,
            layers: layers as u32,
            tokens: common.tokens,
            window_len: common.window_len,
            rows: self.rows,
            splits: self.splits,
            columns,
        });
        (geometry, columns)
    }
}

impl Schedule {
    /// The kernels, each once, in order of first use.
    pub fn variants(&self) -> &[Variant] {
        &self.variants
    }

    pub(super) fn pipeline(&self) -> Pipeline {
        self.pipeline
    }

    /// Bytes of device memory that a plan allocates besides constants.
    pub fn workspace_bytes(&self) -> usize {
        self.workspace_bytes
    }

    /// Bytes of device memory for windows, weights and start rows.
    pub fn constants_bytes(&self) -> usize {
        self.constants.bytes.len()
    }

    /// Bytes that have to cross the memory bus whatever the kernels are: every map once, the output once.
    pub fn floor_bytes(&self) -> usize {
        self.map_bytes + self.output_bytes
    }

    /// Bytes that these kernels move across the memory bus: the floor, and intermediate results written and read again
    /// where they are more than L2 holds.
    pub fn moved_bytes(&self) -> usize {
        self.floor_bytes() + self.spilled_bytes
    }

    /// Kernels that one run launches.
    pub fn launches(&self) -> usize {
        self.steps.len()
    }

    /// Whether some steps run on the plan's own stream, beside the caller's.
    pub(super) fn has_two_lanes(&self) -> bool {
        self.steps.iter().any(|step| step.lane == Lane::Side)
    }

    /// Largest dynamic shared memory that `variant` is launched with.
    pub(super) fn shared_bytes(&self, variant: &Variant) -> usize {
        let launches = self.steps.iter().filter(|step| step.variant == *variant);
        launches
            .flat_map(|step| [false, true].map(|aligned| step.geometry(&self.common, aligned).0))
            .map(|geometry| geometry.shared_bytes as usize)
            .max()
            .unwrap_or(0)
    }
}

/// Bytes of L2 that data passed between kernels may take: the rest is for maps streaming through.
pub(super) fn l2_budget(limits: &DeviceLimits) -> usize {
    limits.l2_bytes / 5 * 4
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title)?;
        writeln!(
            f,
            "  launches {}, workspace {} B, constants {} B, moves {} B, floor {} B ({} B maps, {} B output)",
            self.launches(),
            self.workspace_bytes,
            self.constants_bytes(),
            self.moved_bytes(),
            self.floor_bytes(),
            self.map_bytes,
            self.output_bytes,
        )?;
        // Steps that look alike are counted, in order of first appearance.
        let mut lines: Vec<(String, usize)> = Vec::new();
        for step in &self.steps {
            let (geometry, _) = step.geometry(&self.common, true);
            let line = format!("{}: {geometry}", step.variant);
            match lines.iter_mut().find(|(seen, _)| *seen == line) {
                Some((_, count)) => *count += 1,
                None => lines.push((line, 1)),
            }
        }
        for (line, count) in lines {
            writeln!(f, "  {count} x {line}")?;
        }
        Ok(())
    }
}
