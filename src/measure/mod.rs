//! Measuring a rollout: inputs that mean something, a check before the clock starts, and the floor to compare with.
//!
//! Shared by `benches/` and `attention-rollout bench`, on the CPU and on GPUs, so that all report the same numbers. Not
//! part of the public API.

mod case;
mod check;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
mod device_maps;
#[cfg(feature = "cuda")]
mod device_read;
mod floor;
mod inputs;
mod products;
mod rotation;
mod runner;

use std::num::NonZeroUsize;
use std::time::Duration;

pub use case::{Case, Times};
pub use floor::HostRead;
pub use inputs::Inputs;
pub use products::Products;
pub use runner::{Replay, Setup};

use crate::error::{Error, Result};

/// The smallest of `times`; zero where there are none.
pub fn minimum(times: &[Duration]) -> Duration {
    times.iter().copied().min().unwrap_or_default()
}

/// The median of `times`; zero where there are none.
pub fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    match sorted.len() {
        0 => Duration::ZERO,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2,
    }
}

/// `bytes` per `time`, in GB/s.
pub fn gb_per_s(bytes: usize, time: Duration) -> f64 {
    bytes as f64 / time.as_secs_f64() * 1e-9
}

/// A pool of `threads` threads.
fn thread_pool(threads: NonZeroUsize) -> Result<rayon::ThreadPool> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.get())
        .build()
        .map_err(|error| Error::Threads {
            threads: threads.get(),
            reason: error.to_string(),
        })
}
