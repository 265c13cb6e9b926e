//! The device models: what each claims to be and to allow.
//!
//! Numbers are those of the CUDA programming guide's table of compute capabilities and of the named
//! product's data sheet.

const KIB: u32 = 1 << 10;
const MIB: u32 = 1 << 20;
const GIB: u64 = 1 << 30;

/// One kind of GPU.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    /// `sm_90`.
    pub arch: &'static str,
    /// What `cuDeviceGetName` answers.
    pub name: &'static str,
    pub major: u32,
    pub minor: u32,
    pub multiprocessors: u32,
    pub threads_per_multiprocessor: u32,
    pub blocks_per_multiprocessor: u32,
    pub shared_per_multiprocessor: u32,
    /// Shared memory of one block after `cuFuncSetAttribute`; without it 48 KiB.
    pub shared_per_block_optin: u32,
    /// Shared memory the system takes from each block.
    pub shared_reserved: u32,
    pub l2_bytes: u32,
    pub memory_bytes: u64,
    pub clock_khz: u32,
    pub memory_clock_khz: u32,
    pub memory_bus_bits: u32,
    /// Largest cluster with and without `NON_PORTABLE_CLUSTER_SIZE_ALLOWED`; 1 where there are none.
    pub cluster_portable: u32,
    pub cluster_non_portable: u32,
}

/// Shared memory of one block without opting in.
pub const SHARED_PER_BLOCK: u32 = 48 * KIB;
pub const MAX_THREADS_PER_BLOCK: u32 = 1024;
pub const MAX_BLOCK: [u32; 3] = [1024, 1024, 64];
pub const MAX_GRID: [u32; 3] = [i32::MAX as u32, 65535, 65535];
pub const WARP: u32 = 32;
const REGISTERS: u32 = 65536;

/// Every model, oldest first.
pub const MODELS: [Model; 7] = [
    Model {
        arch: "sm_75",
        name: "Tesla T4",
        major: 7,
        minor: 5,
        multiprocessors: 40,
        threads_per_multiprocessor: 1024,
        blocks_per_multiprocessor: 16,
        shared_per_multiprocessor: 64 * KIB,
        shared_per_block_optin: 64 * KIB,
        shared_reserved: 0,
        l2_bytes: 4 * MIB,
        memory_bytes: 15 * GIB,
        clock_khz: 1_590_000,
        memory_clock_khz: 5_001_000,
        memory_bus_bits: 256,
        cluster_portable: 1,
        cluster_non_portable: 1,
    },
    Model {
        arch: "sm_80",
        name: "NVIDIA A100-SXM4-80GB",
        major: 8,
        minor: 0,
        multiprocessors: 108,
        threads_per_multiprocessor: 2048,
        blocks_per_multiprocessor: 32,
        shared_per_multiprocessor: 164 * KIB,
        shared_per_block_optin: 163 * KIB,
        shared_reserved: KIB,
        l2_bytes: 40 * MIB,
        memory_bytes: 79 * GIB,
        clock_khz: 1_410_000,
        memory_clock_khz: 1_593_000,
        memory_bus_bits: 5120,
        cluster_portable: 1,
        cluster_non_portable: 1,
    },
    Model {
        arch: "sm_86",
        name: "NVIDIA A10",
        major: 8,
        minor: 6,
        multiprocessors: 72,
        threads_per_multiprocessor: 1536,
        blocks_per_multiprocessor: 16,
        shared_per_multiprocessor: 100 * KIB,
        shared_per_block_optin: 99 * KIB,
        shared_reserved: KIB,
        l2_bytes: 6 * MIB,
        memory_bytes: 22 * GIB,
        clock_khz: 1_695_000,
        memory_clock_khz: 6_251_000,
        memory_bus_bits: 384,
        cluster_portable: 1,
        cluster_non_portable: 1,
    },
    Model {
        arch: "sm_89",
        name: "NVIDIA GeForce RTX 4090",
        major: 8,
        minor: 9,
        multiprocessors: 128,
        threads_per_multiprocessor: 1536,
        blocks_per_multiprocessor: 24,
        shared_per_multiprocessor: 100 * KIB,
        shared_per_block_optin: 99 * KIB,
        shared_reserved: KIB,
        l2_bytes: 72 * MIB,
        memory_bytes: 23 * GIB,
        clock_khz: 2_520_000,
        memory_clock_khz: 10_501_000,
        memory_bus_bits: 384,
        cluster_portable: 1,
        cluster_non_portable: 1,
    },
    Model {
        arch: "sm_90",
        name: "NVIDIA H200",
        major: 9,
        minor: 0,
        multiprocessors: 132,
        threads_per_multiprocessor: 2048,
        blocks_per_multiprocessor: 32,
        shared_per_multiprocessor: 228 * KIB,
        shared_per_block_optin: 227 * KIB,
        shared_reserved: KIB,
        l2_bytes: 60 * MIB,
        memory_bytes: 139 * GIB,
        clock_khz: 1_980_000,
        memory_clock_khz: 3_201_000,
        memory_bus_bits: 6144,
        cluster_portable: 8,
        cluster_non_portable: 16,
    },
    Model {
        arch: "sm_100",
        name: "NVIDIA B200",
        major: 10,
        minor: 0,
        multiprocessors: 148,
        threads_per_multiprocessor: 2048,
        blocks_per_multiprocessor: 32,
        shared_per_multiprocessor: 228 * KIB,
        shared_per_block_optin: 227 * KIB,
        shared_reserved: KIB,
        l2_bytes: 126 * MIB,
        memory_bytes: 178 * GIB,
        clock_khz: 1_965_000,
        memory_clock_khz: 3_996_000,
        memory_bus_bits: 8192,
        cluster_portable: 8,
        cluster_non_portable: 16,
    },
    Model {
        arch: "sm_120",
        name: "NVIDIA GeForce RTX 5090",
        major: 12,
        minor: 0,
        multiprocessors: 170,
        threads_per_multiprocessor: 1536,
        blocks_per_multiprocessor: 24,
        shared_per_multiprocessor: 100 * KIB,
        shared_per_block_optin: 99 * KIB,
        shared_reserved: KIB,
        l2_bytes: 96 * MIB,
        memory_bytes: 31 * GIB,
        clock_khz: 2_407_000,
        memory_clock_khz: 14_001_000,
        memory_bus_bits: 512,
        cluster_portable: 8,
        cluster_non_portable: 8,
    },
];

impl Model {
    /// The model of that architecture name. `sm_90/16` is one with 16 multiprocessors, as a slice of a GPU has them: blocks
    /// that run together, one on each, take memory and time.
    pub fn find(name: &str) -> Option<Model> {
        let (arch, slice) = match name.split_once('/') {
            Some((arch, multiprocessors)) => (arch, Some(multiprocessors.parse().ok()?)),
            None => (name, None),
        };
        let whole = MODELS.iter().copied().find(|model| model.arch == arch)?;
        let multiprocessors = slice.unwrap_or(whole.multiprocessors);
        (1..=whole.multiprocessors)
            .contains(&multiprocessors)
            .then_some(Model {
                multiprocessors,
                ..whole
            })
    }

    /// The models named in a list like `sm_90,sm_80/16`; `None` if one of them does not exist.
    pub fn parse(list: &str) -> Option<Vec<Model>> {
        let names = list
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty());
        names.map(Model::find).collect()
    }

    /// `90` for `sm_90`.
    pub fn sm(&self) -> u32 {
        self.major * 10 + self.minor
    }

    pub fn has_clusters(&self) -> bool {
        self.cluster_portable > 1
    }

    /// The attribute numbered as `CUdevice_attribute`; `None` if there is no such number.
    ///
    /// A number that exists and is not listed answers 0, "not supported".
    pub fn attribute(&self, attribute: u32) -> Option<u32> {
        const ATTRIBUTE_MAX: u32 = 144;
        Some(match attribute {
            0 | ATTRIBUTE_MAX.. => return None,
            1 => MAX_THREADS_PER_BLOCK,
            2..=4 => MAX_BLOCK[attribute as usize - 2],
            5..=7 => MAX_GRID[attribute as usize - 5],
            8 => SHARED_PER_BLOCK,
            9 => 64 * KIB, // constant memory
            10 => WARP,
            11 => i32::MAX as u32, // copy pitch
            12 | 82 => REGISTERS,  // per block, per multiprocessor
            13 => self.clock_khz,
            14 => 512, // texture alignment
            16 => self.multiprocessors,
            // Copy overlap, concurrent kernels, unified addressing, stream priorities, global and local
            // L1, compute preemption, cooperative launch, host registration, memory pools.
            15 | 31 | 41 | 78 | 79 | 80 | 90 | 95 | 99 | 115 => 1,
            36 => self.memory_clock_khz,
            37 => self.memory_bus_bits,
            38 => self.l2_bytes,
            39 => self.threads_per_multiprocessor,
            40 => 2, // copy engines
            75 => self.major,
            76 => self.minor,
            81 => self.shared_per_multiprocessor,
            97 => self.shared_per_block_optin,
            106 => self.blocks_per_multiprocessor,
            108 if self.major >= 8 => self.l2_bytes / 4 * 3, // persisting L2
            111 => self.shared_reserved,
            120 => u32::from(self.has_clusters()),
            _ => 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_have_fewer_multiprocessors() {
        let slice = Model::find("sm_90/16").unwrap();
        assert_eq!((slice.arch, slice.multiprocessors), ("sm_90", 16));
        for wrong in ["sm_90/0", "sm_90/133", "sm_90/", "sm_90/x", "/16"] {
            assert!(Model::find(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn models_are_consistent() {
        for model in MODELS {
            assert_eq!(model.arch, format!("sm_{}", model.sm()));
            assert!(
                model.shared_per_block_optin + model.shared_reserved
                    <= model.shared_per_multiprocessor
            );
            assert!(model.cluster_portable <= model.cluster_non_portable);
            assert_eq!(model.has_clusters(), model.major >= 9);
            assert_eq!(model.attribute(75), Some(model.major));
            assert_eq!(model.attribute(97), Some(model.shared_per_block_optin));
            assert_eq!(model.attribute(120), Some(u32::from(model.major >= 9)));
            assert_eq!(model.attribute(0), None);
            assert_eq!(model.attribute(9999), None);
        }
        assert!(Model::find("sm_42").is_none());
    }
}
