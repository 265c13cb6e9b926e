//! The product pipeline: fused maps through L2, one product per layer.

use std::ops::Range;

use super::{Builder, chunks, cuts_of, groups, output, padded};
use crate::config::Output;
use crate::cuda::schedule::{Factor, Fused, Lane, Matrix, Place, Region, Work, l2_budget};
use crate::cuda::variant::{Arithmetic, Form, Variant};

/// The fused maps that one `head_fusion` launch writes and the products that follow read.
pub(super) struct Slot {
    pub fused: Fused,
    pub cuts: Option<Place>,
    /// Row scales, and the bytes from one layer's to the next's.
    scales: Option<(Place, usize)>,
    /// Event that marks the slot as written, and one that marks it as read, where two lanes share it.
    events: Option<(usize, usize)>,
    read_before: bool,
}

/// How a chunk of items goes through the layers.
struct Shape {
    items: usize,
    /// Layers fused by one launch.
    layers: usize,
    /// Fused maps of the next layers are written while these are read.
    overlapped: bool,
}

impl Builder<'_> {
    /// Any output, chunk by chunk.
    pub(super) fn product(&mut self, arithmetic: Arithmetic) {
        let batch = self.batch;
        self.zero_outside_windows();
        let shape = self.chunk_shape();
        let slots = if shape.overlapped { 2 } else { 1 };
        let mut slots: Vec<Slot> = (0..slots)
            .map(|_| {
                let events = shape.overlapped.then(|| self.slot_events());
                self.slot(shape.layers, shape.items, events)
            })
            .collect();
        let states = self.state_buffers(shape.items);
        let mut turn = 0;
        for items in chunks(batch, shape.items) {
            let mut state = self.first_state(&items);
            let mut rooms = states.iter().cycle();
            for layers in self.layer_groups(shape.layers) {
                let slot = turn % slots.len();
                turn += 1;
                self.fill(&mut slots[slot], &items, layers.clone(), 0);
                let order: Vec<usize> = match self.form() {
                    Form::Rows => layers.clone().rev().collect(),
                    Form::Matrix => layers.clone().collect(),
                };
                let first_product = self.steps.len();
                for layer in order {
                    let factor = slots[slot].factor(layer, layer - layers.start, items.len());
                    let room = rooms.next().copied();
                    state = Some(self.multiply(&items, factor, arithmetic, state, room));
                }
                if let Some((written, read)) = slots[slot].events {
                    self.steps[first_product].wait = Some(written);
                    let step = self.steps.last_mut().expect("a product was just pushed");
                    step.signal = Some(read);
                    slots[slot].read_before = true;
                }
            }
        }
    }

    fn form(&self) -> Form {
        match self.problem.config().output {
            Output::Rows(_) => Form::Rows,
            Output::Matrix | Output::Cumulative => Form::Matrix,
        }
    }

    /// All layers of the whole batch at once where that stays in L2. Else two slots of one layer each, with as many
    /// items as stay in L2, the one written beside the products that read the other.
    fn chunk_shape(&self) -> Shape {
        let batch = self.batch;
        let layers = self.problem.layers().len();
        let budget = l2_budget(self.limits);
        let fused = size_of::<f32>() * self.fused_floats();
        let state = size_of::<f32>()
            * padded(self.common.tokens as usize)
            * match self.form() {
                Form::Rows => self.problem.start_rows(),
                Form::Matrix => self.common.window_len as usize,
            };
        if batch * (layers * fused + 2 * state) <= budget {
            return Shape {
                items: batch,
                layers,
                overlapped: false,
            };
        }
        Shape {
            items: (budget / (2 * fused + 2 * state)).clamp(1, batch),
            layers: 1,
            overlapped: true,
        }
    }

    /// Layers in the order of the form, as many at a time as are fused together and as one launch can take.
    fn layer_groups(&self, layers: usize) -> Vec<Range<usize>> {
        let mut parts: Vec<Range<usize>> = match layers {
            1 => self
                .problem
                .layers()
                .map(|layer| layer..layer + 1)
                .collect(),
            _ => vec![self.problem.layers()],
        };
        if self.form() == Form::Rows {
            parts.reverse();
        }
        parts
    }

    /// Products write windows only; what lies outside is 0.
    pub(super) fn zero_outside_windows(&mut self) {
        let windows = self.problem.windows();
        if windows
            .iter()
            .any(|window| window.len < self.common.tokens as usize)
        {
            self.zero_output();
        }
    }

    fn slot_events(&mut self) -> (usize, usize) {
        self.events += 2;
        (self.events - 2, self.events - 1)
    }

    pub(super) fn slot(
        &mut self,
        layers: usize,
        items: usize,
        events: Option<(usize, usize)>,
    ) -> Slot {
        let floats = items * self.common.tokens as usize;
        Slot {
            fused: self.fused_buffer(layers, items),
            cuts: self.cuts_buffer(layers, items),
            scales: self
                .normalize
                .then(|| (self.buffer(layers * floats), size_of::<f32>() * floats)),
            events,
            read_before: false,
        }
    }

    /// The states that products read and write in turn; the last product writes the output.
    pub(super) fn state_buffers(&mut self, items: usize) -> Vec<Matrix> {
        let rows = match self.form() {
            Form::Rows => self.problem.start_rows(),
            Form::Matrix => self.common.window_len as usize,
        };
        let stride_row = padded(self.common.tokens as usize);
        let stride_batch = rows * stride_row;
        (1..self.problem.layers().len())
            .take(2)
            .map(|_| Matrix {
                place: self.buffer(items * stride_batch),
                stride_batch,
                stride_row,
            })
            .collect()
    }

    /// The start rows, or nothing where the first layer is the first state.
    pub(super) fn first_state(&self, items: &Range<usize>) -> Option<Matrix> {
        let rows = self.problem.start_rows();
        (rows > 0).then(|| {
            let start = self.constants.start;
            Matrix {
                place: Place {
                    region: Region::Constants,
                    offset: start.offset + size_of::<f32>() * items.start * start.stride_batch,
                },
                stride_batch: start.stride_batch,
                stride_row: start.stride_row,
            }
        })
    }

    /// Fuses `layers` into the layers of `slot` from `first` on, with cuts and row scales.
    pub(super) fn fill(
        &mut self,
        slot: &mut Slot,
        items: &Range<usize>,
        layers: Range<usize>,
        first: usize,
    ) {
        let first_step = self.steps.len();
        for group in groups(layers.clone()) {
            let index = first + group.start - layers.start;
            let fused = Fused {
                maps: slot.fused.layer(index),
                ..slot.fused
            };
            let cuts = slot.cuts.map(|cuts| cuts_of(cuts, index, items.len()));
            self.fuse(items, group, fused, cuts);
        }
        for layer in layers.clone() {
            let factor = slot.factor(layer, first + layer - layers.start, items.len());
            if let Some(scales) = factor.scales {
                let work = Work::RowScales { factor, scales };
                self.step(Variant::RowScales, work, items, 0);
            }
        }
        if let Some((written, read)) = slot.events {
            let steps = &mut self.steps[first_step..];
            for step in steps.iter_mut() {
                step.lane = Lane::Side;
            }
            if slot.read_before {
                steps[0].wait = Some(read);
            }
            let last = steps.last_mut().expect("a slot is filled by a step");
            last.signal = Some(written);
        }
    }

    /// One step of the product: `factor` times `state`, in the order of the form. Returns the new state.
    pub(super) fn multiply(
        &mut self,
        items: &Range<usize>,
        factor: Factor,
        arithmetic: Arithmetic,
        state: Option<Matrix>,
        room: Option<Matrix>,
    ) -> Matrix {
        let layer = factor.layer.expect("a factor of a product has a layer");
        let layers = self.problem.layers();
        let last = match self.form() {
            Form::Rows => layer == layers.start,
            Form::Matrix => layer + 1 == layers.end,
        };
        let cumulative = self.problem.config().output == Output::Cumulative;
        // A state that is read again has aligned rows, which the output need not have.
        let room = room.filter(|_| !last);
        let windowed = room.is_none();
        let out = room.unwrap_or_else(|| self.output_matrix(items, layer - layers.start));
        let rows = self.problem.start_rows() as u32;
        let (variant, work) = match state {
            None => (
                Variant::RolloutFirst,
                Work::RolloutFirst {
                    factor,
                    out,
                    windowed,
                },
            ),
            Some(state) => (
                Variant::RolloutProduct {
                    arithmetic,
                    form: self.form(),
                    discard: self.discard,
                },
                Work::RolloutProduct {
                    factor,
                    state,
                    out,
                    rows,
                    windowed,
                },
            ),
        };
        let grid_rows = if rows > 0 {
            rows
        } else {
            self.common.window_len
        };
        self.step(variant, work, items, grid_rows);
        if cumulative && !last {
            // `1 * state + 0 * I`: the step that makes the first state also copies one into the output.
            let factor = Factor {
                maps: out,
                layer: None,
                cuts: None,
                scales: None,
            };
            let work = Work::RolloutFirst {
                factor,
                out: self.output_matrix(items, layer - layers.start),
                windowed: true,
            };
            self.step(Variant::RolloutFirst, work, items, grid_rows);
        }
        out
    }

    /// The items' part of the output; `layer` counts within the range and matters to cumulative outputs only.
    fn output_matrix(&self, items: &Range<usize>, layer: usize) -> Matrix {
        let tokens = self.common.tokens as usize;
        let rows = match self.problem.start_rows() {
            0 => tokens,
            rows => rows,
        };
        let layer = match self.problem.config().output {
            Output::Cumulative => layer,
            _ => 0,
        };
        let item = layer * self.batch + items.start;
        Matrix {
            place: output(size_of::<f32>() * item * rows * tokens),
            stride_batch: rows * tokens,
            stride_row: tokens,
        }
    }
}

impl Slot {
    /// Layer `layer`, the `index`-th of the slot, of a chunk of `items`.
    pub(super) fn factor(&self, layer: usize, index: usize, items: usize) -> Factor {
        Factor {
            maps: self.fused.layer(index),
            layer: Some(layer),
            cuts: self.cuts.map(|cuts| cuts_of(cuts, index, items)),
            scales: self.scales.map(|(mut scales, layer_bytes)| {
                scales.offset += layer_bytes * index;
                scales
            }),
        }
    }
}
