//! The pipelines that read the maps once, in few launches: rows and chain.

use std::ops::Range;

use super::{Builder, chunks, cuts_of, groups};
use crate::cuda::geometry::Splits;
use crate::cuda::schedule::{Fused, Place, Source, Work, l2_budget};
use crate::cuda::variant::{Arithmetic, Fusion, Variant};
use crate::dtype::DType;

impl Builder<'_> {
    /// Calls `run` for the whole batch and the caller's layers; or, with discard, chunk by chunk for fused maps of all
    /// layers that stay in L2.
    pub(super) fn each_chunk(
        &mut self,
        run: impl Fn(&mut Self, &Range<usize>, Source, Option<Place>),
    ) {
        let batch = self.batch;
        if !self.discard {
            return run(self, &(0..batch), Source::Layers, None);
        }
        let layers = self.problem.layers();
        let item_bytes = size_of::<f32>() * layers.len() * self.fused_floats();
        let chunk = (l2_budget(self.limits) / item_bytes).clamp(1, batch);
        let fused = self.fused_buffer(layers.len(), chunk);
        let cuts = self.cuts_buffer(layers.len(), chunk);
        let buffers = self.workspace_bytes;
        for items in chunks(batch, chunk) {
            // Chunks follow one another in one stream: each may use the workspace of the one before.
            let largest = std::mem::replace(&mut self.workspace_bytes, buffers);
            for group in groups(layers.clone()) {
                let first = group.start - layers.start;
                let part = Fused {
                    maps: fused.layer(first),
                    ..fused
                };
                let cuts = cuts.map(|cuts| cuts_of(cuts, first, items.len()));
                self.fuse(&items, group, part, cuts);
            }
            run(self, &items, Source::Fused(fused), cuts);
            self.workspace_bytes = self.workspace_bytes.max(largest);
        }
    }

    /// The launch's share of fused maps and cuts that hold all layers.
    fn share(
        &self,
        source: Source,
        cuts: Option<Place>,
        first: usize,
        items: usize,
    ) -> (Source, Option<Place>) {
        let index = first - self.problem.layers().start;
        let source = match source {
            Source::Layers => Source::Layers,
            Source::Fused(fused) => Source::Fused(Fused {
                maps: fused.layer(index),
                ..fused
            }),
        };
        (source, cuts.map(|cuts| cuts_of(cuts, index, items)))
    }

    /// Start rows times all layers, from the last to the first.
    pub(super) fn rows(
        &mut self,
        items: &Range<usize>,
        source: Source,
        cuts: Option<Place>,
        rows: u32,
        splits: Splits,
    ) {
        let start_rows = self.problem.start_rows();
        let variant = Variant::RolloutRows {
            dtype: self.source_dtype(source),
            rows,
            fusion: self.source_fusion(source),
            normalize: self.normalize,
            discard: self.discard,
        };
        let one_layer = splits.parts() > 1 || self.common.columns(source, false).tiles > 1;
        let launches: Vec<Range<usize>> = if one_layer {
            // After the first layer one more launch, of no layers, adds up the partial sums.
            let first = self.problem.layers().start;
            let layers = self.problem.layers().rev().map(|layer| layer..layer + 1);
            layers.chain(std::iter::once(first..first)).collect()
        } else {
            groups(self.problem.layers()).into_iter().rev().collect()
        };
        let floats =
            items.len() * splits.parts() as usize * start_rows * self.common.tokens as usize;
        let partials = match launches.len() {
            1 => Vec::new(),
            _ => vec![self.buffer(floats), self.buffer(floats)],
        };
        let last = launches.len() - 1;
        for (index, layers) in launches.into_iter().enumerate() {
            let (source, cuts) = self.share(source, cuts, layers.start, items.len());
            let work = Work::RolloutRows {
                source,
                layers,
                cuts,
                partials_in: (index > 0).then(|| (partials[(index - 1) % 2], splits.parts())),
                partials_out: (index < last).then(|| partials[index % 2]),
            };
            let step = self.step(variant, work, items, start_rows as u32);
            // The last reduction has nothing to divide.
            step.splits = match one_layer && index == last {
                true => Splits::ONE,
                false => splits,
            };
        }
    }

    /// The matrix, one block or one cluster of blocks per item.
    pub(super) fn chain(
        &mut self,
        items: &Range<usize>,
        source: Source,
        cuts: Option<Place>,
        arithmetic: Arithmetic,
        tokens: u32,
    ) {
        let variant = Variant::RolloutChain {
            dtype: self.source_dtype(source),
            arithmetic,
            tokens,
            fusion: self.source_fusion(source),
            normalize: self.normalize,
            discard: self.discard,
        };
        for (index, layers) in groups(self.problem.layers()).into_iter().rev().enumerate() {
            let (source, cuts) = self.share(source, cuts, layers.start, items.len());
            let work = Work::RolloutChain {
                source,
                layers,
                cuts,
                resumes: index > 0,
            };
            self.step(variant, work, items, self.common.window_len);
        }
    }

    fn source_dtype(&self, source: Source) -> DType {
        match source {
            Source::Layers => self.problem.dtype(),
            Source::Fused(_) => DType::F32,
        }
    }

    /// Fused maps are the mean over their one head.
    fn source_fusion(&self, source: Source) -> Fusion {
        match source {
            Source::Layers => self.fusion,
            Source::Fused(_) => Fusion::Mean,
        }
    }
}
