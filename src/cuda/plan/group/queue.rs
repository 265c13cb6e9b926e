//! Rows of several problems in one queue, an item after the other in each block: which problems join, and how many blocks share a
//! multiprocessor.

use super::item_bytes;
use crate::config::Output;
use crate::cuda::choose::{Queued, alone_us, queued};
use crate::cuda::kernel::RowsStream;
use crate::cuda::limits::DeviceLimits;
use crate::cuda::options::Options;
use crate::error::Result;
use crate::problem::Problem;

/// Blocks of a queue of rows that share a multiprocessor: as many as it has of the longest items to do. What one waits for
/// between the layers of its item the others fill, but an item takes the longer the smaller its block is.
pub(super) fn sharing<'a>(
    problems: impl Iterator<Item = &'a Problem> + Clone,
    limits: &DeviceLimits,
) -> u32 {
    let rows = problems.filter(|problem| matches!(problem.config().output, Output::Rows(_)));
    let bytes = rows.clone().map(Problem::map_bytes).sum::<usize>();
    let longest = rows.map(item_bytes).max().unwrap_or(0).max(1);
    let items = bytes.div_ceil(longest * limits.multiprocessors.max(1) as usize);
    let most = RowsStream::most_sharing(limits.shared_bytes_per_multiprocessor);
    items.clamp(1, most as usize) as u32
}

/// The problems that leave the queue. It takes as long as its longest item takes one block, or as memory takes for all; so those
/// of the longest items leave, as many as make the sum the least of what the queue and what they by themselves take. Where a
/// kernel or a way of computing is forced, none does.
///
/// # Errors
/// As [`choose`](crate::cuda::choose()).
pub(super) fn leaving(
    problems: &[Problem],
    limits: &DeviceLimits,
    options: &Options,
) -> Result<Vec<usize>> {
    if options.variant.is_some() || options.pipeline.is_some() {
        return Ok(Vec::new());
    }
    let all = problems.iter().enumerate();
    let joining = all.filter_map(|(index, problem)| Some((index, queued(problem, limits)?)));
    let mut longest: Vec<(usize, Queued)> = joining.collect();
    longest.sort_by(|(_, a), (_, b)| b.item_us.total_cmp(&a.item_us));
    let queue_us = |left: usize| {
        let rest = &longest[left..];
        let item_us = rest.first().map_or(0.0, |(_, longest)| longest.item_us);
        item_us.max(rest.iter().map(|(_, queued)| queued.memory_us).sum())
    };
    let (mut least_us, mut count, mut by_themselves_us) = (queue_us(0), 0, 0.0);
    for (left, &(index, _)) in longest.iter().enumerate() {
        by_themselves_us += alone_us(&problems[index], limits, options)?;
        let us = by_themselves_us + queue_us(left + 1);
        if us < least_us {
            (least_us, count) = (us, left + 1);
        }
    }
    Ok(longest[..count].iter().map(|&(index, _)| index).collect())
}

#[cfg(test)]
mod tests {
    use super::super::plan;
    use super::*;
    use crate::config::RolloutConfig;
    use crate::dtype::DType;
    use crate::layout::Shape;

    fn rows([layers, batch, heads, tokens]: [usize; 4]) -> Problem {
        let shape = Shape {
            layers,
            batch,
            heads,
            tokens,
        };
        Problem::new(shape, DType::F32, RolloutConfig::default()).unwrap()
    }

    #[test]
    fn few_large_items_leave_the_queue_and_many_small_ones_stay() {
        let features = [
            [3, 256, 4, 100],
            [2, 256, 4, 60],
            [3, 256, 4, 40],
            [2, 256, 4, 24],
            [1, 256, 4, 48],
            [1, 256, 4, 3],
        ];
        for (extents, expected) in [
            (features.to_vec(), vec![]),
            (vec![[6, 4, 12, 28], [3, 4, 4, 20], [2, 4, 4, 40]], vec![]),
            (vec![[3, 256, 4, 100], [12, 2, 12, 512]], vec![1]),
            (vec![[12, 4, 12, 512], [12, 64, 12, 128]], vec![0, 1]),
            (vec![], vec![]),
        ] {
            let problems: Vec<_> = extents.iter().copied().map(rows).collect();
            let (limits, options) = (&DeviceLimits::H200, &Options::default());
            let planned = plan(&problems, limits, options).unwrap();
            let alone = (0..planned.len()).filter(|&index| planned[index].alone);
            assert_eq!(alone.collect::<Vec<_>>(), expected, "{extents:?}");
        }
    }
}
