//! NVIDIA H200.

use super::{Figure, Origin, Rates};

const fn measured(value: f64) -> Figure {
    let source = "benches/results/h200/2026-11-26.csv";
    Figure::new(value, Origin::Measured(source))
}

/// By the model of a multiprocessor, for the shapes in the tests of estimates.
const fn predicted(value: f64) -> Figure {
    let source = "tests/ptxtime/src/machine/h200.rs";
    Figure::new(value, Origin::Predicted(source))
}

const fn assumed(value: f64, instead: &'static str) -> Figure {
    Figure::new(value, Origin::Assumed(instead))
}

impl Rates {
    pub(in super::super) const H200: Rates = Rates {
        // Predicted 1.0 in a graph; measured 1.45 more on a stream.
        launch_us: predicted(2.0),
        // 4.3 of 4.9 TB/s; 32,000 bytes for each of 132 multiprocessors are gone by.
        read_share: measured(0.859),
        l2_bytes_per_us: assumed(
            42_000.0,
            "5.6 TB/s over 132 multiprocessors, of the order that others measured of an H100 PCIe",
        ),

        // With what memory takes for the bytes: 0.9 at batch 16 of DeiT-Ti, by the turns of a warp in a layer.
        turn_us: measured(0.85),
        issue_us: predicted(0.04),
        issue_16_bit_us: predicted(0.07),
        unhidden_by_turns: predicted(0.5),
        grouped_bytes_per_us: assumed(23_000.0, "16 KB on their way for a latency of 700 ns"),
        // 0.18 and 0.20 at ViT-L/14@336.
        partial_us: measured(0.18),
        group_us: predicted(0.06),
        cluster_us: predicted(0.25),
        peer_us: predicted(0.1),

        fusion_warp_us: predicted(0.042),
        fusion_head_us: predicted(0.003),
        fusion_turn_us: predicted(0.7),

        cut_entry_us: predicted(0.000_18),
        cut_block_us: predicted(3.0),

        // 0.78 to 0.87, without the launch.
        product_step_us: measured(0.8),
        product_rest_us: predicted(1.5),

        // Three of four schedulers at 1980 MHz.
        ring_slots_per_us: predicted(5900.0),
        ring_warp_slots_per_us: predicted(1200.0),
        ring_entry_slots: predicted(2.2),
        ring_entry_16_bit_slots: predicted(3.3),
        ring_row_slots: predicted(60.0),
        ring_column_us: predicted(0.4),
        ring_end_us: predicted(0.9),
        ring_cluster_end_us: predicted(1.1),
        ring_words_end_us: predicted(1.2),
        ring_rows_end: assumed(0.25, "a quarter of what the first start row takes"),
        ring_unhidden: predicted(0.1),

        slab_us: predicted(0.75),
        slab_64_head_us: predicted(0.1),
        slab_128_head_us: predicted(0.095),
        slab_128_16_bit_head_us: predicted(0.05),
        slab_208_head_us: predicted(0.125),
        slab_208_16_bit_head_us: predicted(0.065),
        matrix_layer_us: predicted(1.0),
        matrix_ring_shares: assumed(3.0, "100 KB on their way for 0.8 us"),

        tree_level_us: predicted(0.8),
        tree_32_step_alone_us: predicted(0.19),
        tree_32_step_us: predicted(0.175),
        tree_32_rest_us: predicted(0.27),
        tree_64_step_alone_us: predicted(0.62),
        tree_64_step_us: predicted(0.37),
        tree_64_rest_us: predicted(0.4),
        tree_128_step_alone_us: predicted(1.16),
        tree_128_step_us: predicted(0.6),
        tree_128_rest_us: predicted(0.4),
        tree_64_apart_step_us: predicted(0.37),
        tree_64_apart_rest_us: predicted(1.05),
        tree_112_step_alone_us: predicted(1.045),
        tree_112_step_us: predicted(0.67),
        tree_112_rest_us: predicted(2.3),
        tree_160_step_us: predicted(0.87),
        tree_160_rest_us: predicted(3.5),
        tree_208_step_us: predicted(1.15),
        tree_208_rest_us: predicted(4.0),

        score_tile_us: predicted(0.045),
        score_byte_us: predicted(0.0003),
        score_turn_us: predicted(2.5),
        score_fused: predicted(1.75),
        score_fused_turn_us: predicted(1.4),
        score_summed: predicted(1.25),
        score_layer_us: predicted(2.0),
        score_stream_tile_us: predicted(0.039),
        score_stream_turn_us: predicted(0.67),
        score_stream_end_us: predicted(1.2),
        score_short_us: predicted(3.0),
        score_short_turn_us: predicted(0.9),
        score_short_byte_us: predicted(0.012),
        score_short_shared_us: predicted(1.0),
    };
}
