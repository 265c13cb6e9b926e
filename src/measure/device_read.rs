//! The floor of a rollout on a GPU: reading every byte of the maps once, and nothing else (`kernels/read_floor.cu`).

use std::sync::Arc;

use cudarc::driver::{
    CudaContext, CudaFunction, CudaSlice, CudaStream, DevicePtr, LaunchConfig, PushKernelArg,
};
use cudarc::nvrtc::Ptx;

use crate::cuda::cudarc;
use crate::cuda::nvrtc::{self, Cache, Image, Nvrtc, Source};
use crate::cuda::{self, Options, compile_target, driver_error};
use crate::error::{Error, Result};

/// The kernel's symbol, and the stem of its file.
const KERNEL: &str = "read_floor";
const BLOCK_THREADS: u32 = 256;
/// Granules of 16 bytes that one thread takes in a turn: `IN_FLIGHT` of the kernel.
const IN_FLIGHT: u32 = 8;
pub(super) const GRANULE_BYTES: usize = 16;
/// What the bits that a thread has read must fold to for it to write them: as likely as any other number.
const UNLIKELY: u32 = 0x9e37_79b9;

/// The kernel that reads memory.
pub(super) struct DeviceRead {
    function: CudaFunction,
    /// The word that the kernel could write, and its address: cudarc gives that only together with a wait.
    _out: CudaSlice<u32>,
    out_address: u64,
    multiprocessors: u32,
    /// The most blocks of a launch.
    pub blocks: u32,
}

impl DeviceRead {
    /// Compiles and loads the kernel.
    ///
    /// # Errors
    /// [`Error::Nvrtc`], [`Error::Driver`].
    pub fn new(
        context: &Arc<CudaContext>,
        stream: &Arc<CudaStream>,
        options: &Options,
    ) -> Result<Self> {
        let limits = cuda::limits(context)?;
        let module = context
            .load_module(image(limits.arch, options)?)
            .map_err(driver_error("cuModuleLoadData"))?;
        let out = stream
            .alloc_zeros(1)
            .map_err(driver_error("cuMemAllocAsync"))?;
        let out_address = out.device_ptr(stream).0;
        Ok(DeviceRead {
            function: module
                .load_function(KERNEL)
                .map_err(driver_error("cuModuleGetFunction"))?,
            out_address,
            _out: out,
            multiprocessors: limits.multiprocessors,
            blocks: u32::MAX,
        })
    }

    /// Numbers of blocks to choose from: as many as run at once, or one for each tile.
    pub fn grids(&self) -> [u32; 4] {
        let multiprocessors = self.multiprocessors;
        [
            2 * multiprocessors,
            4 * multiprocessors,
            8 * multiprocessors,
            u32::MAX,
        ]
    }

    /// Submits the reading of `bytes` bytes, to whole granules, from `address`.
    ///
    /// # Safety
    /// `address` is a multiple of 16, and `bytes` bytes from there on are initialised memory of the stream's device that
    /// nothing writes until the kernel has run.
    pub unsafe fn submit(
        &self,
        stream: &Arc<CudaStream>,
        address: u64,
        bytes: usize,
    ) -> Result<()> {
        let granules = (bytes / GRANULE_BYTES) as u64;
        let tiles = granules.div_ceil(u64::from(BLOCK_THREADS * IN_FLIGHT));
        let blocks = tiles.clamp(1, u64::from(self.blocks)) as u32;
        let config = LaunchConfig {
            grid_dim: (blocks, 1, 1),
            block_dim: (BLOCK_THREADS, 1, 1),
            shared_mem_bytes: 0,
        };
        let mut launch = stream.launch_builder(&self.function);
        launch
            .arg(&address)
            .arg(&granules)
            .arg(&UNLIKELY)
            .arg(&self.out_address);
        // SAFETY: these are the kernel's arguments; the caller vouches for what it reads, and it writes one word of
        // its own at most.
        unsafe { launch.launch(config) }
            .map(drop)
            .map_err(driver_error("cuLaunchKernel"))
    }
}

/// The kernel for a device of architecture `arch`.
fn image(arch: u32, options: &Options) -> Result<Ptx> {
    let file = "read_floor.cu";
    let source = Source::embedded(file).ok_or_else(|| Error::Variant {
        name: KERNEL.to_owned(),
        reason: format!("has no source {file}"),
    })?;
    let nvrtc = match &options.nvrtc {
        Some(nvrtc) => nvrtc.clone(),
        None => Nvrtc::load_for_driver(cuda::driver_version()?)?,
    };
    let cache = options.cache.clone().unwrap_or_else(Cache::from_env);
    let target = compile_target(&nvrtc, arch, options.image);
    let options = nvrtc::Options::new(target).label(KERNEL);
    Ok(match cache.compile(&nvrtc, &source, &options)?.image {
        Image::Cubin(bytes) => Ptx::from_binary(bytes),
        Image::Ptx(text) => Ptx::from_src(text),
    })
}
