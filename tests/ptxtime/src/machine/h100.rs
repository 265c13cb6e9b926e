//! NVIDIA H100 SXM: the die of the [`H200`](Machine::H200) with slower memory. Nothing here was held to a measurement.

use super::Machine;
use super::h200::per_clock;

impl Machine {
    /// An NVIDIA H100 (SXM, 80 GB).
    pub const H100: Machine = Machine {
        // Published: 3352 GB/s, of which as much is assumed to be reached as the H200 reaches of its 4800.
        dram_bytes: per_clock(3352.0 * 4600.0 / 4800.0),
        // As the H200: the same die.
        ..Machine::H200
    };
}
