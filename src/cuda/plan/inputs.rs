//! What runs are given beside their layers, windows and start rows, on its way to the tables that kernels read.
//!
//! From the host it travels through a ring of pinned slots to memory of the plan, in one copy on the run's stream; from
//! device memory it is read where it lies. There the kernel `run_inputs` takes it, and makes of it all that depends on it.

use std::sync::Arc;

use cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, CudaView, DevicePtr, SyncOnDrop, result, sys,
};

use super::buffers::{check_alignment, check_context};
use crate::cuda::driver::{Event, Function, PinnedMemory, driver_error};
use crate::cuda::kernel::{given_bytes, write_given};
use crate::cuda::runtime::Runtime;
use crate::cuda::schedule::Schedule;
use crate::cuda::variant::Entry;
use crate::error::{Error, Result};
use crate::problem::Problem;

/// Runs whose inputs may be on their way from the host at a time.
const SLOTS: usize = 8;

/// i32 values in device memory: windows or start rows.
///
/// Made by `From` from a reference to a cudarc slice or view, or by [`from_raw`](DeviceIndices::from_raw); like a
/// [`DeviceLayer`](crate::cuda::DeviceLayer), before a stream capture begins.
#[derive(Clone, Copy)]
pub struct DeviceIndices<'a> {
    address: u64,
    len: usize,
    owner: Option<&'a (dyn DevicePtr<i32> + Sync)>,
}

impl<'a> DeviceIndices<'a> {
    /// `len` values at a device address.
    ///
    /// # Safety
    /// From each run that takes them until the work it submitted is done, and as long as a graph that captured it is
    /// replayed:
    /// - `address` points to `len` initialised i32 values in memory that the plan's device can read;
    /// - every write of them is ordered with the run.
    pub const unsafe fn from_raw(address: u64, len: usize) -> Self {
        DeviceIndices {
            address,
            len,
            owner: None,
        }
    }

    fn tracked<B: DevicePtr<i32> + Sync>(buffer: &'a B) -> Self {
        let (address, guard) = buffer.device_ptr(buffer.stream());
        // The guard would mark a read that has not been submitted.
        std::mem::forget(guard);
        DeviceIndices {
            address,
            len: buffer.len(),
            owner: Some(buffer),
        }
    }

    /// Makes `stream` wait for the buffer's last write; the guard marks the read when it is dropped.
    pub(super) fn reading<'b>(&'b self, stream: &'b CudaStream) -> Option<SyncOnDrop<'b>> {
        Some(self.owner?.device_ptr(stream).1)
    }

    fn check(&self, what: &'static str, context: &Arc<CudaContext>, expected: usize) -> Result<()> {
        let owner = self.owner.map(|buffer| buffer.stream().context());
        check_context(context, owner, || what.to_owned())?;
        if self.len != expected {
            return Err(Error::Len {
                what,
                expected,
                got: self.len,
            });
        }
        check_alignment(self.address, size_of::<i32>(), || what.to_owned())
    }
}

impl<'a> From<&'a CudaSlice<i32>> for DeviceIndices<'a> {
    fn from(buffer: &'a CudaSlice<i32>) -> Self {
        DeviceIndices::tracked(buffer)
    }
}

impl<'a> From<&'a CudaView<'_, i32>> for DeviceIndices<'a> {
    fn from(buffer: &'a CudaView<'_, i32>) -> Self {
        DeviceIndices::tracked(buffer)
    }
}

/// What one run is given in device memory; `None` leaves what the plan was told last.
///
/// Nobody on the host sees these values, so none of them is an error. A window is held to the tokens and to the problem's
/// longest: its start to `0..=tokens`, and then its length to `0..=min(max_window, tokens - start)`. A row is held to
/// the window: below its first token is the first, beyond its last the last; and so is a start row that all items share.
/// An item with an empty window has an output of 0.
#[derive(Clone, Copy, Default)]
pub struct RunInputs<'a> {
    /// `[items, 2]`: start and length of the window of each item of the run, where the problem was made with windows.
    pub windows: Option<DeviceIndices<'a>>,
    /// `[items]` or `[items, rows]`: the start rows of each item of the run, counted from its window's start, where the
    /// problem was made with [`StartRows::PerItem`](crate::StartRows::PerItem).
    pub rows: Option<DeviceIndices<'a>>,
}

impl RunInputs<'_> {
    /// Checks that runs of `problem` can be given these.
    pub(super) fn check(&self, problem: &Problem, context: &Arc<CudaContext>) -> Result<()> {
        let batch = problem.shape().batch;
        if let Some(windows) = &self.windows {
            problem.takes_windows()?;
            windows.check("windows, a start and a length per item", context, 2 * batch)?;
        }
        if let Some(rows) = &self.rows {
            problem.takes_rows()?;
            let rows_of_items = batch * problem.start_rows();
            rows.check("start rows, as many for each item", context, rows_of_items)?;
        }
        Ok(())
    }

    /// Where the values lie that this gives.
    pub(super) fn addresses(&self) -> Given {
        Given {
            windows: self.windows.map(|windows| windows.address),
            rows: self.rows.map(|rows| rows.address),
        }
    }

    /// As [`track`](super::buffers::track).
    pub(super) fn track<'b>(
        &'b self,
        stream: &'b CudaStream,
    ) -> impl Iterator<Item = SyncOnDrop<'b>> {
        let given = [&self.windows, &self.rows].into_iter().flatten();
        given.filter_map(|values| values.reading(stream))
    }
}

/// Addresses of what a run is given in device memory.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Given {
    pub windows: Option<u64>,
    pub rows: Option<u64>,
}

impl Given {
    pub fn is_any(self) -> bool {
        self.windows.is_some() || self.rows.is_some()
    }
}

/// The inputs of a plan that takes some.
pub(super) struct InputRing {
    function: Arc<Function>,
    slots: PinnedMemory,
    /// Each marks the end of a slot's copy.
    copied: Vec<Event>,
    /// Copies submitted.
    copies: usize,
    /// What the host was told last has yet to be copied.
    pending: bool,
    /// The tables are what the plan's own memory says.
    current: bool,
    /// A graph may change the tables whenever it is replayed.
    captured: bool,
    /// All windows that the host was told last start at multiples of 16 bytes.
    aligned: bool,
}

impl InputRing {
    /// Those of `problem`, of which `schedule` is one; none where its runs are given nothing.
    pub fn new(runtime: &Runtime, problem: &Problem, schedule: &Schedule) -> Result<Option<Self>> {
        let Some(launch) = &schedule.inputs else {
            return Ok(None);
        };
        let context = runtime.context();
        let bytes = SLOTS * given_bytes(problem);
        Ok(Some(InputRing {
            function: runtime.function(Entry::Alone, launch.variant(), 0)?,
            slots: PinnedMemory::new(context, bytes)?,
            copied: (0..SLOTS)
                .map(|_| Event::new(context))
                .collect::<Result<_>>()?,
            copies: 0,
            pending: false,
            current: true,
            captured: false,
            aligned: starts_aligned(problem),
        }))
    }

    pub fn function(&self) -> &Function {
        &self.function
    }

    /// The host was told something else than what is on the device.
    pub fn change(&mut self, problem: &Problem) {
        (self.pending, self.current) = (true, false);
        self.aligned = starts_aligned(problem);
    }

    /// Whether a run may take launches for windows that start at multiples of 16 bytes. A graph is replayed with others.
    pub fn aligned(&self, given: Given, capturing: bool) -> bool {
        self.aligned && given.windows.is_none() && !capturing
    }

    /// Brings what the host was told last to `to`, memory of the plan, where a run that is `given` something needs it.
    /// Whether the tables have to be made before the run's first step.
    ///
    /// # Safety
    /// The context is bound, `stream` is one of its streams, and `to` has room for the problem's windows and rows.
    pub unsafe fn bring(
        &mut self,
        problem: &Problem,
        stream: sys::CUstream,
        capturing: bool,
        given: Given,
        to: u64,
    ) -> Result<bool> {
        let rows = problem.item_rows();
        let needs_own = given.windows.is_none() || (given.rows.is_none() && !rows.is_empty());
        if self.pending && needs_own {
            if capturing {
                return Err(Error::Capturing {
                    what: "a copy of windows or start rows from the host",
                    instead: "run_with, which reads them from device memory",
                });
            }
            let slot = self.copies % SLOTS;
            if self.copies >= SLOTS {
                // Long done, unless so many runs are under way.
                self.copied[slot].wait_if_under_way()?;
            }
            let bytes = given_bytes(problem);
            let staged = &mut self.slots.as_mut_slice()[slot * bytes..][..bytes];
            write_given(problem, staged);
            // SAFETY: there is room, and the slot stays as it is until its event has come.
            unsafe { result::memcpy_htod_async(to, staged, stream) }
                .map_err(driver_error("cuMemcpyHtoDAsync_v2"))?;
            self.copied[slot].record(stream)?;
            self.copies += 1;
            self.pending = false;
        }
        let derives = given.is_any() || !self.current || self.captured;
        // Until the launch that derives them has been submitted.
        self.current &= !derives || capturing;
        Ok(derives)
    }

    /// The tables are made from what a run was `given`, or will be whenever the graph is replayed.
    pub fn derived(&mut self, given: Given, capturing: bool) {
        match capturing {
            true => self.captured = true,
            false => self.current = !given.is_any(),
        }
    }
}

/// Whether all windows start at multiples of 16 bytes.
fn starts_aligned(problem: &Problem) -> bool {
    let granule = 16 / problem.dtype().size_bytes();
    let mut windows = problem.windows().iter();
    windows.all(|window| window.start.is_multiple_of(granule))
}
