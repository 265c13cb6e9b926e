//! How many blocks fit a multiprocessor: threads, block slots and shared memory. Registers are ptxas's
//! to know, so the answers are upper bounds.

use crate::models::{Model, WARP};

/// Blocks of that many threads and bytes of shared memory (static and dynamic) per multiprocessor.
pub fn blocks_per_multiprocessor(model: &Model, threads: u32, shared: u32) -> u32 {
    if threads == 0 || shared > model.shared_per_block_optin {
        return 0;
    }
    let granularity = if model.major >= 8 { 128 } else { 256 };
    let shared = (shared + model.shared_reserved).next_multiple_of(granularity);
    let by_threads = model.threads_per_multiprocessor / WARP / threads.div_ceil(WARP);
    let by_shared = model
        .shared_per_multiprocessor
        .checked_div(shared)
        .unwrap_or(u32::MAX);
    by_threads
        .min(by_shared)
        .min(model.blocks_per_multiprocessor)
}

/// Shared memory that lets `blocks` blocks of that many threads stay on a multiprocessor, static
/// memory of the kernel taken off.
pub fn dynamic_shared_for(model: &Model, blocks: u32, threads: u32, static_shared: u32) -> u32 {
    if blocks == 0 || blocks_per_multiprocessor(model, threads, static_shared) < blocks {
        return 0;
    }
    let granularity = if model.major >= 8 { 128 } else { 256 };
    let each = model.shared_per_multiprocessor / blocks / granularity * granularity;
    let each = each
        .saturating_sub(model.shared_reserved)
        .min(model.shared_per_block_optin);
    each.saturating_sub(static_shared)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_resource_can_be_the_limit() {
        let h200 = Model::find("sm_90").unwrap();
        assert_eq!(blocks_per_multiprocessor(&h200, 1024, 0), 2, "threads");
        assert_eq!(blocks_per_multiprocessor(&h200, 32, 0), 32, "block slots");
        // 228 KiB hold two blocks of 112 KiB + 1 KiB reserved, not two of 114 KiB + 1 KiB.
        assert_eq!(
            blocks_per_multiprocessor(&h200, 128, 112 << 10),
            2,
            "shared memory"
        );
        assert_eq!(blocks_per_multiprocessor(&h200, 128, 114 << 10), 1);
        assert_eq!(
            blocks_per_multiprocessor(&h200, 128, 228 << 10),
            0,
            "over the opt-in limit"
        );
        let t4 = Model::find("sm_75").unwrap();
        assert_eq!(blocks_per_multiprocessor(&t4, 64, 0), 16);
    }

    #[test]
    fn shared_memory_for_a_wanted_occupancy_gives_that_occupancy() {
        for model in crate::models::MODELS {
            for blocks in 1..=8 {
                let dynamic = dynamic_shared_for(&model, blocks, 96, 1000);
                let got = blocks_per_multiprocessor(&model, 96, 1000 + dynamic);
                assert!(got >= blocks, "{}: {blocks} blocks, got {got}", model.arch);
            }
        }
    }
}
