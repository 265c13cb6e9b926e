//! The launches of a group: their members' parameters, written once into tables in device memory.

use std::fmt;
use std::sync::Arc;

use bytemuck::pod_read_unaligned;
use cudarc::driver::CudaContext;

use super::merge::{Merged, merge};
use crate::cuda::engine::Engine;
use crate::cuda::entry::{Entry, MAX_BLOCKS, Member, Table};
use crate::cuda::geometry::Geometry;
use crate::cuda::handles::DeviceMemory;
use crate::cuda::params::{GroupParams, MAX_GROUP_ADDRESSES};
use crate::cuda::schedule::Step;
use crate::cuda::variant::Variant;
use crate::error::Result;
use crate::problem::Problem;

/// One launch for the steps of many problems.
pub(super) struct Launch {
    pub variant: Variant,
    pub geometry: Geometry,
    /// Complete but for the addresses, which every run writes.
    pub params: Box<GroupParams>,
    /// Which of the group's addresses it takes, from the second of its own on.
    pub addresses: Vec<usize>,
}

/// The launches of one run.
pub(super) struct Launches {
    tables: DeviceMemory,
    aligned: Vec<Launch>,
    /// For layers whose first elements are not all multiples of 16 bytes, where that makes a difference.
    unaligned: Vec<Launch>,
    /// The group's addresses that make the difference.
    sensitive: Vec<usize>,
}

/// Addresses of one problem in the list of the group: its layers and its output.
pub(super) fn addresses(problem: &Problem) -> usize {
    problem.shape().layers + 1
}

/// Bytes of the maps of one item.
pub(super) fn item_bytes(problem: &Problem) -> usize {
    problem.map_bytes() / problem.shape().batch.max(1)
}

impl Launches {
    /// The launches that run the schedules of those of `engines` that `together` names, and their tables on the device.
    pub fn new(context: &Arc<CudaContext>, engines: &[Engine], together: &[usize]) -> Result<Self> {
        let mut first_addresses = vec![0];
        for engine in engines {
            let first = first_addresses[first_addresses.len() - 1];
            first_addresses.push(first + addresses(engine.problem()));
        }
        let members: Vec<(&Engine, usize)> = together
            .iter()
            .map(|&index| (&engines[index], first_addresses[index]))
            .collect();
        let sequences: Vec<Vec<Variant>> = members
            .iter()
            .map(|(engine, _)| engine.schedule(0).steps.iter().map(|s| s.variant).collect())
            .collect();
        let merged = merge(&sequences);
        let sensitive: Vec<usize> = members
            .iter()
            .filter(|(engine, _)| is_sensitive(engine))
            .flat_map(|(engine, first)| *first..*first + engine.problem().shape().layers)
            .collect();
        let mut assembly = Assembly::default();
        assembly.add(&merged, &members, true);
        let aligned = assembly.launches.len();
        if !sensitive.is_empty() {
            assembly.add(&merged, &members, false);
        }
        let tables = DeviceMemory::upload(context, "the tables of a group", &assembly.tables)?;
        for launch in &mut assembly.launches {
            launch.params.member += tables.address();
            launch.params.word += tables.address();
        }
        let unaligned = assembly.launches.split_off(aligned);
        Ok(Launches {
            tables,
            aligned: assembly.launches,
            unaligned,
            sensitive,
        })
    }

    /// Device memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.tables.bytes()
    }

    /// The launches where every layer's first element is 16-byte aligned, or where not.
    pub fn for_bases(&self, aligned: bool) -> &[Launch] {
        match aligned || self.sensitive.is_empty() {
            true => &self.aligned,
            false => &self.unaligned,
        }
    }

    /// The launches of a run with the group's `addresses`.
    pub fn for_addresses(&mut self, addresses: &[u64]) -> &mut [Launch] {
        let mut sensitive = self.sensitive.iter();
        match sensitive.all(|&index| addresses[index].is_multiple_of(16)) {
            true => &mut self.aligned,
            false => &mut self.unaligned,
        }
    }
}

/// Whether launches depend on where layers begin.
fn is_sensitive(engine: &Engine) -> bool {
    let schedule = engine.schedule(0);
    let geometry = |step: &Step, aligned| step.geometry(&schedule.common, aligned);
    let mut steps = schedule.steps.iter();
    steps.any(|step| geometry(step, true) != geometry(step, false))
}

/// Collects launches and their tables.
#[derive(Default)]
struct Assembly {
    launches: Vec<Launch>,
    tables: Vec<u8>,
}

impl Assembly {
    /// Adds the launches of `merged`; `members` are the engines with their first of the group's addresses.
    fn add(&mut self, merged: &[Merged], members: &[(&Engine, usize)], aligned: bool) {
        for Merged { variant, steps } in merged {
            let (mut parts, mut indices) = (Vec::new(), Vec::new());
            let mut blocks = 0;
            for &(member, step) in steps {
                let (engine, first) = members[member];
                let (mut part, wanted) = member_of(engine, step, aligned);
                let full = indices.len() + wanted.len() >= MAX_GROUP_ADDRESSES
                    || blocks + part.geometry.blocks() > MAX_BLOCKS;
                if full && !parts.is_empty() {
                    self.push(*variant, &parts, std::mem::take(&mut indices));
                    parts.clear();
                    blocks = 0;
                }
                for (_, address) in part.words.iter_mut().filter(|(_, address)| *address > 0) {
                    *address += indices.len() as u32;
                }
                indices.extend(wanted.iter().map(|index| first + index));
                blocks += part.geometry.blocks();
                parts.push(part);
            }
            self.push(*variant, &parts, indices);
        }
    }

    fn push(&mut self, variant: Variant, members: &[Member], addresses: Vec<usize>) {
        let table = Table::new(members);
        self.launches.push(Launch {
            variant,
            geometry: table.geometry,
            params: Box::new(table.params(self.tables.len() as u64)),
            addresses,
        });
        self.tables.extend(table.bytes);
    }
}

/// Step `step` of an engine as a member of a launch, and which of the engine's addresses it takes. Its words count them
/// from 1.
fn member_of(engine: &Engine, step: usize, aligned: bool) -> (Member, Vec<usize>) {
    let schedule = engine.schedule(0);
    let step = &schedule.steps[step];
    let (geometry, columns) = step.geometry(&schedule.common, aligned);
    let layers = engine.problem().shape().layers;
    // Bound twice, a word differs by what an address in it differs by: by the number of that address.
    let none = vec![0; layers];
    let numbers: Vec<u64> = (1..=layers as u64).collect();
    let without = engine.binder(0, &none, 0, 0).params(step, columns);
    let with = engine.binder(0, &numbers, layers as u64 + 1, 0);
    let with = with.params(step, columns);
    let mut wanted = Vec::new();
    let words = without
        .used()
        .chunks_exact(8)
        .zip(with.used().chunks_exact(8));
    let words = words
        .map(|(without, with)| {
            let value: u64 = pod_read_unaligned(without);
            let number = pod_read_unaligned::<u64>(with).wrapping_sub(value) as usize;
            let Some(index) = number.checked_sub(1) else {
                return (value, 0);
            };
            let place = wanted.iter().position(|&known| known == index);
            let place = place.unwrap_or_else(|| {
                wanted.push(index);
                wanted.len() - 1
            });
            (value, place as u32 + 1)
        })
        .collect();
    (Member { geometry, words }, wanted)
}

impl fmt::Display for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let symbol = Entry::Grouped.symbol(&self.variant);
        let (geometry, members) = (&self.geometry, self.params.members);
        write!(f, "{symbol}: {geometry}, {members} problems")
    }
}
