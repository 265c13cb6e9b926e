//! What a device offers, as a plain value: the choice of kernels is a function of it, for any device, real or made up.

/// What the choice of kernels depends on. Every field may be set freely; nothing here asks a driver.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DeviceLimits {
    /// Compute capability times ten: 90 for 9.0.
    pub arch: u32,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Largest shared memory of one block, after opting in, in bytes.
    pub shared_bytes_per_block: usize,
    /// Shared memory of one multiprocessor in bytes.
    pub shared_bytes_per_multiprocessor: usize,
    /// 32-bit registers of one multiprocessor.
    pub registers_per_multiprocessor: u32,
    /// Threads that can be resident on one multiprocessor.
    pub threads_per_multiprocessor: u32,
    /// L2 cache in bytes.
    pub l2_bytes: usize,
    /// Whether blocks can be launched in clusters with shared memory in common.
    pub clusters: bool,
}

impl DeviceLimits {
    /// The oldest architecture the kernels compile for.
    pub const OLDEST_ARCH: u32 = 75;

    /// An NVIDIA H200 or H100 SXM (the two differ only in memory).
    pub const H200: DeviceLimits = DeviceLimits {
        arch: 90,
        multiprocessors: 132,
        shared_bytes_per_block: 227 << 10,
        shared_bytes_per_multiprocessor: 228 << 10,
        registers_per_multiprocessor: 65_536,
        threads_per_multiprocessor: 2048,
        l2_bytes: 50 << 20,
        clusters: true,
    };

    /// An NVIDIA A100.
    pub const A100: DeviceLimits = DeviceLimits {
        arch: 80,
        multiprocessors: 108,
        shared_bytes_per_block: 163 << 10,
        shared_bytes_per_multiprocessor: 164 << 10,
        registers_per_multiprocessor: 65_536,
        threads_per_multiprocessor: 2048,
        l2_bytes: 40 << 20,
        clusters: false,
    };

    /// An NVIDIA T4, the smallest device that is supported.
    pub const T4: DeviceLimits = DeviceLimits {
        arch: 75,
        multiprocessors: 40,
        shared_bytes_per_block: 64 << 10,
        shared_bytes_per_multiprocessor: 64 << 10,
        registers_per_multiprocessor: 65_536,
        threads_per_multiprocessor: 1024,
        l2_bytes: 4 << 20,
        clusters: false,
    };
}
