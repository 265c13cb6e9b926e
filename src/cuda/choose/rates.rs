//! What estimates know of a device: its rates, one table for each GPU model that somebody measured or predicted any for,
//! each rate with its origin.
//!
//! Devices that no table is of are taken to have the rates of an H200, which nobody checked there: scaled by their
//! multiprocessors and memory they are assumed.

mod h100;
mod h200;

use super::figure::{Figure, Origin};
use crate::cuda::limits::DeviceLimits;

macro_rules! rates {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The rates of a device. Times are in microseconds, and of one multiprocessor where nothing else is said.
        #[derive(Clone, Debug, PartialEq)]
        pub(super) struct Rates {
            $($(#[$doc])* pub $name: Figure,)*
        }

        impl Rates {
            /// The same rates of a device for which nobody confirmed them.
            const fn assumed(&self, instead: &'static str) -> Rates {
                let origin = Origin::Assumed(instead);
                Rates { $($name: Figure::new(self.$name.value, origin),)* }
            }

            /// The same rates of a device of the same die: what was predicted is also by the model of that one, the file
            /// `machine`; what was measured nobody confirmed.
            const fn of_same_die(&self, machine: &'static str, instead: &'static str) -> Rates {
                Rates { $($name: of_same_die(self.$name, machine, instead),)* }
            }

            /// Each with its name.
            #[cfg(test)]
            pub fn all(&mut self) -> Vec<(&'static str, &mut Figure)> {
                vec![$((stringify!($name), &mut self.$name),)*]
            }
        }
    };
}

rates! {
    /// From one launch to the next where nothing else limits.
    launch_us,
    /// The share of its peak that memory is read at.
    read_share,
    /// Bytes that one multiprocessor gets from L2 in a microsecond.
    l2_bytes_per_us,

    /// Reading maps, by `rollout_rows`: from asking for granules to having fused them, nothing else being on its way.
    turn_us,
    /// Issuing the instructions of such a turn, for each warp of a multiprocessor.
    issue_us,
    /// The same of 16-bit entries: unaligned granules are shifted twice as often.
    issue_16_bit_us,
    /// The share of what memory takes for the bytes of the maps that the turns do not hide.
    unhidden_by_turns,
    /// Bytes that a block gets in a microsecond beside those of others in a launch that is shared.
    grouped_bytes_per_us,
    /// One addition of the serial loop over partial sums: an L2 hit.
    partial_us,
    /// One group of warps adding its sums to those of the block.
    group_us,
    /// The two barriers at the end of a layer of a cluster.
    cluster_us,
    /// One addition of a sum that lies in another block of the cluster.
    peer_us,

    /// What the instructions of a warp of `head_fusion` take of a multiprocessor.
    fusion_warp_us,
    /// And those of each head.
    fusion_head_us,
    /// From asking for the heads of a turn to having added these: nothing hides those of the first.
    fusion_turn_us,

    /// An entry of a fused map in a block of `discard`, in all passes over it.
    cut_entry_us,
    /// What a block takes beside: histograms are cleared, added up over the cluster, and searched.
    cut_block_us,

    /// 16 columns of a `rollout_product` tile: a round trip to L2 that nothing hides.
    product_step_us,
    /// What a tile takes beside its steps.
    product_rest_us,

    /// Machine instructions that a multiprocessor issues in a microsecond, of `rows_stream`.
    ring_slots_per_us,
    /// Machine instructions of one warp in a microsecond, where it has its scheduler for itself.
    ring_warp_slots_per_us,
    /// Machine instructions for an entry of each lane, of 32 bits.
    ring_entry_slots,
    /// The same, of 16 bits.
    ring_entry_16_bit_slots,
    /// Machine instructions for a row of each warp besides.
    ring_row_slots,
    /// For each column that a thread has beyond its first.
    ring_column_us,
    /// From the last row of a layer to the first of the next, of a block that has an item for itself: sums, barriers.
    ring_end_us,
    /// The same of a cluster, whose blocks tell each other their sums.
    ring_cluster_end_us,
    /// The same of blocks that tell each other theirs by words.
    ring_words_end_us,
    /// The share of it that each further start row takes.
    ring_rows_end,
    /// The share of the shorter of computing and streaming that the longer does not hide.
    ring_unhidden,

    /// A slab of `matrix_stream`: its products, what its warps wait for, and writing it.
    slab_us,
    /// Fusing a head of a slab, by the kernel of up to 64 tokens, of which two blocks share a multiprocessor.
    slab_64_head_us,
    /// By that of up to 128 tokens, entries of 32 bits.
    slab_128_head_us,
    /// And of 16 bits.
    slab_128_16_bit_head_us,
    /// By that of more, entries of 32 bits.
    slab_208_head_us,
    /// And of 16 bits.
    slab_208_16_bit_head_us,
    /// The end of a layer: D is split and written.
    matrix_layer_us,
    /// How many times its share of what memory gives to all a ring can take.
    matrix_ring_shares,

    /// The first copies of the blocks of a level of `split_product`, and what its last ones add and write.
    tree_level_us,
    /// A step of a block of tiles of 32 rows, alone on its multiprocessor.
    tree_32_step_alone_us,
    /// The same of one block of many.
    tree_32_step_us,
    /// What one of many takes beside its steps.
    tree_32_rest_us,
    /// See [`tree_32_step_alone_us`](Self::tree_32_step_alone_us), with the two that follow.
    tree_64_step_alone_us,
    tree_64_step_us,
    tree_64_rest_us,
    /// See [`tree_32_step_alone_us`](Self::tree_32_step_alone_us), with the two that follow.
    tree_128_step_alone_us,
    tree_128_step_us,
    tree_128_rest_us,
    /// A step of a block of tiles of 64 rows some of whose warps do nothing but copy.
    tree_64_apart_step_us,
    /// What it takes beside its steps.
    tree_64_apart_rest_us,
    /// See [`tree_32_step_alone_us`](Self::tree_32_step_alone_us), with the two that follow.
    tree_112_step_alone_us,
    tree_112_step_us,
    tree_112_rest_us,
    /// The same of tiles of 160 rows.
    tree_160_step_us,
    tree_160_rest_us,
    /// The same of tiles of 208 rows.
    tree_208_step_us,
    tree_208_rest_us,

    /// A tile of queries and keys of one head whose entries are multiplied with one row, beside others.
    score_tile_us,
    /// For each byte of a query or key, predicted for 64 elements of 16 bits.
    score_byte_us,
    /// A block that takes a tile of each of its warps so long, by itself.
    score_turn_us,
    /// How many times longer tiles take whose entries are fused.
    score_fused,
    /// A block that fuses tiles, by itself.
    score_fused_turn_us,
    /// How many times longer tiles take whose exponentials are summed by rows, after the largest score is known.
    score_summed,
    /// What a layer of rows takes beside its tiles and launches.
    score_layer_us,
    /// A tile of each warp of a block of `score_stream`, by itself.
    score_stream_turn_us,
    /// How much longer it takes for each warp of the multiprocessor.
    score_stream_tile_us,
    /// From the last tile of a layer to the first of the next: blocks tell each other their sums.
    score_stream_end_us,
    /// A block of `score_short` beside its turns, in which each warp takes 16 queries.
    score_short_us,
    /// Such a turn, alone.
    score_short_turn_us,
    /// For each byte of a query or key.
    score_short_byte_us,
    /// How much longer it takes beside other blocks.
    score_short_shared_us,
}

const fn of_same_die(rate: Figure, machine: &'static str, instead: &'static str) -> Figure {
    let origin = match rate.origin {
        Origin::Predicted(_) => Origin::Predicted(machine),
        Origin::Measured(_) => Origin::Assumed(instead),
        other => other,
    };
    Figure::new(rate.value, origin)
}

/// For a device that no table is of.
const UNKNOWN: Rates = Rates::H200.assumed("the rate of an H200");

impl Rates {
    /// The rates of a device, which is known by its architecture and the peak of its memory for each multiprocessor, as it
    /// is where only some of these take part.
    pub fn of(limits: &DeviceLimits) -> &'static Rates {
        let known = |limits: &DeviceLimits| {
            let peak = limits.memory_bytes_per_us / limits.multiprocessors.max(1);
            (limits.arch, peak)
        };
        let tables: [(DeviceLimits, &Rates); 2] = [
            (DeviceLimits::H200, &Rates::H200),
            (DeviceLimits::H100, &Rates::H100),
        ];
        let mut tables = tables.into_iter();
        let table = tables.find(|(model, _)| known(model) == known(limits));
        table.map_or(&UNKNOWN, |(_, rates)| rates)
    }
}

#[cfg(test)]
mod tests;
