//! The launches of a group: the steps of its problems that take the same kernel, and their parameters in tables. Pure
//! functions.

use std::cmp::Reverse;
use std::fmt;
use std::sync::Arc;

use super::merge::merge;
use crate::cuda::address::{Base, Bases};
use crate::cuda::kernel::{
    GroupParams, MAX_BLOCKS, MAX_GROUP_ADDRESSES, MemberLaunch, MemberTable,
};
use crate::cuda::launch::{Geometry, Launch, Word};
use crate::cuda::schedule::Schedule;
use crate::cuda::variant::{Entry, Variant};

/// One launch for the steps of many problems.
#[derive(Debug)]
pub struct GroupLaunch {
    /// The kernel.
    pub variant: Arc<Variant>,
    /// How it is launched.
    pub geometry: Geometry,
    /// Complete but for the addresses, which every run writes.
    pub params: Box<GroupParams>,
    /// Which of the group's addresses it takes, from the second of its own on.
    pub addresses: Vec<usize>,
}

/// One problem of a group.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// Its steps.
    pub schedule: &'a Schedule,
    /// Where its buffers and tables lie.
    pub bases: &'a Bases,
    /// The first of the group's addresses that is its own: those of its layers' tensors, and then of its output.
    pub first_address: usize,
}

impl Part<'_> {
    /// Which of the group's addresses is its output's.
    pub(super) fn output(&self) -> usize {
        self.first_address + self.schedule.layers * self.schedule.operands
    }

    /// Which of the group's addresses `base` is; none where it is known when the group is made.
    fn address(&self, base: Base) -> Option<usize> {
        match base {
            Base::Layer { layer, operand } => {
                Some(self.first_address + layer * self.schedule.operands + operand)
            }
            Base::Output => Some(self.output()),
            _ => None,
        }
    }
}

/// The launches that run `parts` together, where the first elements of all layers are `aligned` to 16 bytes, or are not.
/// What they find in device memory is appended to `tables`; they have yet to be told where that [lies](GroupLaunch::at).
pub fn pack(parts: &[Part<'_>], aligned: bool, tables: &mut Vec<u8>) -> Vec<GroupLaunch> {
    let mut variants: Vec<&Arc<Variant>> = Vec::new();
    let mut sequences: Vec<Vec<usize>> = Vec::new();
    for part in parts {
        let kernels = part.schedule.steps.iter().map(|step| {
            let variant = step.launch.variant();
            let known = variants.iter().position(|known| *known == variant);
            known.unwrap_or_else(|| {
                variants.push(variant);
                variants.len() - 1
            })
        });
        sequences.push(kernels.collect());
    }
    let mut launches = Vec::new();
    for merged in merge(&sequences) {
        let variant = variants[merged.kernel];
        let mut steps = merged.steps;
        if variant.queues {
            // What takes longest first, so that the queue ends evenly.
            let item_bytes = |schedule: &Schedule| schedule.map_bytes / schedule.batch.max(1);
            steps.sort_by_key(|&(index, _)| Reverse(item_bytes(parts[index].schedule)));
        }
        let mut assembly = Assembly::default();
        for (index, step) in steps {
            let part = &parts[index];
            let launch = part.schedule.steps[step].launch(aligned);
            let (member, addresses) = member(part, launch);
            if !assembly.has_room(&member, &addresses) {
                launches.push(std::mem::take(&mut assembly).finish(variant, tables));
            }
            assembly.add(member, addresses);
        }
        launches.push(assembly.finish(variant, tables));
    }
    launches
}

/// A launch as a member of another, and the group's addresses that it takes, which its words count from 1.
fn member(part: &Part<'_>, launch: &Launch) -> (MemberLaunch, Vec<usize>) {
    let mut wanted: Vec<usize> = Vec::new();
    let words = launch.words().map(|word| match word {
        Word::Value(value) => (value, 0),
        Word::Address(address) => match part.address(address.base()) {
            None => (part.bases.resolve(address), 0),
            Some(index) => {
                let place = wanted.iter().position(|&known| known == index);
                let place = place.unwrap_or_else(|| {
                    wanted.push(index);
                    wanted.len() - 1
                });
                (address.offset(), place as u32 + 1)
            }
        },
    });
    let member = MemberLaunch {
        words: words.collect(),
        geometry: *launch.geometry(),
    };
    (member, wanted)
}

/// Collects the members of a launch.
#[derive(Default)]
struct Assembly {
    members: Vec<MemberLaunch>,
    blocks: u64,
    addresses: Vec<usize>,
}

impl Assembly {
    fn has_room(&self, member: &MemberLaunch, addresses: &[usize]) -> bool {
        self.members.is_empty()
            || self.addresses.len() + addresses.len() < MAX_GROUP_ADDRESSES
                && self.blocks + member.geometry.blocks() <= MAX_BLOCKS
    }

    fn add(&mut self, mut member: MemberLaunch, addresses: Vec<usize>) {
        for (_, address) in member.words.iter_mut().filter(|(_, address)| *address > 0) {
            *address += self.addresses.len() as u32;
        }
        self.addresses.extend(addresses);
        self.blocks += member.geometry.blocks();
        self.members.push(member);
    }

    fn finish(self, variant: &Arc<Variant>, tables: &mut Vec<u8>) -> GroupLaunch {
        let table = MemberTable::new(&self.members);
        let launch = GroupLaunch {
            variant: variant.clone(),
            geometry: table.geometry,
            params: Box::new(table.params(tables.len() as u64)),
            addresses: self.addresses,
        };
        tables.extend(table.bytes);
        launch
    }
}

impl GroupLaunch {
    /// Tells the launch that the tables lie at `address`.
    pub fn at(&mut self, address: u64) {
        self.params.member += address;
        self.params.word += address;
    }

    /// Tells the launch how many multiprocessors the device has: more blocks than fit would only wait.
    pub fn fit(&mut self, multiprocessors: u32) {
        if self.variant.queues {
            // Smaller blocks than the variant may have share the multiprocessor.
            let sharing = self.variant.block / self.geometry.block;
            let fit = multiprocessors * self.variant.grouped_blocks_per_multiprocessor * sharing;
            self.geometry.grid[0] = self.geometry.grid[0].min(fit);
        }
    }

    /// The parameters of a run with the group's `addresses`.
    pub fn link(&mut self, addresses: &[u64]) -> &GroupParams {
        let places = self.params.address[1..].iter_mut();
        for (place, &index) in places.zip(&self.addresses) {
            *place = addresses[index];
        }
        &self.params
    }
}

impl fmt::Display for GroupLaunch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let symbol = Entry::Grouped.symbol(&self.variant);
        let (geometry, members) = (&self.geometry, self.params.members);
        write!(f, "{symbol}: {geometry}, {members} problems")
    }
}
