//! Collects launches and the buffers they share.

use std::ops::Range;
use std::sync::Arc;

use super::choice::Pipeline;
use super::common::{Common, cuts_when_read, operands, output_len};
use super::tables::tables;
use crate::cuda::address::{Address, Base};
use crate::cuda::evidence::Evidence;
use crate::cuda::kernel::{
    Columns, Exclude, FindCuts, FuseHeads, FuseScores, Fused, MAX_LAYERS_PER_LAUNCH,
    MAX_SCORE_LAYERS, MapSource, Matrices, Reading, ScoreOperands, SumRows, SumScores, TakeInputs,
    ZeroFill, padded, sum_floats,
};
use crate::cuda::launch::Launch;
use crate::cuda::limits::DeviceLimits;
use crate::cuda::options::LayerOrder;
use crate::cuda::schedule::{Lane, Schedule, Step, Table, bytes_of_parts, items_in_l2, l2_budget};
use crate::cuda::variant::Variant;
use crate::layout::Shape;
use crate::problem::Problem;
use crate::queries_keys::QueriesKeys;

pub(super) struct Builder<'a> {
    pub pipeline: Pipeline,
    pub problem: &'a Problem,
    /// Items of one run.
    pub batch: usize,
    /// Items for which buffers have room.
    pub room: usize,
    pub common: Common,
    pub normalize: bool,
    /// Kernels that read fused maps discard entries by their cuts.
    pub discard: bool,
    pub steps: Vec<Step>,
    /// How layers are pushed, where they are pushed one by one.
    pub order: Option<LayerOrder>,
    /// One past the last step of each, as they are pushed.
    pub pushes: Vec<usize>,
    /// From one start row to the next, in elements.
    start_stride: usize,
    /// Sums by which rows of scores are normalised: one launch of layers after the other.
    sums: Option<Address>,
    pub limits: &'a DeviceLimits,
    variants: Vec<Arc<Variant>>,
    buffers: Vec<usize>,
    events: usize,
    tables: Vec<Table>,
}

impl<'a> Builder<'a> {
    pub fn new(
        pipeline: Pipeline,
        problem: &'a Problem,
        batch: usize,
        room: usize,
        limits: &'a DeviceLimits,
        start_stride: usize,
    ) -> Self {
        let mut builder = Builder {
            pipeline,
            problem,
            batch,
            room,
            limits,
            common: Common::new(problem),
            normalize: problem.config().normalize_rows,
            discard: cuts_when_read(problem),
            steps: Vec::new(),
            order: None,
            pushes: Vec::new(),
            start_stride,
            sums: None,
            variants: Vec::new(),
            buffers: Vec::new(),
            events: 0,
            tables: tables(problem, start_stride),
        };
        let evidence = Evidence::new(problem, pipeline, room, builder.common.window_len);
        for part in evidence.parts() {
            builder.zeroed(part.base, part.bytes());
        }
        builder
    }

    pub fn finish(self) -> Schedule {
        let problem = self.problem;
        let shape = Shape {
            batch: self.batch,
            ..*problem.shape()
        };
        let share = self.batch as f64 / problem.shape().batch.max(1) as f64;
        let spilled_bytes =
            if bytes_of_parts(self.buffers.iter().copied()) <= l2_budget(self.limits) {
                0
            } else {
                let steps = self.steps.iter();
                steps.map(|step| step.launch.intermediate_bytes).sum()
            };
        Schedule {
            pipeline: self.pipeline,
            title: format!("{shape} {}", problem.dtype()),
            batch: self.batch,
            layers: problem.shape().layers,
            operands: operands(problem),
            variants: self.variants,
            output_bytes: size_of::<f32>() * output_len(problem, self.batch),
            steps: self.steps,
            buffers: self.buffers,
            tables: self.tables,
            map_bytes: (problem.map_bytes() as f64 * share) as usize,
            spilled_bytes,
            events: self.events,
            order: self.order,
            pushes: self.pushes,
            inputs: (problem.has_run_inputs() && problem.shape().batch > 0)
                .then(|| TakeInputs.launch(problem, self.start_stride)),
        }
    }

    /// Items, each of which takes so many bytes of fused maps and states, that stay in L2 together: one at least.
    pub fn items_in_l2(&self, item_bytes: usize) -> usize {
        items_in_l2(self.limits, item_bytes, self.room)
    }

    /// Whether so many bytes stay in L2.
    pub fn stays_in_l2(&self, bytes: usize) -> bool {
        bytes <= l2_budget(self.limits)
    }

    /// Takes `floats` f32 values of workspace.
    pub fn buffer(&mut self, floats: usize) -> Address {
        self.buffers.push(size_of::<f32>() * floats);
        Address::of(Base::Buffer(self.buffers.len() - 1))
    }

    /// Lets `base` be so many bytes that are 0 when the plan is made, and the launches' own from then on.
    pub fn zeroed(&mut self, base: Base, bytes: usize) {
        if bytes > 0 {
            self.tables.push(Table {
                base,
                bytes: vec![0; bytes],
                item_bytes: 0,
            });
        }
    }

    /// A new event.
    pub fn event(&mut self) -> usize {
        self.events += 1;
        self.events - 1
    }

    /// Appends a launch.
    pub fn push(&mut self, launch: Launch) {
        self.push_either(launch, None);
    }

    /// Appends a launch that depends on how the columns of `source` are divided, which may depend on where layers begin.
    pub fn push_divided(&mut self, source: MapSource, launch: impl Fn(Columns) -> Launch) {
        let columns = |bases_aligned| self.common.columns(source, bases_aligned);
        let (aligned, unaligned) = (columns(true), columns(false));
        let other = (aligned != unaligned).then(|| launch(unaligned));
        let launch = launch(aligned);
        let other = other.filter(|other| *other != launch);
        self.push_either(launch, other);
    }

    fn push_either(&mut self, mut launch: Launch, mut unaligned: Option<Launch>) {
        let known = self.variants.iter().find(|known| **known == launch.variant);
        match known.cloned() {
            Some(known) => launch.variant = known,
            None => self.variants.push(launch.variant.clone()),
        }
        if let Some(unaligned) = &mut unaligned {
            unaligned.variant = launch.variant.clone();
        }
        self.steps.push(Step {
            launch,
            unaligned: unaligned.map(Box::new),
            lane: Lane::Main,
            wait: None,
            signal: None,
        });
    }

    /// Zeros for the whole output.
    pub fn zero_output(&mut self) {
        let len = output_len(self.problem, self.batch);
        if len > 0 {
            self.push(ZeroFill.launch(output(0), len));
        }
    }

    /// Elements of one item's fused map.
    pub fn fused_floats(&self) -> usize {
        self.common.fused_floats()
    }

    /// Room for fused maps `[layers, items, len, len]`, and for their cuts where the problem discards.
    pub fn fused_buffer(&mut self, layers: usize, items: usize) -> Fused {
        let stride_batch = self.fused_floats();
        let discards = self.problem.config().discard.is_some();
        let maps = self.buffer(layers * items * stride_batch);
        // The launches that use them follow one another, whichever maps they fill.
        if self.sums.is_none() {
            let window_len = self.common.window_len;
            let floats = sum_floats(self.problem, layers, items, window_len);
            self.sums = floats.map(|floats| self.buffer(floats));
        }
        Fused {
            maps: Matrices::new(maps, stride_batch, padded(self.common.window_len as usize)),
            stride_layer: items * stride_batch,
            cuts: discards.then(|| self.buffer(2 * layers * items)),
            cut: !self.discard,
        }
    }

    /// Fuses `layers` into `fused`, finds their cuts, and takes out excluded tokens.
    pub fn fuse(&mut self, items: &Range<usize>, layers: &Range<usize>, fused: Fused) {
        let (problem, window_len) = (self.problem, self.common.window_len);
        let excludes = !problem.config().exclude_from_attention.is_empty();
        let most = match problem.queries_keys() {
            Some(_) => MAX_SCORE_LAYERS,
            None => MAX_LAYERS_PER_LAUNCH,
        };
        for group in split(layers.clone(), most) {
            let fused = fused.skip_layers(group.start - layers.start, items.len());
            match problem.queries_keys() {
                Some(source) => self.fuse_scores(source, items, &group, fused),
                None => {
                    let reading = Reading::of_layers(problem);
                    let kernel = FuseHeads {
                        reading,
                        split: false,
                    };
                    let multiprocessors = self.limits.multiprocessors;
                    self.push(kernel.launch(
                        problem,
                        items,
                        &group,
                        window_len,
                        multiprocessors,
                        fused,
                    ));
                }
            }
            if let Some(cuts) = fused.cuts {
                let maps = items.len() * group.len();
                let divided = FindCuts::divide(maps, window_len, self.limits);
                self.push(FindCuts.launch(problem, items, group.len(), divided, fused, cuts));
            }
            if excludes {
                self.push(Exclude.launch(problem, items, group.len(), window_len, fused));
            }
        }
    }

    /// Fuses `layers`, as many as one launch takes, of queries and keys into `fused`.
    fn fuse_scores(
        &mut self,
        source: &QueriesKeys,
        items: &Range<usize>,
        layers: &Range<usize>,
        fused: Fused,
    ) {
        let (problem, window_len) = (self.problem, self.common.window_len);
        let operands = ScoreOperands {
            problem,
            source,
            layers,
            items,
            window_len,
            sums: self.sums,
        };
        let kernel = SumScores {
            dtype: problem.dtype(),
        };
        if self.sums.is_some() {
            self.push(kernel.launch(&operands));
        }
        self.push(FuseScores::launch(&operands, fused));
        let Evidence { masses, probes, .. } =
            Evidence::new(problem, self.pipeline, self.room, window_len);
        if let Some(probes) = probes {
            let to = probes.place(problem, layers, items);
            self.push(kernel.probe(&operands, to));
        }
        if let Some(masses) = masses {
            let to = masses.place(problem, layers, items);
            self.push(SumRows.launch(&operands, fused, to));
        }
    }

    /// Start rows from item `first` of a run on, and elements from one item's to the next's and from one row to the
    /// next.
    pub fn start(&self, first: usize) -> Matrices {
        let table = self.tables.iter().find(|table| table.base == Base::Start);
        let stride_bytes = table.map_or(0, |table| table.item_bytes);
        Matrices::new(
            Address::of(Base::Start) + first * stride_bytes,
            stride_bytes / size_of::<f32>(),
            self.start_stride,
        )
    }
}

/// The output from element `index` on.
pub(super) fn output(index: usize) -> Address {
    Address::of(Base::Output) + size_of::<f32>() * index
}

/// `layers` in groups that one launch can take.
pub(super) fn launch_groups(layers: &Range<usize>) -> Vec<Range<usize>> {
    split(layers.clone(), MAX_LAYERS_PER_LAUNCH)
}

/// The batch in chunks.
pub(super) fn chunks(batch: usize, chunk: usize) -> Vec<Range<usize>> {
    split(0..batch, chunk)
}

pub(super) fn split(range: Range<usize>, part: usize) -> Vec<Range<usize>> {
    range
        .clone()
        .step_by(part)
        .map(|start| start..range.end.min(start + part))
        .collect()
}
