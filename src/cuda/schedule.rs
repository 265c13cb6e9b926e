//! What a plan will launch, without an address in it.
//!
//! A [`Schedule`] is a value that is made for any device, real or made up. It prints itself. A plan gives the
//! [bases](super::launch::Base) of its launches their addresses, and submits them.

use std::fmt;
use std::sync::Arc;

use super::address::{Base, Bases};
use super::launch::Launch;
use super::limits::DeviceLimits;
use super::options::LayerOrder;
use super::pipeline::choice::Pipeline;
use super::variant::Variant;

/// Buffers and tables start at multiples of this: a cache line, and more than any load asks for.
pub(super) const PART_ALIGNMENT: usize = 256;

/// What a plan uploads once, when it is made, for the items of its problem: windows, head weights, discard counts or
/// start rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// What its launches know it by.
    pub base: Base,
    /// The bytes, ready to copy.
    pub bytes: Vec<u8>,
    /// From one item's to the next's; 0: all items share them.
    pub item_bytes: usize,
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
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The launch where the first elements of all layers are 16-byte aligned.
    pub(super) launch: Launch,
    /// The launch where they are not, if that makes a difference.
    pub(super) unaligned: Option<Box<Launch>>,
    pub(super) lane: Lane,
    /// Event that the step waits for.
    pub(super) wait: Option<usize>,
    /// Event that marks the step's end.
    pub(super) signal: Option<usize>,
}

impl Step {
    /// The launch for layers whose first elements are all at multiples of 16 bytes, or are not.
    pub fn launch(&self, bases_aligned: bool) -> &Launch {
        match &self.unaligned {
            Some(unaligned) if !bases_aligned => unaligned,
            _ => &self.launch,
        }
    }

    /// Both launches, where there are two.
    pub(super) fn launches(&self) -> impl Iterator<Item = &Launch> {
        std::iter::once(&self.launch).chain(self.unaligned.as_deref())
    }
}

/// What a plan will launch, for one problem on one device.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    pub(super) title: String,
    /// What laid it out.
    pub(super) pipeline: Pipeline,
    /// Items of one run.
    pub(super) batch: usize,
    /// Layers of the problem, also those outside its range.
    pub(super) layers: usize,
    /// Tensors of each layer.
    pub(super) operands: usize,
    pub(super) variants: Vec<Arc<Variant>>,
    pub(super) steps: Vec<Step>,
    /// Sizes of the buffers in bytes.
    pub(super) buffers: Vec<usize>,
    pub(super) tables: Vec<Table>,
    pub(super) map_bytes: usize,
    pub(super) output_bytes: usize,
    /// Bytes of intermediate results that do not stay in L2.
    pub(super) spilled_bytes: usize,
    pub(super) events: usize,
    /// How layers are pushed, where they are pushed one by one.
    pub(super) order: Option<LayerOrder>,
    /// One past the last step of each, as they are pushed.
    pub(super) pushes: Vec<usize>,
    /// What makes tables of what a run is given, before its first step, where it is given something.
    pub(super) inputs: Option<Launch>,
}

impl Schedule {
    /// What laid it out.
    pub fn pipeline(&self) -> Pipeline {
        self.pipeline
    }

    /// The kernels, each once, in order of first use.
    pub fn variants(&self) -> &[Arc<Variant>] {
        &self.variants
    }

    /// The submissions, in order.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Sizes of the buffers that the launches share, in bytes.
    pub fn buffers(&self) -> &[usize] {
        &self.buffers
    }

    /// What a run finds in memory besides its maps.
    pub fn tables(&self) -> &[Table] {
        &self.tables
    }

    /// Room for the bases of the launches.
    pub fn bases(&self) -> Bases {
        Bases::new(self.buffers.len(), self.layers)
    }

    /// The base of the tensor that is number `index` of all layers' tensors.
    pub(super) fn tensor(&self, index: usize) -> Base {
        Base::Layer {
            layer: index / self.operands,
            operand: index % self.operands,
        }
    }

    /// Bytes of device memory that a run works in, which hold nothing between runs.
    pub fn workspace_bytes(&self) -> usize {
        bytes_of_parts(self.buffers.iter().copied())
    }

    /// Bytes of device memory that is the plan's own: windows, weights, start rows, and what kernels keep from run to run.
    pub fn constants_bytes(&self) -> usize {
        bytes_of_parts(self.tables.iter().map(|table| table.bytes.len()))
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

    /// Lets the buffers begin in a workspace at `address`.
    pub(super) fn place_buffers(&self, bases: &mut Bases, address: u64) {
        for (index, offset) in offsets(self.buffers.iter().copied()).enumerate() {
            bases.place(Base::Buffer(index), address + offset as u64);
        }
    }

    /// The tables as they lie in one piece of memory.
    pub(super) fn table_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.constants_bytes());
        for (table, offset) in self.tables.iter().zip(self.table_offsets()) {
            bytes.resize(offset, 0);
            bytes.extend_from_slice(&table.bytes);
        }
        bytes
    }

    /// Lets the tables begin in memory at `address`, those that are by item with item `first`.
    pub(super) fn place_tables(&self, bases: &mut Bases, address: u64, first: usize) {
        for (table, offset) in self.tables.iter().zip(self.table_offsets()) {
            let offset = offset + table.item_bytes * first;
            bases.place(table.base, address + offset as u64);
        }
    }

    fn table_offsets(&self) -> impl Iterator<Item = usize> {
        offsets(self.tables.iter().map(|table| table.bytes.len()))
    }

    /// Whether some steps run on the plan's own stream, beside the caller's.
    pub(super) fn has_two_lanes(&self) -> bool {
        self.steps.iter().any(|step| step.lane == Lane::Side)
    }

    /// Largest dynamic shared memory that `variant` is launched with.
    pub(super) fn shared_bytes(&self, variant: &Variant) -> usize {
        let launches = self.steps.iter().flat_map(Step::launches);
        launches
            .filter(|launch| **launch.variant() == *variant)
            .map(|launch| launch.geometry().shared_bytes as usize)
            .max()
            .unwrap_or(0)
    }
}

/// Where parts of these sizes begin, one after the other.
fn offsets(parts: impl Iterator<Item = usize>) -> impl Iterator<Item = usize> {
    parts.scan(0, |end: &mut usize, bytes| {
        let start = end.next_multiple_of(PART_ALIGNMENT);
        *end = start + bytes;
        Some(start)
    })
}

/// Bytes that parts of these sizes take one after the other.
pub(super) fn bytes_of_parts(parts: impl Iterator<Item = usize> + Clone) -> usize {
    let starts = offsets(parts.clone());
    let ends = starts.zip(parts).map(|(start, bytes)| start + bytes);
    ends.last().unwrap_or(0)
}

/// Bytes of L2 that data passed between kernels may take: the rest is for maps streaming through.
pub(super) fn l2_budget(limits: &DeviceLimits) -> usize {
    limits.l2_bytes / 5 * 4
}

/// Of at most `most` items, each of which takes so many bytes of fused maps and states, those that stay in L2 together: one at
/// least.
pub(super) fn items_in_l2(limits: &DeviceLimits, item_bytes: usize, most: usize) -> usize {
    (l2_budget(limits) / item_bytes.max(1)).clamp(1, most.max(1))
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title)?;
        writeln!(
            f,
            "  launches {}, workspace {} B, constants {} B, moves {} B, floor {} B ({} B maps, {} B output)",
            self.launches(),
            self.workspace_bytes(),
            self.constants_bytes(),
            self.moved_bytes(),
            self.floor_bytes(),
            self.map_bytes,
            self.output_bytes,
        )?;
        // Launches that look alike are counted, in order of first appearance.
        let mut lines: Vec<(String, usize)> = Vec::new();
        for Step { launch, .. } in &self.steps {
            let line = format!("{}: {}", launch.variant().symbol, launch.geometry());
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
