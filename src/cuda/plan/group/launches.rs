//! The launches of a group on a device: their tables, their kernels, and which of them a run takes.

use std::sync::Arc;

use cudarc::driver::sys;

use super::pack::{GroupLaunch, Part, pack};
use crate::cuda::driver::{self, DeviceMemory, Function};
use crate::cuda::pipeline::operands;
use crate::cuda::plan::engine::Engine;
use crate::cuda::runtime::Runtime;
use crate::cuda::schedule::Step;
use crate::cuda::variant::Entry;
use crate::error::Result;
use crate::problem::Problem;

/// A launch with its kernel.
struct Loaded {
    launch: GroupLaunch,
    function: Arc<Function>,
}

/// The launches of one run.
pub(super) struct Launches {
    // Freed first: the driver waits for running kernels before it frees memory, and only then may modules go.
    tables: DeviceMemory,
    aligned: Vec<Loaded>,
    /// For layers whose first elements are not all multiples of 16 bytes, where that makes a difference.
    unaligned: Vec<Loaded>,
    /// The group's addresses that make the difference.
    sensitive: Vec<usize>,
}

/// Addresses of one problem in the list of the group: its layers' tensors and its output.
pub(super) fn addresses(problem: &Problem) -> usize {
    problem.shape().layers * operands(problem) + 1
}

impl Launches {
    /// The launches that run the schedules of those of `engines` that `together` names, and their tables on the device.
    pub fn new(runtime: &Runtime, engines: &[Engine], together: &[usize]) -> Result<Self> {
        let mut first_addresses = vec![0];
        for engine in engines {
            let first = first_addresses[first_addresses.len() - 1];
            first_addresses.push(first + addresses(engine.problem()));
        }
        let parts: Vec<Part<'_>> = together
            .iter()
            .map(|&index| Part {
                schedule: engines[index].schedule(),
                bases: engines[index].bases(),
                first_address: first_addresses[index],
            })
            .collect();
        let is_sensitive = |part: &&Part<'_>| {
            let mut steps = part.schedule.steps.iter();
            steps.any(|step: &Step| step.unaligned.is_some())
        };
        let sensitive = parts.iter().filter(is_sensitive);
        let sensitive: Vec<usize> = sensitive
            .flat_map(|part| part.first_address..part.output())
            .collect();
        let mut bytes = Vec::new();
        let aligned = pack(&parts, true, &mut bytes);
        let unaligned = match sensitive.is_empty() {
            true => Vec::new(),
            false => pack(&parts, false, &mut bytes),
        };
        let tables = DeviceMemory::upload(runtime.context(), "the tables of a group", &bytes)?;
        let load = |mut launch: GroupLaunch| {
            launch.at(tables.address());
            launch.fit(runtime.limits().multiprocessors);
            let shared_bytes = launch.geometry.shared_bytes as usize;
            let function = runtime.function(Entry::Grouped, &launch.variant, shared_bytes)?;
            Ok(Loaded { launch, function })
        };
        Ok(Launches {
            aligned: aligned.into_iter().map(load).collect::<Result<_>>()?,
            unaligned: unaligned.into_iter().map(load).collect::<Result<_>>()?,
            tables,
            sensitive,
        })
    }

    /// Device memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.tables.bytes()
    }

    /// The launches where every layer's first element is 16-byte aligned.
    pub fn aligned(&self) -> impl ExactSizeIterator<Item = &GroupLaunch> {
        self.aligned.iter().map(|loaded| &loaded.launch)
    }

    /// Submits the launches of a run with the group's `addresses`; `windows_aligned`: all windows start at multiples of 16
    /// bytes.
    ///
    /// # Safety
    /// As [`Engine::submit`], for the layers and the output of every problem.
    pub unsafe fn submit(
        &mut self,
        stream: sys::CUstream,
        addresses: &[u64],
        windows_aligned: bool,
    ) -> Result<()> {
        let mut sensitive = self.sensitive.iter();
        let aligned = |&index: &usize| windows_aligned && addresses[index].is_multiple_of(16);
        let launches = match sensitive.all(aligned) {
            true => &mut self.aligned,
            false => &mut self.unaligned,
        };
        for Loaded { launch, function } in launches {
            let geometry = launch.geometry;
            let params = bytemuck::cast_ref(launch.link(addresses));
            // SAFETY: the table holds the parameters of the function's kernel, and the workspaces and tables in them
            // belong to the group's engines; the rest is promised by the caller.
            unsafe { driver::launch(function, &geometry, stream, params) }?;
        }
        Ok(())
    }
}
