//! The floor of a rollout on the CPU: reading every byte of the maps once, and nothing else.

use std::num::NonZeroUsize;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::thread_pool;
use crate::cpu::simd::prefetch;
use crate::error::Result;
use crate::layer::{HostLayer, HostTensor, Layer};

/// Reads maps as fast as this machine can with a number of threads.
///
/// Which order is fastest depends on the prefetchers (one sequential stream, or several at once as a head average
/// reads them; left to the processor, or helped by prefetches, which cross the pages of short maps), so all are tried at the first use, unless one has been set, and the fastest is kept.
pub struct HostRead {
    pool: rayon::ThreadPool,
    threads: usize,
    order: OnceLock<Order>,
}

/// Reads one part of the maps and returns a value that depends on all of it.
pub(super) type Order = fn(&[u64]) -> u64;

pub(super) const ORDERS: [Order; 6] = [
    read::<1, 0>,
    read::<2, 0>,
    read::<12, 0>,
    read::<4, 512>,
    read::<4, 1024>,
    read::<6, 512>,
];

impl HostRead {
    /// A floor for `threads` threads.
    ///
    /// # Errors
    /// [`Error::Threads`](crate::Error::Threads).
    pub fn new(threads: NonZeroUsize) -> Result<Self> {
        Ok(HostRead {
            pool: thread_pool(threads)?,
            threads: threads.get(),
            order: OnceLock::new(),
        })
    }

    /// The time to read the first `bytes` bytes of `layers`.
    pub fn time(&self, layers: &[HostLayer<'_>], bytes: usize) -> Duration {
        self.time_parts(&parts(layers, bytes))
    }

    /// The time to read `parts`, each shared out among the threads.
    pub(super) fn time_parts(&self, parts: &[&[u64]]) -> Duration {
        let order = *self.order.get_or_init(|| {
            ORDERS
                .into_iter()
                .min_by_key(|&order| (0..3).map(|_| self.run(parts, order)).min())
                .unwrap_or(ORDERS[0])
        });
        self.run(parts, order)
    }

    /// Sets the order to read in, before the first use.
    pub(super) fn set_order(&self, order: Order) {
        // One that has been set or chosen stays: two that read equally fast are equally good.
        let _ = self.order.set(order);
    }

    /// The time to read `parts` in an order.
    pub(super) fn run(&self, parts: &[&[u64]], order: Order) -> Duration {
        let threads = self.threads;
        let share = |thread: usize| {
            for part in parts {
                let words = part.len().div_ceil(threads);
                let own = part.chunks(words.max(1)).nth(thread).unwrap_or(&[]);
                std::hint::black_box(order(own));
            }
        };
        let start = Instant::now();
        if self.threads == 1 {
            share(0);
        } else {
            self.pool.broadcast(|context| share(context.index()));
        }
        start.elapsed()
    }
}

/// The words in the first `bytes` bytes of `layers`.
pub(super) fn parts<'a>(layers: &[HostLayer<'a>], bytes: usize) -> Vec<&'a [u64]> {
    let mut left = bytes / size_of::<u64>();
    let cut = |tensor: &HostTensor<'a>| {
        let (_, words, _) = bytemuck::pod_align_to(tensor.bytes());
        let words = &words[..words.len().min(left)];
        left -= words.len();
        words
    };
    layers.iter().flat_map(Layer::operands).map(cut).collect()
}

/// Reads `words` as `STREAMS` sequential streams, taken in turns line by line, and asks for what lies `AHEAD` bytes
/// further on where that is not 0.
fn read<const STREAMS: usize, const AHEAD: usize>(words: &[u64]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, as just asked.
        return unsafe { read_avx2::<STREAMS, AHEAD>(words) };
    }
    read_lines::<STREAMS, AHEAD>(words)
}

/// [`read_lines`], compiled to 32-byte loads.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn read_avx2<const STREAMS: usize, const AHEAD: usize>(words: &[u64]) -> u64 {
    read_lines::<STREAMS, AHEAD>(words)
}

#[inline(always)]
fn read_lines<const STREAMS: usize, const AHEAD: usize>(words: &[u64]) -> u64 {
    const LINE: usize = 8;
    let (all, rest) = words.as_chunks::<LINE>();
    let lines = all.len() / STREAMS;
    let mut sums = [[0; LINE]; STREAMS];
    for line in 0..lines {
        for stream in 0..STREAMS {
            let words = &all[stream * lines + line];
            if AHEAD > 0 {
                prefetch(words.as_ptr().cast::<u8>().wrapping_add(AHEAD));
            }
            for word in 0..LINE {
                sums[stream][word] ^= words[word];
            }
        }
    }
    let rest = all[lines * STREAMS..].as_flattened().iter().chain(rest);
    sums.as_flattened()
        .iter()
        .chain(rest)
        .fold(0, |all, sum| all ^ sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_order_reads_every_word() {
        for len in [0, 1, 95, 96, 97, 1000] {
            let words: Vec<u64> = (1..=len).collect();
            let expected = words.iter().fold(0, |all, word| all ^ word);
            for order in ORDERS {
                assert_eq!(order(&words), expected, "{len} words");
            }
        }
    }
}
