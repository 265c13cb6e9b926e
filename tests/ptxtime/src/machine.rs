//! What the model knows of a device. One file per device, each constant with its source.

mod h100;
mod h200;

macro_rules! machine {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A device. Clocks are those of a multiprocessor; what is said per multiprocessor in [`h200`](Machine::H200) is
        /// true of every constant here.
        #[derive(Clone, Debug, PartialEq)]
        pub struct Machine {
            $($(#[$doc])* pub $name: f64,)*
        }

        impl Machine {
            /// The names of the constants, as [`constant`](Machine::constant) takes them.
            pub const CONSTANTS: &[&str] = &[$(stringify!($name),)*];

            /// A constant by its name.
            pub fn constant(&mut self, name: &str) -> Option<&mut f64> {
                match name {
                    $(stringify!($name) => Some(&mut self.$name),)*
                    _ => None,
                }
            }
        }
    };
}

machine! {
    /// Clock of the multiprocessors, in MHz.
    clock_mhz,
    /// Multiprocessors.
    multiprocessors,
    /// Bytes per clock from DRAM, of all multiprocessors together.
    dram_bytes,
    /// Bytes per clock from L2, of all multiprocessors together.
    l2_bytes,
    /// Bytes per clock into one multiprocessor.
    port_bytes,
    /// Bytes of the memory that L1 and shared memory divide, and of it what L1 takes at least and at most.
    l1_and_shared_bytes,
    /// See [`l1_and_shared_bytes`](Self::l1_and_shared_bytes).
    l1_least_bytes,
    /// See [`l1_and_shared_bytes`](Self::l1_and_shared_bytes).
    l1_most_bytes,
    /// Bytes of shared memory that blocks of one multiprocessor may take, and that each takes besides its own.
    shared_bytes,
    /// See [`shared_bytes`](Self::shared_bytes).
    shared_per_block,
    /// Registers of a multiprocessor.
    registers,
    /// Threads that a multiprocessor holds.
    threads,
    /// Blocks that a multiprocessor holds.
    blocks,
    /// Clocks from a load to its use, found in L1.
    l1_latency,
    /// The same, found in L2.
    l2_latency,
    /// The same, found in DRAM.
    dram_latency,
    /// The same, from shared memory.
    shared_latency,
    /// The same, from shared memory of another block of the cluster.
    remote_latency,
    /// From the last arrival at a barrier of the block until its warps go on.
    barrier_latency,
    /// The same of a cluster.
    cluster_latency,
    /// A branch that is taken.
    branch_latency,
    /// From an addition to its use.
    arithmetic_latency,
    /// Clocks for which a matrix product occupies its tensor core.
    mma_busy,
    /// From a matrix product to its use.
    mma_latency,
    /// From one matrix product of a warp to the next.
    mma_interval,
    /// From an atomic operation on shared memory to its use.
    atomic_latency,
    /// A memory fence.
    fence_latency,
    /// From the start of a bulk copy to its bytes' arrival, beyond what a load of them takes.
    bulk_latency,
    /// From one bulk copy that a warp starts to the next.
    bulk_interval,
    /// From the end of an mbarrier's phase until a warp that waits for it goes on.
    mbarrier_latency,
    /// From a store to the shared memory of another block until it is complete there.
    store_latency,
    /// From a store of a word until a load elsewhere that looks for it again and again is the one that finds it.
    word_latency,
    /// From the end of a block to the first instruction of the one that takes its place.
    block_start,
    /// From the end of a kernel to the start of the next in a graph, in microseconds.
    graph_gap_us,
    /// The same on a stream.
    stream_gap_us,
}

impl Machine {
    /// The device of that name: `h200` or `h100`.
    pub fn named(name: &str) -> Option<Machine> {
        match name {
            "h200" => Some(Machine::H200),
            "h100" => Some(Machine::H100),
            _ => None,
        }
    }

    /// Microseconds of clocks.
    pub fn us(&self, clocks: f64) -> f64 {
        clocks / self.clock_mhz
    }
}
