//! Whole rollouts from kernel launches, as a host would issue them, with buffers of exact size.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use attention_rollout::cuda::entry::Entry;
use attention_rollout::cuda::geometry::{Columns, Extents, Geometry};
use attention_rollout::cuda::params::{
    DiscardParams, FusedMaps, HeadFusionParams, LayerMaps, MAX_LAYERS_PER_LAUNCH, Maps, Matrices,
    RolloutChainParams, RolloutFirstParams, RolloutProductParams, RolloutRowsParams,
    RowScalesParams, Window, ZeroFillParams,
};
use attention_rollout::cuda::variant::{Arithmetic, Form, Fusion, Variant};
use attention_rollout::{DType, Discard, DiscardScope, HeadFusion, Problem};
use bytemuck::Zeroable;
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

/// Fused maps of all layers in the problem's range.
struct FusedBuffer {
    base: u64,
    stride_layer: i64,
    stride_batch: i64,
    stride_row: i64,
    cuts: u64,
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
            Path::Rows(splits) => self.rows(splits),
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
            splits: 1,
            columns,
        }
    }

    fn discard(&self) -> (u32, u32) {
        match self.problem.config().discard {
            Some(Discard {
                scope: DiscardScope::Patches { special_tokens },
                ..
            }) => (special_tokens as u32, 0),
            _ => (0, 1),
        }
    }

    /// The division of columns, for aligned rows where they are.
    fn columns(&self) -> Columns {
        let size = self.problem.dtype().size_bytes();
        let shape = self.problem.shape();
        let aligned = self.problem.layers().all(|layer| {
            let strides = self.problem.strides(layer);
            self.bases[layer].is_multiple_of(16)
                && [strides.row, strides.head, strides.batch]
                    .iter()
                    .all(|stride| (stride * size).is_multiple_of(16))
        }) && (0..shape.batch)
            .all(|item| (self.problem.windows()[item].start * size).is_multiple_of(16));
        Columns::new(self.problem.dtype(), self.window_len, aligned)
    }

    /// The maps of `layers` as they were given.
    fn maps(&self, layers: Range<usize>) -> Maps {
        let shape = self.problem.shape();
        let (discard_first, discard_spares_origin) = self.discard();
        let mut maps = Maps {
            windows: self.windows,
            head_weights: self.head_weights,
            batch: shape.batch as u32,
            heads: shape.heads as u32,
            tokens: shape.tokens as u32,
            layers: layers.len() as u32,
            head_scale: 1.0 / shape.heads as f32,
            causal: self.problem.config().causal.into(),
            discard_first,
            discard_spares_origin,
            ..Maps::zeroed()
        };
        for (slot, layer) in layers.enumerate() {
            let strides = self.problem.strides(layer);
            let residual = self.problem.residual(layer);
            maps.layer[slot] = LayerMaps {
                base: self.bases[layer],
                stride_batch: strides.batch as i64,
                stride_head: strides.head as i64,
                stride_row: strides.row as i64,
                attention: residual.attention,
                identity: residual.identity,
            };
        }
        maps
    }

    /// Fuses the heads of all layers of the range, and finds the cuts where the problem discards.
    fn fuse(&self) -> FusedBuffer {
        let shape = self.problem.shape();
        let range = self.problem.layers();
        let stride_row = shape.tokens.next_multiple_of(4);
        let stride_batch = shape.tokens * stride_row;
        let stride_layer = shape.batch * stride_batch;
        let mut buffer = FusedBuffer {
            base: self.floats(range.len() * stride_layer),
            stride_layer: stride_layer as i64,
            stride_batch: stride_batch as i64,
            stride_row: stride_row as i64,
            cuts: 0,
        };
        let columns = self.columns();
        let variant = Variant::HeadFusion {
            dtype: self.problem.dtype(),
            fusion: Fusion::from(&self.problem.config().head_fusion),
        };
        for first in range.clone().step_by(MAX_LAYERS_PER_LAUNCH) {
            let layers = first..range.end.min(first + MAX_LAYERS_PER_LAUNCH);
            let params = HeadFusionParams {
                fused: buffer.base + 4 * ((first - range.start) * stride_layer) as u64,
                stride_layer: buffer.stride_layer,
                stride_batch: buffer.stride_batch,
                stride_row: buffer.stride_row,
                chunk_columns: columns.chunk,
                chunks_per_block: columns.chunks_per_block,
                maps: self.maps(layers.clone()),
            };
            self.launch(variant, &self.extents(layers.len(), columns), &params);
        }
        if self.problem.config().discard.is_some() {
            let counts: Vec<u64> = (0..shape.batch)
                .map(|item| self.problem.discard_count(item) as u64)
                .collect();
            buffer.cuts = self.memory.alloc(8 * range.len() * shape.batch);
            let params = DiscardParams {
                fused: buffer.base,
                stride_layer: buffer.stride_layer,
                stride_batch: buffer.stride_batch,
                stride_row: buffer.stride_row,
                windows: self.windows,
                counts: self.upload(&counts),
                cuts: buffer.cuts,
                batch: shape.batch as u32,
                layers: range.len() as u32,
                causal: self.problem.config().causal.into(),
                discard_first: self.discard().0,
            };
            self.launch(
                Variant::Discard,
                &self.extents(range.len(), columns),
                &params,
            );
        }
        buffer
    }

    /// Fused maps in the place of a problem's own.
    fn fused_maps(&self, buffer: &FusedBuffer, layers: Range<usize>) -> Maps {
        let first = layers.start - self.problem.layers().start;
        let batch = self.problem.shape().batch;
        let mut maps = self.maps(layers);
        maps.heads = 1;
        maps.head_scale = 1.0;
        maps.window_local = 1;
        maps.cuts = buffer.cuts + (8 * first * batch) as u64;
        for slot in 0..maps.layers as usize {
            let map = &mut maps.layer[slot];
            map.base = buffer.base + 4 * (first + slot) as u64 * buffer.stride_layer as u64;
            map.stride_batch = buffer.stride_batch;
            map.stride_head = 0;
            map.stride_row = buffer.stride_row;
        }
        maps
    }

    /// What a consumer of maps reads: the problem's maps, or fused ones where entries are discarded.
    fn sources(&self) -> (DType, Fusion, Option<FusedBuffer>, Columns) {
        if self.problem.config().discard.is_some() {
            let columns = Columns::new(DType::F32, self.window_len, true);
            (DType::F32, Fusion::Mean, Some(self.fuse()), columns)
        } else {
            let fusion = Fusion::from(&self.problem.config().head_fusion);
            (self.problem.dtype(), fusion, None, self.columns())
        }
    }

    /// `rollout_rows` over all layers, the rows of each item divided among `splits` blocks.
    fn rows(&self, splits: u32) -> u64 {
        let shape = self.problem.shape();
        let (batch, tokens, rows) = (shape.batch, shape.tokens, self.problem.start_rows());
        let (dtype, fusion, fused, columns) = self.sources();
        let variant = Variant::RolloutRows {
            dtype,
            rows: if rows == 1 { 1 } else { 8 },
            fusion,
            normalize: self.problem.config().normalize_rows,
            discard: fused.is_some(),
        };
        let start = self.upload(&self.start_weights(tokens, tokens));
        let partial = batch * splits as usize * rows * tokens;
        let (mut partials_in, mut partials_out) = (self.floats(partial), self.floats(partial));
        let out = self.floats(batch * rows * tokens);
        let extents = Extents {
            rows: rows as u32,
            splits,
            ..self.extents(1, columns)
        };
        let params = |maps| RolloutRowsParams {
            start,
            start_stride_batch: (rows * tokens) as i64,
            partials_in: 0,
            partials_out: 0,
            out,
            start_rows: rows as u32,
            splits_in: 0,
            chunk_columns: columns.chunk,
            chunks_per_block: columns.chunks_per_block,
            maps,
        };
        let maps = |layers: Range<usize>| match &fused {
            Some(buffer) => self.fused_maps(buffer, layers),
            None => self.maps(layers),
        };
        let one_block = splits == 1 && columns.tiles == 1;
        let per_launch = if one_block { MAX_LAYERS_PER_LAUNCH } else { 1 };
        let range = self.problem.layers();
        let mut end = range.end;
        let mut splits_in = 0;
        while end > range.start {
            let first = range.start.max(end.saturating_sub(per_launch));
            let last_launch = first == range.start && one_block;
            let params = RolloutRowsParams {
                partials_in,
                splits_in,
                partials_out: if last_launch { 0 } else { partials_out },
                ..params(maps(first..end))
            };
            self.launch(variant, &extents, &params);
            std::mem::swap(&mut partials_in, &mut partials_out);
            splits_in = splits;
            end = first;
        }
        if !one_block {
            let params = RolloutRowsParams {
                partials_in,
                splits_in,
                ..params(maps(range.start..range.start))
            };
            let one = Columns {
                tiles: 1,
                ..columns
            };
            let extents = Extents {
                splits: 1,
                columns: one,
                ..extents
            };
            self.launch(variant, &extents, &params);
        }
        out
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

    /// `rollout_chain` over all layers.
    fn chain(&self, arithmetic: Arithmetic) -> u64 {
        let (dtype, fusion, fused, columns) = self.sources();
        let tokens = Variant::CHAIN_TOKENS
            .into_iter()
            .find(|&tokens| self.window_len <= tokens)
            .unwrap();
        let variant = Variant::RolloutChain {
            dtype,
            arithmetic,
            tokens,
            fusion,
            normalize: self.problem.config().normalize_rows,
            discard: fused.is_some(),
        };
        let out = self.floats(self.problem.output_len());
        let range = self.problem.layers();
        let mut end = range.end;
        while end > range.start {
            let first = range.start.max(end.saturating_sub(MAX_LAYERS_PER_LAUNCH));
            let params = RolloutChainParams {
                state: if end == range.end { 0 } else { out },
                out,
                maps: match &fused {
                    Some(buffer) => self.fused_maps(buffer, first..end),
                    None => self.maps(first..end),
                },
            };
            self.launch(variant, &self.extents(end - first, columns), &params);
            end = first;
        }
        out
    }

    /// Head fusion, then one product per layer.
    fn product(&self, arithmetic: Arithmetic, form: Form) -> u64 {
        let shape = self.problem.shape();
        let (batch, tokens) = (shape.batch, shape.tokens);
        let buffer = self.fuse();
        let pitch = tokens.next_multiple_of(4);
        let start_rows = self.problem.start_rows();
        let state_rows = if start_rows > 0 { start_rows } else { tokens };
        let local = |base| Matrices {
            base,
            stride_batch: (state_rows * pitch) as i64,
            stride_row: pitch as i64,
        };
        let out = Matrices {
            base: self.floats(self.problem.output_len()),
            stride_batch: (state_rows * tokens) as i64,
            stride_row: tokens as i64,
        };
        let mut extents = self.extents(1, self.columns());
        // What lies outside the windows.
        let len = self.problem.output_len();
        let pieces = Extents {
            batch: len.div_ceil(Variant::FILL_PIECE as usize) as u32,
            ..extents
        };
        let params = ZeroFillParams {
            out: out.base,
            len: len as u64,
        };
        self.launch(Variant::ZeroFill, &pieces, &params);
        let variant = Variant::RolloutProduct {
            arithmetic,
            form,
            discard: buffer.cuts != 0,
        };
        let mut layers: Vec<usize> = self.problem.layers().collect();
        if form == Form::Rows {
            layers.reverse();
        }
        let count = layers.len();
        let states = [
            self.floats(batch * state_rows * pitch),
            self.floats(batch * state_rows * pitch),
        ];
        let mut state = local(states[0]);
        if start_rows > 0 {
            let weights = self.start_weights(tokens, pitch);
            self.memory
                .write(state.base, bytemuck::cast_slice(&weights))
                .unwrap();
        }
        for (step, layer) in layers.into_iter().enumerate() {
            let maps = self.fused_layer(&buffer, layer, &extents);
            let last = step + 1 == count;
            let next = if last {
                out
            } else {
                local(states[(step + 1) % 2])
            };
            if step == 0 && start_rows == 0 {
                let params = RolloutFirstParams {
                    maps,
                    out: next,
                    out_windowed: last.into(),
                    reserved: 0,
                };
                self.launch(Variant::RolloutFirst, &extents, &params);
            } else {
                if start_rows > 0 {
                    extents.rows = start_rows as u32;
                }
                let params = RolloutProductParams {
                    maps,
                    state,
                    out: next,
                    rows: start_rows as u32,
                    out_windowed: last.into(),
                };
                self.launch(variant, &extents, &params);
            }
            state = next;
        }
        out.base
    }

    /// One layer of a fused buffer with its scales.
    fn fused_layer(&self, buffer: &FusedBuffer, layer: usize, extents: &Extents) -> FusedMaps {
        let (batch, tokens) = self.dims();
        let all = self.fused_maps(buffer, layer..layer + 1);
        let mut maps = FusedMaps {
            base: all.layer[0].base,
            stride_batch: buffer.stride_batch,
            stride_row: buffer.stride_row,
            windows: self.windows,
            cuts: if buffer.cuts == 0 { 0 } else { all.cuts },
            scales: 0,
            attention: all.layer[0].attention,
            identity: all.layer[0].identity,
            tokens,
            causal: all.causal,
            discard_first: all.discard_first,
            discard_spares_origin: all.discard_spares_origin,
        };
        if self.problem.config().normalize_rows {
            let scales = self.floats((batch * tokens) as usize);
            self.launch(
                Variant::RowScales,
                extents,
                &RowScalesParams { maps, scales },
            );
            maps.scales = scales;
        }
        maps
    }
}
