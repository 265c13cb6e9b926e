//! One item's maps of one layer, in memory or computed from queries and keys: here what reads them need not know which.

use std::ops::Range;

use crate::cpu::fuse::{Accumulate, FusedEntries, MapRows};
use crate::cpu::prefetch::Prefetch;
use crate::cpu::scores::{ItemScores, ScoreRows};
use crate::cpu::simd::Simd;
use crate::cpu::team::{Member, Shared};
use crate::error::Result;
use crate::layer::{HostLayer, Layer};
use crate::problem::Problem;

/// One item's maps of one layer.
#[derive(Clone, Copy)]
pub(crate) struct ItemMaps<'a> {
    pub problem: &'a Problem,
    pub prefetch: Prefetch,
    pub operands: HostLayer<'a>,
    pub layer: usize,
    pub item: usize,
    /// The member's own, to compute entries in where they are computed.
    pub memory: Shared<'a>,
}

/// Some rows of one item's maps of one layer, wherever they come from.
#[derive(Clone, Copy)]
pub(crate) enum ItemRows<'a> {
    Maps(MapRows<'a>),
    Scores(ScoreRows<'a>),
}

impl<'a> From<MapRows<'a>> for ItemRows<'a> {
    fn from(rows: MapRows<'a>) -> Self {
        ItemRows::Maps(rows)
    }
}

impl ItemRows<'_> {
    /// The rows `rows` of these, after which those after them are read, or what is read after these.
    #[inline]
    pub fn part(&self, rows: Range<usize>) -> Self {
        match self {
            ItemRows::Maps(all) => all.part(rows).into(),
            ItemRows::Scores(all) => ItemRows::Scores(ScoreRows {
                first: all.first + rows.start,
                count: rows.len(),
                ..*all
            }),
        }
    }

    /// Writes the fused rows, times `weight`, into `fused`, `[rows, len]`.
    pub fn fuse(&self, simd: Simd, weight: f32, fused: &mut [f32]) {
        match self {
            ItemRows::Maps(rows) => rows.fuse(simd, weight, fused),
            ItemRows::Scores(rows) => rows.fuse(simd, weight, fused),
        }
    }

    /// Whether rows of several blocks may be added or made at once.
    pub fn takes_blocks(&self) -> bool {
        match self {
            ItemRows::Maps(_) => true,
            ItemRows::Scores(rows) => rows.are_sums(),
        }
    }

    /// Whether [`accumulate`](ItemRows::accumulate) takes the heads' rows as they are.
    pub fn need_not_be_made(&self, start_rows: usize) -> bool {
        match self {
            ItemRows::Maps(rows) => rows.need_not_be_made(start_rows),
            ItemRows::Scores(_) => true,
        }
    }

    /// Adds the fused rows, times their weights, to sums. They [need not be made](ItemRows::need_not_be_made) for it.
    pub fn accumulate(&self, simd: Simd, to: &mut Accumulate<'_>) {
        match self {
            ItemRows::Maps(rows) => rows.accumulate(simd, to),
            ItemRows::Scores(rows) => rows.accumulate(simd, to),
        }
    }
}

impl<'a> ItemMaps<'a> {
    /// Valid tokens of the item.
    pub fn len(&self) -> usize {
        self.problem.windows()[self.item].len
    }

    /// The queries and keys, where the maps are computed from them.
    pub fn scores(&self) -> Option<ItemScores<'a>> {
        let Layer::QueriesKeys { queries, keys, lse } = self.operands else {
            return None;
        };
        Some(ItemScores {
            problem: self.problem,
            source: self.problem.queries_keys()?,
            queries,
            keys,
            lse,
            layer: self.layer,
            item: self.item,
            memory: self.memory,
        })
    }

    /// Looks whether a given LSE is that of the queries and keys, in some rows of the heads that fall to this member.
    ///
    /// # Errors
    /// [`Error::Lse`](crate::Error::Lse).
    pub fn probe(&self, simd: Simd, member: Member<'_>) -> Result<()> {
        match self.scores().filter(|_| self.len() > 0) {
            Some(scores) => scores.probe(simd, member),
            None => Ok(()),
        }
    }

    /// Notes what the rows of relevance `[start rows, len]` must sum to after this layer, where that is known and looked at.
    pub fn expect_masses(&self, relevance: &[f32]) {
        if let Some(scores) = self.scores() {
            scores.expect_masses(relevance);
        }
    }

    /// Checks the rows of relevance after this layer against what was noted before it.
    ///
    /// # Errors
    /// [`Error::Mass`](crate::Error::Mass).
    pub fn check_masses(&self, relevance: &[f32]) -> Result<()> {
        self.scores()
            .map_or(Ok(()), |scores| scores.check_masses(relevance))
    }

    /// Checks what the rows of `Ahat` from `first` on, `[rows, len]`, sum to, where that is known and looked at.
    ///
    /// # Errors
    /// [`Error::Mass`](crate::Error::Mass).
    pub fn check_rows(&self, first: usize, ahat: &[f32]) -> Result<()> {
        self.scores()
            .map_or(Ok(()), |scores| scores.check_rows(first, ahat))
    }

    /// The rows `rows`, counted from the window's start.
    #[inline]
    pub fn rows(&self, rows: Range<usize>) -> ItemRows<'a> {
        if let Some(of) = self.scores() {
            return ItemRows::Scores(ScoreRows {
                of,
                first: rows.start,
                count: rows.len(),
            });
        }
        let (maps, gradients) = match self.operands {
            Layer::Maps(maps) => (maps, None),
            Layer::Gradients { maps, gradients } => (maps, Some(gradients)),
            Layer::QueriesKeys { .. } => unreachable!("the problem says how, as was checked"),
        };
        let of = (self.layer, self.item);
        let rows = MapRows::new(self.problem, of, maps, gradients, rows);
        rows.prefetched(self.prefetch).into()
    }

    /// The rows up to the last of `own`, by one who reads these in order, and after them the same of `next`, the beginning of
    /// which is prefetched then.
    #[inline]
    pub fn read_by(&self, own: Range<usize>, next: Option<ItemMaps<'_>>) -> ItemRows<'a> {
        let rows = self.rows(0..own.end);
        let next = next.map(|next| next.rows(own.start.min(next.len())..next.len()));
        match (rows, next) {
            (ItemRows::Maps(rows), Some(ItemRows::Maps(next))) => rows.before(&next).into(),
            _ => rows,
        }
    }

    /// The fused map, where it lies among the maps.
    pub fn fused(&self) -> Option<FusedEntries<'a>> {
        match self.rows(0..self.len()) {
            ItemRows::Maps(rows) => rows.fused(),
            ItemRows::Scores(_) => None,
        }
    }
}
