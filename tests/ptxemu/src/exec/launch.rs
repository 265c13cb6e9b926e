//! A whole launch: validation, host threads, and the report.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::counts::Counts;
use super::engine::Env;
use super::global::{GlobalSpace, MAX_GROUPS, MAX_WARPS};
use super::setup::Worker;
use crate::config::{Dim3, Launch, Options};
use crate::fault::{Fault, FaultKind};
use crate::memory::Memory;
use crate::module::{Kernel, Module};
use crate::op::{Instruction, Op};
use crate::report::Report;
use crate::trace::{Tap, WarpTrace};

/// Most threads of a block, blocks of a cluster, and bytes of shared memory on any architecture.
const MAX_THREADS: u64 = 1024;
const MAX_CLUSTER: u64 = 16;
const MAX_SHARED: u32 = 227 * 1024;

fn invalid<T>(message: String) -> Result<T, Fault> {
    Err(Fault {
        kind: FaultKind::InvalidLaunch,
        message,
    })
}

/// Runs one kernel launch to its end.
///
/// Blocks run on [`Options::threads`] host threads; results, counts and faults do not depend on
/// how many. Kernels whose blocks may communicate through global memory (atomics, volatile or
/// relaxed accesses) run their blocks one after another. A launch that ends with a fault on several
/// threads is undone and repeated on one, so that the fault and the memory it leaves behind are
/// those of a sequential run.
pub fn launch(
    module: &Module,
    kernel: &Kernel,
    launch: &Launch<'_>,
    memory: &Memory,
    options: &Options,
) -> Result<Report, Fault> {
    let cluster = validate(module, kernel, launch, options)?;
    let group_blocks = if launch.cooperative {
        launch.grid.count()
    } else {
        cluster.count()
    };
    let groups = launch.grid.count() / group_blocks;
    let threads = if kernel.program.orders_blocks {
        1
    } else {
        options.threads.max(1)
    };
    let threads = (threads as u64).min(groups) as usize;
    let globals = module.globals().iter().zip(launch.globals);
    let read_only: Vec<u64> = globals
        .filter(|(g, _)| g.is_const)
        .map(|(_, &a)| a)
        .collect();
    let space = |keeps_snapshots| {
        let granule = kernel.program.global_granule;
        GlobalSpace::new(memory, &read_only, granule, options, keeps_snapshots)
    };
    let shared_bytes = shared_bytes(kernel, launch);
    let warps_per_block = launch.block.count().div_ceil(32) as usize;
    if warps_per_block as u64 * group_blocks > MAX_WARPS as u64 || groups > MAX_GROUPS {
        let message = format!(
            "kernel {}: a grid of {} blocks is too large",
            kernel.name, launch.grid
        );
        return Err(Fault {
            kind: FaultKind::Unsupported,
            message,
        });
    }
    let run = |space: &GlobalSpace, threads: usize| {
        let env = Env {
            kernel,
            launch,
            options,
            space,
            cluster,
            shared_bytes,
            warps_per_block,
        };
        run_groups(&env, group_blocks, groups, threads)
    };
    if threads > 1 {
        let shared_run = space(true);
        match run(&shared_run, threads) {
            Ok(counts) => return Ok(counts.report(&kernel.program, &shared_run)),
            Err(_) => shared_run.restore(),
        }
    }
    let space = space(false);
    run(&space, 1).map(|counts| counts.report(&kernel.program, &space))
}

/// Static and dynamic shared memory of a block.
fn shared_bytes(kernel: &Kernel, launch: &Launch<'_>) -> u32 {
    match launch.dynamic_shared_bytes {
        0 => kernel.static_shared_bytes,
        dynamic => kernel.static_shared_bytes.next_multiple_of(16) + dynamic,
    }
}

/// What [`trace`] traced.
pub(crate) struct Traced {
    pub(crate) cluster: Dim3,
    /// Blocks by their warps, and how many of them ran together; 0: each by itself.
    pub(crate) blocks: Vec<Vec<WarpTrace>>,
    pub(crate) together: u32,
}

/// Runs the blocks of the given linear indices, or the clusters they belong to, one after another, and nothing else;
/// blocks of a cooperative launch together. Of clusters whose blocks only meet in barriers the first block is traced.
pub(crate) fn trace(
    module: &Module,
    kernel: &Kernel,
    launch: &Launch<'_>,
    memory: &Memory,
    options: &Options,
    blocks: &[u64],
) -> Result<Traced, Fault> {
    let cluster = validate(module, kernel, launch, options)?;
    let granule = kernel.program.global_granule;
    let space = GlobalSpace::new(memory, &[], granule, options, false);
    let env = Env {
        kernel,
        launch,
        options,
        space: &space,
        cluster,
        shared_bytes: shared_bytes(kernel, launch),
        warps_per_block: launch.block.count().div_ceil(32) as usize,
    };
    let cooperates = launch.cooperative && cluster == Dim3::ONE;
    let group_blocks = match cooperates {
        true => blocks.len() as u64,
        false => cluster.count(),
    };
    let stores = |code: &[Instruction]| code.iter().any(|i| matches!(i.op, Op::StoreAsync(_)));
    let together = match cooperates || stores(&kernel.program.code) {
        true => group_blocks,
        false => 1,
    };
    let mut worker = Worker::new(&env, group_blocks);
    let mut traced = Vec::new();
    let sets: Vec<&[u64]> = match cooperates {
        true => vec![blocks],
        false => blocks.chunks(1).collect(),
    };
    let warps = env.warps_per_block * together as usize;
    for set in sets {
        worker.engine.tap = Some(Tap::new(warps, group_blocks as usize));
        match cooperates {
            true => worker.run_blocks(0, |index| set[index as usize])?,
            false => worker.run(set[0] / group_blocks % (launch.grid.count() / group_blocks))?,
        }
        let tap = worker.engine.tap.take();
        let warps = tap.map_or_else(Vec::new, Tap::into_warps);
        traced.extend(warps.chunks(env.warps_per_block).map(<[WarpTrace]>::to_vec));
    }
    Ok(Traced {
        cluster,
        blocks: traced,
        together: match together {
            1 => 0,
            blocks => blocks as u32,
        },
    })
}

/// Runs all groups on some host threads. Groups are handed out in order; after a fault no new
/// ones are started.
fn run_groups(
    env: &Env<'_>,
    group_blocks: u64,
    groups: u64,
    threads: usize,
) -> Result<Counts, Fault> {
    let next = AtomicU64::new(0);
    let fault: Mutex<Option<Fault>> = Mutex::new(None);
    let work = || {
        let mut worker = Worker::new(env, group_blocks);
        loop {
            let group = next.fetch_add(1, Relaxed);
            if group >= groups {
                return worker.engine.counts;
            }
            if let Err(found) = worker.run(group) {
                next.fetch_add(groups, Relaxed);
                let mut fault = fault.lock().unwrap_or_else(|e| e.into_inner());
                fault.get_or_insert(found);
                return worker.engine.counts;
            }
        }
    };
    let mut total = Counts::new(&env.kernel.program, env.space);
    if threads <= 1 {
        total.merge(&work());
    } else {
        std::thread::scope(|scope| {
            let handles: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            for handle in handles {
                match handle.join() {
                    Ok(counts) => total.merge(&counts),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
        });
    }
    match fault.into_inner().unwrap_or_else(|e| e.into_inner()) {
        Some(fault) => Err(fault),
        None => Ok(total),
    }
}

/// Checks what a driver would check, and settles the cluster.
fn validate(
    module: &Module,
    kernel: &Kernel,
    launch: &Launch<'_>,
    options: &Options,
) -> Result<Dim3, Fault> {
    let name = &kernel.name;
    let threads = launch.block.count();
    let most = kernel
        .max_threads
        .map_or(MAX_THREADS, u64::from)
        .min(MAX_THREADS);
    if threads == 0 || threads > most {
        return invalid(format!(
            "kernel {name}: block {} has not 1 to {most} threads",
            launch.block
        ));
    }
    if kernel.required_threads.is_some_and(|r| r != launch.block) {
        let required = kernel.required_threads.unwrap_or(launch.block);
        return invalid(format!(
            "kernel {name}: block {} is not {required}",
            launch.block
        ));
    }
    if launch.grid.count() == 0 || launch.grid.y > 65535 || launch.grid.z > 65535 {
        return invalid(format!("kernel {name}: grid {}", launch.grid));
    }
    let cluster = match kernel.cluster {
        Some(compiled) if launch.cluster != Dim3::ONE && launch.cluster != compiled => {
            return invalid(format!(
                "kernel {name}: cluster {}, compiled for {compiled}",
                launch.cluster
            ));
        }
        Some(compiled) => compiled,
        None => launch.cluster,
    };
    if kernel.needs_cluster && kernel.cluster.is_none() && launch.cluster == Dim3::ONE {
        return invalid(format!("kernel {name} must be launched with clusters"));
    }
    let fits = |grid: u32, cluster: u32| cluster > 0 && grid.is_multiple_of(cluster);
    let (g, c) = (launch.grid, cluster);
    if !(fits(g.x, c.x) && fits(g.y, c.y) && fits(g.z, c.z)) || cluster.count() > MAX_CLUSTER {
        return invalid(format!(
            "kernel {name}: clusters of {cluster} in a grid of {}",
            launch.grid
        ));
    }
    let shared = kernel
        .static_shared_bytes
        .saturating_add(launch.dynamic_shared_bytes);
    if shared > MAX_SHARED {
        return invalid(format!("kernel {name}: {shared} bytes of shared memory"));
    }
    if launch.params.len() < kernel.param_bytes {
        let (needed, got) = (kernel.param_bytes, launch.params.len());
        return invalid(format!(
            "kernel {name}: {got} bytes of parameters, {needed} needed"
        ));
    }
    if launch.globals.len() < module.globals().len() {
        let (needed, got) = (module.globals().len(), launch.globals.len());
        return invalid(format!(
            "kernel {name}: {got} addresses of variables, {needed} needed"
        ));
    }
    if module.sm() > options.sm {
        return invalid(format!(
            "the module is for sm_{}, the device is sm_{}",
            module.sm(),
            options.sm
        ));
    }
    Ok(cluster)
}
