//! The memory that a run works in: the plan's own, or lent by whoever makes the plan.

use std::sync::Arc;

use cudarc::driver::CudaContext;

use super::buffers::check_alignment;
use crate::cuda::driver::DeviceMemory;
use crate::cuda::schedule::PART_ALIGNMENT;
use crate::error::{Error, Result};

/// Where a plan works.
///
/// A workspace holds nothing between runs, or between the passes of a streaming plan: what lies in it when a run begins
/// does not matter. So plans whose runs follow one another on one stream may share one.
///
/// ```no_run
/// use attention_rollout::cuda::{self, Compiler, Options, Plan, Runtime, Workspace, cudarc::driver::DevicePtr};
/// use attention_rollout::{DType, Output, Problem, RolloutConfig, Shape};
///
/// let runtime = Runtime::new(&cuda::context(0)?, &Compiler::default())?;
/// let shape = Shape { layers: 12, batch: 8, heads: 12, tokens: 577 };
/// let config = RolloutConfig { output: Output::Matrix, ..Default::default() };
/// let problem = Problem::new(shape, DType::F16, config)?;
/// let mut options = Options::default();
/// let bytes = Plan::required_workspace(&problem, runtime.limits(), &options)?;
///
/// let stream = runtime.context().default_stream();
/// let memory = stream.alloc_zeros::<u8>(bytes)?; // or of another library's allocator
/// let address = memory.device_ptr(&stream).0;
/// // SAFETY: the memory outlives the plan's work, and all of it is on this stream.
/// options.workspace = unsafe { Workspace::borrowed(address, bytes) };
/// let plan = Plan::on(&runtime, &problem, &options)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Workspace {
    /// Address and bytes; none where the plan allocates.
    borrowed: Option<(u64, usize)>,
}

impl Workspace {
    /// Addresses of workspaces are multiples of this.
    pub const ALIGNMENT: usize = PART_ALIGNMENT;

    /// `bytes` bytes of device memory at `address`, a multiple of [`ALIGNMENT`](Workspace::ALIGNMENT), instead of an
    /// allocation of the plan's own.
    ///
    /// # Safety
    /// While a plan that is made with it has work under way:
    /// - the memory is there, and the plan's device can write it;
    /// - nothing else reads or writes it, other plans' runs among that, unless that is ordered with the plan's runs: before
    ///   or after each, and not between the pushes of one pass of a streaming plan.
    pub const unsafe fn borrowed(address: u64, bytes: usize) -> Self {
        Workspace {
            borrowed: Some((address, bytes)),
        }
    }

    /// Whether the plan allocates.
    pub(super) fn is_owned(&self) -> bool {
        self.borrowed.is_none()
    }

    /// Checks that `required` bytes of it can be used.
    pub(super) fn check(&self, required: usize) -> Result<()> {
        let Some((address, got)) = self.borrowed else {
            return Ok(());
        };
        check_alignment(address, Workspace::ALIGNMENT, || "the workspace".to_owned())?;
        match required <= got {
            true => Ok(()),
            false => Err(Error::WorkspaceLen { required, got }),
        }
    }

    /// What is left behind the first `bytes` bytes, once as many have been checked.
    pub(super) fn after(&self, bytes: usize) -> Self {
        Workspace {
            borrowed: self
                .borrowed
                .map(|(address, length)| (address + bytes as u64, length - bytes)),
        }
    }

    /// Its first `required` bytes.
    pub(super) fn take(&self, context: &Arc<CudaContext>, required: usize) -> Result<Room> {
        self.check(required)?;
        let memory = match self.borrowed {
            None => Some(DeviceMemory::new(context, "the workspace", required)?),
            Some(_) => None,
        };
        let owned = memory.as_ref().map(DeviceMemory::address);
        let lent = self.borrowed.map(|(address, _)| address);
        Ok(Room {
            address: owned.or(lent).unwrap_or(0),
            bytes: required,
            _memory: memory,
        })
    }
}

/// The workspace of a plan.
pub(super) struct Room {
    address: u64,
    bytes: usize,
    /// Where it is the plan's own.
    _memory: Option<DeviceMemory>,
}

impl Room {
    /// First address.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}
