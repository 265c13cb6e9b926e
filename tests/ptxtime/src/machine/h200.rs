//! NVIDIA H200. *Fitted*: to one line of `benches/results/h200/2026-11-26.csv`, which is named. *Assumed*: nobody has
//! measured it for this model.

use super::Machine;

const CLOCK_MHZ: f64 = 1980.0;

/// Gigabytes per second as bytes per clock.
pub(super) const fn per_clock(gigabytes: f64) -> f64 {
    gigabytes * 1000.0 / CLOCK_MHZ
}

impl Machine {
    /// An NVIDIA H200 (SXM, 141 GB).
    pub const H200: Machine = Machine {
        // Published: the boost clock. What it ran at was not recorded.
        clock_mhz: CLOCK_MHZ,
        // Published.
        multiprocessors: 132.0,
        // Measured: `map read` of ViT-B/16 batch 64 in the CSV, 1312 MB in 286 us.
        dram_bytes: per_clock(4600.0),
        // Assumed, of the order that others measured on an H100 PCIe.
        l2_bytes: per_clock(5600.0),
        port_bytes: 64.0,
        // Published (CUDA programming guide, compute capability 9.0), as the limits that follow.
        l1_and_shared_bytes: 256.0 * 1024.0,
        // Assumed.
        l1_least_bytes: 16.0 * 1024.0,
        l1_most_bytes: 200.0 * 1024.0,
        // Published, as the limits that follow.
        shared_bytes: 228.0 * 1024.0,
        shared_per_block: 1024.0,
        registers: 65536.0,
        threads: 2048.0,
        blocks: 32.0,
        // Published by others (arXiv 2402.13499), to be read again before it is relied on.
        l1_latency: 40.0,
        // Fitted: rows ViT-L/14@336 f16. Published by others (as above): 263.
        l2_latency: 285.0,
        // Fitted: rows ViT-B/16 batch 64 f32 and rows DeiT-Ti, whose own optima are 1450 and 1900. Published by others
        // (as above): 479, unloaded. It stands in for what else is slow about a cold access.
        dram_latency: 1500.0,
        // Published by others (as above), with `remote_latency` and `mma_latency`.
        shared_latency: 29.0,
        remote_latency: 190.0,
        // Assumed, with the two that follow.
        barrier_latency: 25.0,
        cluster_latency: 220.0,
        branch_latency: 8.0,
        // Published by others (arXiv 2208.11174, A100): a dependent addition takes 4 clocks.
        arithmetic_latency: 4.5,
        // 4096 operations per clock and multiprocessor, of which `mma.sync` reaches 62 % (published by others, as above).
        mma_busy: 6.5,
        mma_latency: 33.0,
        // Fitted: matrix ViT-B/16 batch 1 f32. No source knows it: it may stand in for anything that grows with steps.
        mma_interval: 28.0,
        // Assumed, with the two that follow.
        atomic_latency: 60.0,
        fence_latency: 400.0,
        block_start: 500.0,
        // Assumed, with the three that follow; no hardware has been asked.
        bulk_latency: 170.0,
        // A loop of 10 machine instructions, which moves the operands to uniform registers (NVRTC 13.5, sm_90).
        bulk_interval: 30.0,
        mbarrier_latency: 40.0,
        // That of a load there and back, which others published (arXiv 2402.13499: 180).
        store_latency: 190.0,
        // Assumed: the way to L2, and half of the time from one look to the next. No hardware has been asked.
        word_latency: 700.0,
        // Assumed.
        graph_gap_us: 1.0,
        // Fitted: rows ViT-B/16 f32 take 1.45 us more per launch on a stream than in a graph.
        stream_gap_us: 2.45,
    };
}
