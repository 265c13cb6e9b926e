//! Launches one after the other.

use crate::Timing;
use crate::machine::Machine;

/// What a run of several launches is predicted to take, in microseconds.
///
/// Streams are added up, not overlapped: launches that fill the device overlap nothing, and no others are put on streams
/// of their own here.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timeline {
    /// As a CUDA graph.
    pub graph_us: f64,
    /// Launch by launch on a stream. What the first costs is hidden behind what ran before.
    pub stream_us: f64,
}

impl Timeline {
    /// The time of launches that follow one another.
    pub fn of(launches: &[Timing], machine: &Machine) -> Timeline {
        let us: f64 = launches.iter().map(|timing| timing.us).sum();
        let count = launches.len() as f64;
        let stream_gap = match launches.len() {
            0 | 1 => machine.graph_gap_us,
            _ => machine.stream_gap_us,
        };
        Timeline {
            graph_us: us + count * machine.graph_gap_us,
            stream_us: us + count * stream_gap,
        }
    }
}
