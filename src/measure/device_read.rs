//! The floor of a rollout on a GPU: reading every byte of the maps once, and nothing else (`kernels/read_floor.cu`).

use std::sync::Arc;

use crate::cuda::Runtime;
use crate::cuda::address::{Address, Base, Bases};
use crate::cuda::cudarc::driver::CudaStream;
use crate::cuda::driver::{self, DeviceMemory, Function};
use crate::cuda::kernel::ReadFloor;
use crate::cuda::launch::{Launch, MAX_WORDS};
use crate::cuda::variant::Entry;
use crate::error::Result;

/// What is read.
const MAPS: Base = Base::Layer {
    layer: 0,
    operand: 0,
};

/// Reads memory of one size.
pub(super) struct DeviceRead {
    launch: Launch,
    bases: Bases,
    /// The word that the kernel could write.
    _out: DeviceMemory,
    function: Arc<Function>,
    bytes: usize,
    multiprocessors: u32,
}

impl DeviceRead {
    /// Compiles and loads the kernel, for reads of `bytes` bytes to whole granules.
    ///
    /// # Errors
    /// [`Error::Nvrtc`](crate::Error::Nvrtc), [`Error::Driver`](crate::Error::Driver).
    pub fn new(runtime: &Runtime, bytes: usize) -> Result<Self> {
        let out = DeviceMemory::new(runtime.context(), "a word", size_of::<u32>())?;
        let mut bases = Bases::new(0, 1);
        bases.place(Base::Output, out.address());
        Ok(DeviceRead {
            launch: launch(bytes, u32::MAX),
            bases,
            _out: out,
            function: runtime.function(Entry::Alone, &ReadFloor.variant(), 0)?,
            bytes: bytes / ReadFloor::GRANULE_BYTES * ReadFloor::GRANULE_BYTES,
            multiprocessors: runtime.limits().multiprocessors,
        })
    }

    /// Bytes that are read.
    pub fn bytes(&self) -> usize {
        self.bytes
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

    /// Lets it read with at most `blocks` blocks.
    pub fn limit(&mut self, blocks: u32) {
        self.launch = launch(self.bytes, blocks);
    }

    /// Submits the reading of memory from `address` on.
    ///
    /// # Safety
    /// The runtime's context is bound to this thread and `stream` is a stream of it. `address` is a multiple of 16, and as
    /// many bytes as are read from there on are initialised memory of the stream's device that nothing writes until the
    /// kernel has run.
    pub unsafe fn submit(&mut self, stream: &Arc<CudaStream>, address: u64) -> Result<()> {
        self.bases.place(MAPS, address);
        let mut params = [0; MAX_WORDS];
        self.launch.link(&self.bases, &mut params);
        let geometry = self.launch.geometry();
        // SAFETY: these are the kernel's arguments; the caller vouches for what it reads, and it writes one word of its
        // own at most.
        unsafe { driver::launch(&self.function, geometry, stream.cu_stream(), &params) }
    }
}

fn launch(bytes: usize, blocks: u32) -> Launch {
    ReadFloor.launch(Address::of(MAPS), bytes, Address::of(Base::Output), blocks)
}
