//! The product pipeline: fused maps through L2, one product per layer.

use std::ops::Range;

use super::builder::{Builder, chunks, output};
use crate::config::{Output, Residual};
use crate::cuda::address::Address;
use crate::cuda::kernel::{
    Arithmetic, Form, Fused, FusedMaps, Matrices, RolloutFirst, RolloutProduct,
    RolloutProductParams, RowScales, padded,
};
use crate::cuda::schedule::Lane;

/// The fused maps that one `head_fusion` launch writes and the products that follow read.
#[derive(Clone, Copy)]
pub(super) struct Stage {
    pub fused: Fused,
    /// Row scales `[layers, items, tokens]`, and the bytes from one layer's to the next's.
    scales: Option<(Address, usize)>,
}

/// What orders the two lanes that share a stage.
#[derive(Clone, Copy)]
struct Turns {
    /// Event that marks the stage as written, and one that marks it as read.
    written: usize,
    read: usize,
    read_before: bool,
}

/// How a chunk of items goes through the layers.
struct Chunking {
    items: usize,
    /// Layers fused by one launch.
    layers: usize,
    /// Fused maps of the next layers are written while these are read.
    overlapped: bool,
}

/// How the steps of a product are computed.
pub(super) struct Steps {
    pub arithmetic: Arithmetic,
    pub form: Form,
}

impl Builder<'_> {
    /// Any output, chunk by chunk.
    pub(super) fn product(&mut self, arithmetic: Arithmetic, form: Form) {
        self.zero_outside_windows();
        let steps = Steps { arithmetic, form };
        let shape = self.chunk_shape(form);
        let stages = if shape.overlapped { 2 } else { 1 };
        let mut stages: Vec<(Stage, Option<Turns>)> = (0..stages)
            .map(|_| {
                let turns = shape.overlapped.then(|| Turns {
                    written: self.event(),
                    read: self.event(),
                    read_before: false,
                });
                (self.stage(shape.layers, shape.items), turns)
            })
            .collect();
        let states = self.state_buffers(form, shape.items);
        let mut turn = 0;
        for items in chunks(self.batch, shape.items) {
            let mut state = self.first_state(&items);
            let mut rooms = states.iter().cycle();
            for layers in self.layer_groups(form, shape.layers) {
                let stage = turn % stages.len();
                turn += 1;
                let (stage, turns) = &mut stages[stage];
                let first_fill = self.steps.len();
                self.fill(stage, &items, &layers, 0);
                let first_product = self.steps.len();
                let mut order: Vec<usize> = layers.clone().collect();
                if form == Form::Rows {
                    order.reverse();
                }
                for layer in order {
                    let factor = self.factor(stage, &items, layer, layer - layers.start);
                    let room = rooms.next().copied();
                    state = Some(self.multiply(&steps, &items, layer, factor, state, room));
                }
                if let Some(turns) = turns {
                    self.take_turns(turns, first_fill, first_product);
                }
            }
        }
    }

    /// Puts the steps that fill a stage, from `first_fill` on, beside those that read it, from `first_product` to the end.
    fn take_turns(&mut self, turns: &mut Turns, first_fill: usize, first_product: usize) {
        let (fills, products) = self.steps[first_fill..].split_at_mut(first_product - first_fill);
        for step in fills.iter_mut() {
            step.lane = Lane::Side;
        }
        if let Some(first) = fills.first_mut().filter(|_| turns.read_before) {
            first.wait = Some(turns.read);
        }
        if let Some(last) = fills.last_mut() {
            last.signal = Some(turns.written);
        }
        if let Some(first) = products.first_mut() {
            first.wait = Some(turns.written);
        }
        if let Some(last) = products.last_mut() {
            last.signal = Some(turns.read);
        }
        turns.read_before = true;
    }

    /// All layers of the whole batch at once where that stays in L2. Else two stages of one layer each, with as many
    /// items as stay in L2, the one written beside the products that read the other.
    fn chunk_shape(&self, form: Form) -> Chunking {
        let layers = self.problem.layers().len();
        let fused = size_of::<f32>() * self.fused_floats();
        let row = size_of::<f32>() * padded(self.common.tokens as usize);
        let state = row * self.state_rows(form);
        if self.stays_in_l2(self.room * (layers * fused + 2 * state)) {
            return Chunking {
                items: self.room,
                layers,
                overlapped: false,
            };
        }
        Chunking {
            items: self.items_in_l2(2 * fused + 2 * state),
            layers: 1,
            overlapped: true,
        }
    }

    /// Rows of a state.
    fn state_rows(&self, form: Form) -> usize {
        match (form, self.problem.start_rows()) {
            (Form::Rows, rows) if rows > 0 => rows,
            _ => self.common.window_len as usize,
        }
    }

    /// The layers in the order of the form, one at a time or all together.
    fn layer_groups(&self, form: Form, layers: usize) -> Vec<Range<usize>> {
        let range = self.problem.layers();
        if layers > 1 {
            return vec![range];
        }
        let groups = range.map(|layer| layer..layer + 1);
        match form {
            Form::Rows => groups.rev().collect(),
            Form::Matrix => groups.collect(),
        }
    }

    /// Products write windows only; what lies outside is 0.
    pub(super) fn zero_outside_windows(&mut self) {
        if self.problem.max_window().is_some() {
            self.zero_output();
        }
    }

    /// Room for fused maps with cuts and scales.
    pub(super) fn stage(&mut self, layers: usize, items: usize) -> Stage {
        let floats = items * self.common.tokens as usize;
        Stage {
            fused: self.fused_buffer(layers, items),
            scales: self
                .normalize
                .then(|| (self.buffer(layers * floats), size_of::<f32>() * floats)),
        }
    }

    /// The states that products read and write in turn; the last product writes the output.
    pub(super) fn state_buffers(&mut self, form: Form, items: usize) -> Vec<Matrices> {
        let stride_row = padded(self.common.tokens as usize);
        let stride_batch = self.state_rows(form) * stride_row;
        (1..self.problem.layers().len())
            .take(2)
            .map(|_| Matrices::new(self.buffer(items * stride_batch), stride_batch, stride_row))
            .collect()
    }

    /// The start rows, or nothing where the first layer is the first state.
    pub(super) fn first_state(&self, items: &Range<usize>) -> Option<Matrices> {
        (self.problem.start_rows() > 0).then(|| self.start(items.start))
    }

    /// Fuses `layers` into the layers of `stage` from `first` on, with cuts and row scales.
    pub(super) fn fill(
        &mut self,
        stage: &Stage,
        items: &Range<usize>,
        layers: &Range<usize>,
        first: usize,
    ) {
        self.fuse(items, layers, stage.fused.skip_layers(first, items.len()));
        for layer in layers.clone() {
            let index = first + layer - layers.start;
            if let Some(scales) = stage.scales(index) {
                let maps = self.factor(stage, items, layer, index);
                let window_len = self.common.window_len;
                self.push(RowScales.launch(items.len(), window_len, maps, scales));
            }
        }
    }

    /// Layer `layer` of the problem, the `index`-th of the stage, as a factor of the product.
    pub(super) fn factor(
        &self,
        stage: &Stage,
        items: &Range<usize>,
        layer: usize,
        index: usize,
    ) -> FusedMaps {
        let fused = stage.fused.skip_layers(index, items.len());
        let residual = self.problem.residual(layer);
        FusedMaps {
            cuts: fused.cuts_when_read().unwrap_or(Address::NULL),
            scales: stage.scales(index).unwrap_or(Address::NULL),
            ..FusedMaps::new(self.problem, items, &fused.maps, residual)
        }
    }

    /// One step of the product: `factor`, layer `layer`, times `state`, in the order of the form. Returns the new state.
    pub(super) fn multiply(
        &mut self,
        steps: &Steps,
        items: &Range<usize>,
        layer: usize,
        factor: FusedMaps,
        state: Option<Matrices>,
        room: Option<Matrices>,
    ) -> Matrices {
        let Steps { arithmetic, form } = *steps;
        let layers = self.problem.layers();
        let last = match form {
            Form::Rows => layer == layers.start,
            Form::Matrix => layer + 1 == layers.end,
        };
        let cumulative = self.problem.config().output == Output::Cumulative;
        // A state that is read again has aligned rows, which the output need not have.
        let room = room.filter(|_| !last);
        let windowed = room.is_none();
        let out = room.unwrap_or_else(|| self.output_matrix(items, layer - layers.start));
        let window_len = self.common.window_len;
        let launch = match state {
            None => RolloutFirst.launch(items.len(), window_len, factor, out, windowed),
            Some(state) => {
                let kernel = RolloutProduct {
                    arithmetic,
                    form,
                    discard: self.discard,
                };
                let params = RolloutProductParams {
                    maps: factor,
                    state,
                    out,
                    rows: self.problem.start_rows() as u32,
                    out_windowed: windowed.into(),
                };
                kernel.launch(items.len(), window_len, params)
            }
        };
        self.push(launch);
        if cumulative && !last {
            // `1 * state + 0 * I`: the step that makes the first state also copies one into the output.
            let copied = FusedMaps::new(self.problem, items, &out, Residual::new(1.0, 0.0));
            let out = self.output_matrix(items, layer - layers.start);
            self.push(RolloutFirst.launch(items.len(), window_len, copied, out, true));
        }
        out
    }

    /// The items' part of the output; `layer` counts within the range and matters to cumulative outputs only.
    pub(super) fn output_matrix(&self, items: &Range<usize>, layer: usize) -> Matrices {
        let tokens = self.common.tokens as usize;
        let item_floats = match self.problem.start_rows() {
            0 => tokens * tokens,
            rows => rows * tokens,
        };
        let layer = match self.problem.config().output {
            Output::Cumulative => layer,
            _ => 0,
        };
        let item = layer * self.batch + items.start;
        Matrices::new(output(item * item_floats), item_floats, tokens)
    }
}

impl Stage {
    /// The scales of the `index`-th layer.
    fn scales(&self, index: usize) -> Option<Address> {
        let (scales, layer_bytes) = self.scales?;
        Some(scales + layer_bytes * index)
    }
}
