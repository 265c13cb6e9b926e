//! Prepares a group of blocks: coordinates, registers and memories.

use std::cell::RefCell;
use std::collections::HashMap;

use super::clocks::Clocks;
use super::counts::Counts;
use super::engine::{Block, Engine, Env};
use super::global::Seen;
use super::shared::Shared;
use super::warp::{Group, LaneCopies, State, Warp};
use crate::config::Dim3;
use crate::memory::POISON;
use crate::op::{Constant, Special};
use crate::registers::{AnySlot, LANES, Registers};

/// The coordinates with a linear index, x fastest.
fn unflatten(index: u64, extents: Dim3) -> Dim3 {
    let (x, y) = (u64::from(extents.x), u64::from(extents.y));
    Dim3::new(
        (index % x) as u32,
        (index / x % y) as u32,
        (index / x / y) as u32,
    )
}

/// Components by axis.
fn axes(d: Dim3) -> [u32; 3] {
    [d.x, d.y, d.z]
}

/// What one host thread reuses from group to group.
pub(crate) struct Worker<'a> {
    pub(crate) engine: Engine<'a>,
    pub(crate) warps: Vec<Warp>,
    /// Constants in place, everything else poisoned.
    template: Registers,
    /// Blocks per group.
    group_blocks: u64,
}

impl<'a> Worker<'a> {
    pub(crate) fn new(env: &'a Env<'a>, group_blocks: u64) -> Self {
        let program = &env.kernel.program;
        let mut template = Registers::poisoned(program.lines);
        for &(slot, constant) in &program.constants {
            let value = match constant {
                Constant::Bits(bits) => bits,
                Constant::Global(index, offset) => {
                    env.launch.globals[index].wrapping_add_signed(offset)
                }
                Constant::DynamicShared(offset) => {
                    u64::from(env.kernel.static_shared_bytes.next_multiple_of(16))
                        .wrapping_add_signed(offset)
                }
            };
            template.fill(slot, value);
        }
        let warp_count = env.warps_per_block * group_blocks as usize;
        let clocks = Clocks::new(warp_count);
        let block = || Block {
            index: Dim3::new(0, 0, 0),
            cluster_start: 0,
            running: 0,
            visits: RefCell::default(),
            shared: Shared::new(
                env.shared_bytes as usize,
                program.shared_granule,
                clocks.warps(),
                env.options.check_races,
                env.options.check_uninitialised,
            ),
            barriers: Default::default(),
            mbarriers: HashMap::new(),
        };
        let blocks = (0..group_blocks).map(|_| block()).collect();
        let warps = (0..warp_count).map(|index| Warp {
            index,
            block: index / env.warps_per_block,
            id: (index % env.warps_per_block) as u32,
            registers: template.clone(),
            groups: Vec::new(),
            live: 0,
            copies: vec![LaneCopies::default(); LANES],
            local: vec![POISON; env.kernel.local_bytes as usize * LANES],
            hint: 0,
            fenced: None,
            found: HashMap::new(),
            polled: false,
            last_reads: Default::default(),
            cluster_arrived: 0,
            cluster_phase: 0,
        });
        Self {
            warps: warps.collect(),
            template,
            group_blocks,
            engine: Engine {
                env,
                group: 0,
                blocks,
                clusters: Vec::new(),
                clocks,
                counts: Counts::new(program, env.space),
                tap: None,
                seen: Seen::default(),
                locations: HashMap::new(),
                pending: Vec::new(),
                steps: 0,
                polls_memory: false,
                events: 0,
            },
        }
    }

    /// Runs one group from its start to its end.
    pub(crate) fn run(&mut self, group: u64) -> Result<(), crate::Fault> {
        let first = group * self.group_blocks;
        self.run_blocks(group, |index| first + index)
    }

    /// Runs a group whose blocks have these linear indices.
    pub(crate) fn run_blocks(
        &mut self,
        group: u64,
        linear: impl Fn(u64) -> u64,
    ) -> Result<(), crate::Fault> {
        self.reset(group, linear);
        self.engine.run(&mut self.warps)
    }

    fn reset(&mut self, group: u64, linear: impl Fn(u64) -> u64) {
        let env = self.engine.env;
        let engine = &mut self.engine;
        engine.group = group;
        engine.clocks = Clocks::new(self.warps.len());
        engine.seen = Seen::default();
        engine.pending.clear();
        let per_cluster = env.cluster.count();
        engine.clusters.clear();
        engine
            .clusters
            .resize_with((self.group_blocks / per_cluster) as usize, Default::default);
        for (index, block) in engine.blocks.iter_mut().enumerate() {
            let linear = linear(index as u64);
            let cluster = unflatten(linear / per_cluster, clusters_of(env));
            let inside = unflatten(linear % per_cluster, env.cluster);
            block.index = Dim3::new(
                cluster.x * env.cluster.x + inside.x,
                cluster.y * env.cluster.y + inside.y,
                cluster.z * env.cluster.z + inside.z,
            );
            block.cluster_start = index - index % per_cluster as usize;
            block.running = env.launch.block.count() as u32;
            block.visits.get_mut().clear();
            block.shared.reset();
            block.barriers = Default::default();
            block.mbarriers.clear();
        }
        let threads = env.launch.block.count() as u32;
        for warp in &mut self.warps {
            let left = threads - warp.id * 32;
            warp.live = if left >= 32 {
                u32::MAX
            } else {
                (1 << left) - 1
            };
            warp.groups.clear();
            warp.groups.push(Group {
                pc: 0,
                mask: warp.live,
                state: State::Running,
            });
            warp.copies.fill(LaneCopies::default());
            warp.local.fill(POISON);
            warp.fenced = None;
            warp.found.clear();
            warp.cluster_arrived = 0;
            warp.cluster_phase = 0;
            warp.registers.copy_from(&self.template);
            let block = &engine.blocks[warp.block];
            let rank = (warp.block - block.cluster_start) as u32;
            for &(slot, special) in &env.kernel.program.specials {
                let value = |lane| special_value(env, special, block.index, rank, warp.id, lane);
                if let AnySlot::Narrow(slot) = slot {
                    *warp.registers.get_mut(slot) = std::array::from_fn(value);
                }
            }
        }
    }
}

/// Clusters per grid.
fn clusters_of(env: &Env<'_>) -> Dim3 {
    let (g, c) = (env.launch.grid, env.cluster);
    Dim3::new(g.x / c.x, g.y / c.y, g.z / c.z)
}

fn special_value(
    env: &Env<'_>,
    special: Special,
    block: Dim3,
    rank: u32,
    warp: u32,
    lane: usize,
) -> u32 {
    let thread = u64::from(warp) * 32 + lane as u64;
    let component = |d: Dim3, axis: u8| axes(d)[usize::from(axis)];
    let c = env.cluster;
    match special {
        Special::Tid(axis) => component(unflatten(thread, env.launch.block), axis),
        Special::Ntid(axis) => component(env.launch.block, axis),
        Special::Ctaid(axis) => component(block, axis),
        Special::Nctaid(axis) => component(env.launch.grid, axis),
        Special::Clusterid(axis) => component(block, axis) / component(c, axis),
        Special::Nclusterid(axis) => component(clusters_of(env), axis),
        Special::ClusterCtaid(axis) => component(unflatten(rank.into(), c), axis),
        Special::ClusterNctaid(axis) => component(c, axis),
        Special::ClusterCtarank => rank,
        Special::ClusterNctarank => c.count() as u32,
        Special::Laneid => lane as u32,
        Special::Warpid => warp,
        Special::Nwarpid => env.warps_per_block as u32,
        Special::LanemaskEq => 1 << lane,
        Special::LanemaskLt => (1 << lane) - 1,
        Special::LanemaskLe => u32::MAX >> (31 - lane),
        Special::LanemaskGt => !(u32::MAX >> (31 - lane)),
        Special::LanemaskGe => !((1 << lane) - 1),
        Special::DynamicSharedBytes => env.launch.dynamic_shared_bytes,
        Special::TotalSharedBytes => env.shared_bytes,
        Special::Zero => 0,
    }
}
