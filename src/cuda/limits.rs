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
    /// Bytes that memory moves in a microsecond at its peak: twice its clock, times the width of its bus.
    pub memory_bytes_per_us: u32,
    /// Whether blocks can be launched in clusters with shared memory in common.
    pub clusters: bool,
}

impl DeviceLimits {
    /// The oldest architecture the kernels compile for.
    pub const OLDEST_ARCH: u32 = 75;

    /// GPUs that can be planned for without being there, oldest first, as `attention-rollout plan --gpu` calls them: from the
    /// table of compute capabilities in NVIDIA's CUDA programming guide, and each one's data sheet; memory by its clock and
    /// bus, which for an H200 is 2 % more than is published.
    pub const MODELS: [(&'static str, DeviceLimits); 9] = [
        ("t4", DeviceLimits::T4),
        ("a100", DeviceLimits::A100),
        ("l4", DeviceLimits::ada(58, 48, 300_048)),
        ("l40s", DeviceLimits::ada(142, 96, 864_096)),
        ("rtx4090", DeviceLimits::ada(128, 72, 1_008_096)),
        ("h100", DeviceLimits::H100),
        ("h200", DeviceLimits::H200),
        (
            "b200",
            DeviceLimits {
                arch: 100,
                multiprocessors: 148,
                l2_bytes: 126 << 20,
                memory_bytes_per_us: 8_183_808,
                ..DeviceLimits::H200
            },
        ),
        (
            "rtx5090",
            DeviceLimits {
                arch: 120,
                clusters: true,
                ..DeviceLimits::ada(170, 96, 1_792_128)
            },
        ),
    ];

    /// The one of [`MODELS`](DeviceLimits::MODELS) of that name.
    pub fn of_model(name: &str) -> Option<DeviceLimits> {
        let mut models = DeviceLimits::MODELS.into_iter();
        models.find_map(|(model, limits)| (model == name).then_some(limits))
    }

    /// An NVIDIA H200: all 60 MB of L2 of the die, since it has all 12 of its memory controllers; an H100 has 10.
    pub const H200: DeviceLimits = DeviceLimits {
        arch: 90,
        multiprocessors: 132,
        shared_bytes_per_block: 227 << 10,
        shared_bytes_per_multiprocessor: 228 << 10,
        registers_per_multiprocessor: 65_536,
        threads_per_multiprocessor: 2048,
        l2_bytes: 60 << 20,
        memory_bytes_per_us: 4_916_736,
        clusters: true,
    };

    /// An NVIDIA H100 SXM, which differs only in its memory and its L2.
    pub const H100: DeviceLimits = DeviceLimits {
        l2_bytes: 50 << 20,
        memory_bytes_per_us: 3_352_320,
        ..DeviceLimits::H200
    };

    /// An NVIDIA A100 with 80 GB.
    pub const A100: DeviceLimits = DeviceLimits {
        arch: 80,
        multiprocessors: 108,
        shared_bytes_per_block: 163 << 10,
        shared_bytes_per_multiprocessor: 164 << 10,
        registers_per_multiprocessor: 65_536,
        threads_per_multiprocessor: 2048,
        l2_bytes: 40 << 20,
        memory_bytes_per_us: 2_039_040,
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
        memory_bytes_per_us: 320_064,
        clusters: false,
    };

    /// A GPU of the Ada generation.
    const fn ada(multiprocessors: u32, l2_megabytes: usize, memory_bytes_per_us: u32) -> Self {
        DeviceLimits {
            arch: 89,
            multiprocessors,
            shared_bytes_per_block: 99 << 10,
            shared_bytes_per_multiprocessor: 100 << 10,
            registers_per_multiprocessor: 65_536,
            threads_per_multiprocessor: 1536,
            l2_bytes: l2_megabytes << 20,
            memory_bytes_per_us,
            clusters: false,
        }
    }
}
