//! What a schedule needs on a device: memory, tables and kernels.

use std::sync::Arc;

use cudarc::driver::CudaContext;

use super::workspace::{Room, Workspace};
use crate::cuda::address::Bases;
use crate::cuda::driver::{DeviceMemory, Function};
use crate::cuda::runtime::Runtime;
use crate::cuda::schedule::Schedule;
use crate::cuda::variant::{Entry, Variant};
use crate::error::Result;

/// The device memory of an engine.
pub(super) struct Memory {
    pub workspace: Room,
    pub tables: DeviceMemory,
}

impl Memory {
    /// What `schedule` needs: tables, and what it takes of `workspace`.
    pub fn new(
        context: &Arc<CudaContext>,
        schedule: &Schedule,
        workspace: &Workspace,
    ) -> Result<Self> {
        let tables = schedule.table_bytes();
        Ok(Memory {
            workspace: workspace.take(context, schedule.workspace_bytes())?,
            tables: DeviceMemory::upload(context, "windows, weights and start rows", &tables)?,
        })
    }

    /// Where the bases of `schedule` begin, but for layers and output.
    pub fn bases(&self, schedule: &Schedule) -> Bases {
        let mut bases = schedule.bases();
        schedule.place_buffers(&mut bases, self.workspace.address());
        schedule.place_tables(&mut bases, self.tables.address(), 0);
        bases
    }
}

/// A schedule with its kernels.
pub(super) struct Prepared {
    pub schedule: Schedule,
    /// Those of the steps; none where launches are shared with other problems.
    pub functions: Vec<Arc<Function>>,
}

impl Prepared {
    /// Compiles and loads the kernels of `schedule`.
    pub fn alone(runtime: &Runtime, schedule: Schedule) -> Result<Self> {
        let load = |variant: &Arc<Variant>| {
            let shared_bytes = schedule.shared_bytes(variant);
            runtime.function(Entry::Alone, variant, shared_bytes)
        };
        let loaded = schedule.variants.iter().map(load);
        let loaded = loaded.collect::<Result<Vec<_>>>()?;
        let known = || schedule.variants.iter().zip(&loaded);
        let functions = schedule.steps.iter().filter_map(|step| {
            let mut known = known();
            let (_, function) = known.find(|(variant, _)| *variant == step.launch.variant())?;
            Some(function.clone())
        });
        Ok(Prepared {
            functions: functions.collect(),
            schedule,
        })
    }
}
