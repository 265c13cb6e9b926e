//! Device pointers before it is known where anything lies: the ground floor.
//!
//! An address names a [`Base`], a piece of memory that somebody will provide, and an offset into it.

use std::ops::Add;

use bytemuck::{Pod, Zeroable};

/// Bits of an address that count bytes; the others number its base.
const OFFSET_BITS: u32 = 48;

/// A piece of memory that launches work on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Base {
    /// No memory: address 0.
    Null,
    /// The output of a run.
    Output,
    /// The windows of a run's items.
    Windows,
    /// How many entries of each map to discard, of a run's items.
    Counts,
    /// The weights of the heads.
    HeadWeights,
    /// The start rows of a run's items, or those that all items share.
    Start,
    /// What the blocks of a launch tell each other, kept from run to run.
    Exchange,
    /// The windows that a run is given.
    GivenWindows,
    /// The start rows that a run is given.
    GivenRows,
    /// How many entries of each map to discard, by the length of the window.
    CountsOf,
    /// The tokens that nothing attends to, a bit each.
    Excluded,
    /// What each head of each layer of queries and keys has of its own.
    HeadScores,
    /// Sums of rows, where it is known what they must be.
    Masses,
    /// The LSE of some rows, recomputed and as it is given.
    Probes,
    /// A buffer of the schedule, by number.
    Buffer(usize),
    /// A tensor of a layer.
    Layer {
        /// The layer, among all of the problem.
        layer: usize,
        /// Which of the layer's tensors, in the order of [`Layer::operands`](crate::Layer::operands).
        operand: usize,
    },
}

impl Base {
    /// Tensors that a layer can have.
    pub const OPERANDS: usize = 3;
    /// Layers that a problem on a GPU, and buffers that a schedule can have.
    pub const MOST: usize = ((1 << (64 - OFFSET_BITS)) - Base::NAMED) / Base::PER_INDEX;
    /// Bytes that a base can have.
    pub const MOST_BYTES: u64 = 1 << OFFSET_BITS;

    /// Bases without an index, rounded up.
    const NAMED: usize = 16;
    /// Bases of one index: a buffer, and a layer's tensors.
    const PER_INDEX: usize = 1 + Base::OPERANDS;

    /// A number for each base, small for small indices.
    const fn number(self) -> usize {
        match self {
            Base::Null => 0,
            Base::Output => 1,
            Base::Windows => 2,
            Base::Counts => 3,
            Base::HeadWeights => 4,
            Base::Start => 5,
            Base::Exchange => 6,
            Base::GivenWindows => 8,
            Base::GivenRows => 9,
            Base::CountsOf => 10,
            Base::Excluded => 7,
            Base::HeadScores => 11,
            Base::Masses => 12,
            Base::Probes => 13,
            Base::Buffer(index) => Base::NAMED + Base::PER_INDEX * index,
            Base::Layer { layer, operand } => Base::NAMED + Base::PER_INDEX * layer + 1 + operand,
        }
    }

    fn of_number(number: usize) -> Self {
        let Some(indexed) = number.checked_sub(Base::NAMED) else {
            return match number {
                1 => Base::Output,
                2 => Base::Windows,
                3 => Base::Counts,
                4 => Base::HeadWeights,
                5 => Base::Start,
                6 => Base::Exchange,
                7 => Base::Excluded,
                8 => Base::GivenWindows,
                9 => Base::GivenRows,
                10 => Base::CountsOf,
                11 => Base::HeadScores,
                12 => Base::Masses,
                13 => Base::Probes,
                _ => Base::Null,
            };
        };
        let index = indexed / Base::PER_INDEX;
        match indexed % Base::PER_INDEX {
            0 => Base::Buffer(index),
            operand => Base::Layer {
                layer: index,
                operand: operand - 1,
            },
        }
    }
}

/// A device pointer of a kernel's parameters before it is linked: a base, and bytes from there.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Zeroable, Pod)]
pub struct Address(u64);

impl Address {
    /// Address 0.
    pub const NULL: Address = Address(0);

    /// The first byte of `base`.
    pub const fn of(base: Base) -> Self {
        Address((base.number() as u64) << OFFSET_BITS)
    }

    /// The address that a word of parameters is.
    pub(super) const fn of_word(word: u64) -> Self {
        Address(word)
    }

    /// What it points into.
    pub fn base(self) -> Base {
        Base::of_number((self.0 >> OFFSET_BITS) as usize)
    }

    /// Bytes from the beginning of its base.
    pub const fn offset(self) -> u64 {
        self.0 & (Base::MOST_BYTES - 1)
    }
}

impl Add<usize> for Address {
    type Output = Self;

    /// The address `bytes` bytes further on.
    fn add(self, bytes: usize) -> Self {
        Address(self.0 + bytes as u64)
    }
}

/// Where every base begins.
#[derive(Clone, Debug)]
pub struct Bases(Vec<u64>);

impl Bases {
    /// Room for the bases of a schedule with so many buffers and layers; all at address 0.
    pub fn new(buffers: usize, layers: usize) -> Self {
        Bases(vec![0; Base::NAMED + Base::PER_INDEX * buffers.max(layers)])
    }

    /// Lets `base` begin at `address`.
    pub fn place(&mut self, base: Base, address: u64) {
        self.0[base.number()] = address;
    }

    /// Where `address` lies.
    pub fn resolve(&self, address: Address) -> u64 {
        self.0[(address.0 >> OFFSET_BITS) as usize] + address.offset()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bases_have_numbers_of_their_own() {
        let layers = |operand| move |layer| Base::Layer { layer, operand };
        let mut bases = vec![Base::Null, Base::Output, Base::Windows, Base::Counts];
        bases.extend([Base::HeadWeights, Base::Start, Base::Exchange]);
        bases.extend([Base::GivenWindows, Base::GivenRows, Base::CountsOf]);
        bases.extend([Base::Excluded, Base::HeadScores, Base::Masses, Base::Probes]);
        bases.extend((0..9).map(Base::Buffer));
        bases.extend((0..Base::OPERANDS).flat_map(|operand| (0..9).map(layers(operand))));
        bases.push(layers(Base::OPERANDS - 1)(Base::MOST - 1));
        for (i, &base) in bases.iter().enumerate() {
            let address = Address::of(base) + 77;
            assert_eq!((address.base(), address.offset()), (base, 77));
            assert!(
                !bases[..i]
                    .iter()
                    .any(|other| other.number() == base.number())
            );
        }
    }
}
