//! How far ahead of its loads a stream of maps is prefetched.
//!
//! As much must be on its way as memory's latency times its bandwidth; more does harm on some processors, presumably to their
//! own prefetchers: a loop that only reads four streams took 17 GB/s there without prefetches and 14 with some 2 KiB ahead.
//! Times the fastest read, one row, one thread of that 2-core EPYC of family 25 (Zen 3; 18 GB/s with one thread), four
//! streams, the tenth percentile of 25 runs, which spread by a tenth:
//!
//! | each stream ahead by | f32, 12x12x197 | f16 | f32, 12x12x512 | f16 | f32, 12x12x128 | f32, 4x100, 4 items |
//! |---|---|---|---|---|---|---|
//! | nothing is prefetched | 1.13 | 1.39 | 1.10 | 1.15 | 1.20 | 1.24 |
//! | 256 bytes | 1.07 | 1.23 | 1.00 | 1.06 | 1.11 | 1.08 |
//! | 512 bytes | 0.99 | 1.21 | 0.94 | 1.04 | 1.08 | 1.14 |
//! | 640 bytes | 1.16 | 1.33 | 1.03 | 1.15 | 1.17 | 1.16 |
//! | 2 KiB (f32), 3 KiB (f16) | 1.11 | 1.23 | 1.08 | 1.10 | 1.22 | 1.22 |
//!
//! On one of family 26 (Zen 5; 44 GB/s) 2 and 3 KiB were the fastest, and 1 KiB took 3 to 20 % longer (the module `fuse`); 512
//! bytes were not tried. So it is measured, once a process: maps of 256 KiB that lie in no cache are read both ways, a few
//! times. That takes 1 to 3 ms on the former, where ten processes of ten found what is near to be faster, by 5 to 16 %.

use std::fmt;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::cpu::fuse::{Accumulate, MapRows};
use crate::cpu::memory::Floats;
use crate::cpu::simd::{Simd, leave_caches};

/// Bytes that each stream is ahead of its loads: near ...
const NEAR_BYTES: usize = 512;

/// ... or far, all streams together, of elements of 4 bytes ...
const FAR_BYTES: usize = 8 << 10;

/// ... and of smaller ones, which take more instructions a byte, so that the processor sees fewer loads ahead by itself.
const FAR_BYTES_OF_SMALL: usize = 12 << 10;

/// How far ahead of its loads a stream of maps is prefetched. The result is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefetch {
    /// A little: where the processor's own prefetchers do the rest.
    Near,
    /// As much as hides the latency of fast memory.
    Far,
}

impl Prefetch {
    /// The faster one on this machine, measured at the first call of a process.
    pub fn of_machine() -> Self {
        static FASTER: OnceLock<Prefetch> = OnceLock::new();
        *FASTER.get_or_init(|| faster().unwrap_or(Prefetch::Far))
    }

    /// Bytes that each of `streams` is ahead, of elements of `element_bytes`.
    #[inline(always)]
    pub(crate) fn bytes(self, streams: usize, element_bytes: usize) -> usize {
        match (self, element_bytes) {
            (Prefetch::Near, _) => NEAR_BYTES,
            (Prefetch::Far, 4..) => FAR_BYTES / streams,
            (Prefetch::Far, _) => FAR_BYTES_OF_SMALL / streams,
        }
    }
}

impl fmt::Display for Prefetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Prefetch::Near => "near prefetches",
            Prefetch::Far => "far prefetches",
        })
    }
}

/// Heads, rows and columns of the maps that are read to measure: 256 KiB.
const MEASURED: [usize; 3] = [4, 16, 1024];

/// Times that they are read each way.
const ROUNDS: usize = 8;

/// What is near must take at most this much of the time of what is far: by less they do not differ, but the clock errs.
const FASTER_BY: f64 = 0.97;

/// The faster way to read maps from memory; none where caches cannot be emptied or there is no memory for maps.
fn faster() -> Option<Prefetch> {
    let [heads, rows, columns] = MEASURED;
    let maps = Floats::zeroed(heads * rows * columns).ok()?;
    let mut sums = Floats::zeroed(columns).ok()?;
    let simd = Simd::detect();
    let mut read = |prefetch| {
        leave_caches(&maps).then(|| {
            let start = Instant::now();
            let mut to = Accumulate {
                start_rows: 1,
                weights: &[0.5; MEASURED[1]],
                weights_stride: rows,
                block_rows: rows,
                part: &mut sums,
                part_stride: columns,
                fused: &mut [],
            };
            let maps = MapRows::of_heads(&maps, heads, columns);
            maps.prefetched(prefetch).accumulate(simd, &mut to);
            start.elapsed()
        })
    };
    let (mut near, mut far) = (Duration::MAX, Duration::MAX);
    for _ in 0..ROUNDS {
        near = near.min(read(Prefetch::Near)?);
        far = far.min(read(Prefetch::Far)?);
    }
    Some(match near.as_secs_f64() < FASTER_BY * far.as_secs_f64() {
        true => Prefetch::Near,
        false => Prefetch::Far,
    })
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::cpu::{GroupPlan, Options, Plan, PlanCache};
    use crate::{DType, Problem, RolloutConfig, Shape};

    #[test]
    fn plans_prefetch_as_they_are_told_and_else_as_was_measured() {
        let shape = Shape {
            layers: 2,
            batch: 1,
            heads: 1,
            tokens: 3,
        };
        let problem = Problem::new(shape, DType::F32, RolloutConfig::default()).unwrap();
        for prefetch in [None, Some(Prefetch::Near), Some(Prefetch::Far)] {
            let options = Options {
                threads: Some(NonZeroUsize::MIN),
                prefetch,
            };
            let expected = prefetch.unwrap_or_else(Prefetch::of_machine);
            let plan = Plan::new(&problem, &options).unwrap();
            assert_eq!(plan.choice().prefetch, expected);
            let group = GroupPlan::new(std::slice::from_ref(&problem), &options).unwrap();
            assert!(group.choices().all(|choice| choice.prefetch == expected));
            let mut cache = PlanCache::new(&options, NonZeroUsize::MIN).unwrap();
            assert_eq!(cache.get(&problem).unwrap().choice().prefetch, expected);
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn caches_can_be_emptied() {
        assert!(faster().is_some());
    }
}
