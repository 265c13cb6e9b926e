//! A launch as a value: a kernel, its grid, and its parameters with symbolic [addresses](super::address). It knows neither
//! kernels nor problems.
//!
//! Whoever runs a launch [links](Launch::link) it: copies the parameters, and adds to each address where its base begins.
//! Nothing else about a launch depends on where anything lies.

use std::fmt;
use std::sync::Arc;

use super::address::{Address, Bases};
use super::parameters::{Parameters, addresses_of};
use super::variant::Variant;

/// Grid, block and dynamic shared memory of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block, along x.
    pub block: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// Blocks along y that the launch makes a cluster; 1: none, or those that the kernel is compiled for.
    pub cluster: u32,
    /// All blocks run at the same time, or the launch fails.
    pub cooperative: bool,
}

impl Geometry {
    /// Blocks that a grid has at most along y, and along z.
    pub const MAX_SIDE: u32 = 65_535;

    /// A grid of blocks that take no dynamic shared memory and know nothing of each other.
    pub fn new(grid: [u32; 3], block: u32) -> Self {
        Geometry {
            grid,
            block,
            shared_bytes: 0,
            cluster: 1,
            cooperative: false,
        }
    }

    /// Blocks of the grid.
    pub fn blocks(&self) -> u64 {
        self.grid.iter().map(|&extent| u64::from(extent)).product()
    }
}

impl fmt::Display for Geometry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Geometry {
            grid: [x, y, z],
            block,
            shared_bytes,
            cluster,
            cooperative,
        } = self;
        write!(f, "grid {x}x{y}x{z}")?;
        if *cluster > 1 {
            write!(f, " in clusters of {cluster}")?;
        }
        if *cooperative {
            write!(f, " at the same time")?;
        }
        write!(f, ", block {block}, {shared_bytes} B shared")
    }
}

/// Words that hold the parameters of any kernel: every driver accepts 4 KB.
pub const MAX_WORDS: usize = 512;

/// One launch of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    pub(super) variant: Arc<Variant>,
    geometry: Geometry,
    /// The parameters, as far as the kernel looks at them.
    words: Box<[u64]>,
    /// Which of the words are addresses, in order.
    addresses: Box<[u16]>,
    /// Bytes of intermediate results that go to memory and come back for this launch, unless they stay in L2.
    pub(super) intermediate_bytes: usize,
}

impl Launch {
    /// A launch of `variant` with `params`, of which the kernel does not look at the last `unused_bytes`.
    pub(super) fn new<P: Parameters>(
        variant: Variant,
        geometry: Geometry,
        params: &P,
        unused_bytes: usize,
    ) -> Self {
        let bytes = bytemuck::bytes_of(params);
        let words: Box<[u64]> = bytes[..bytes.len() - unused_bytes]
            .chunks_exact(8)
            .map(bytemuck::pod_read_unaligned)
            .collect();
        let addresses = addresses_of::<P>().into_iter();
        let addresses = addresses.filter(|&word| usize::from(word) < words.len());
        Launch {
            variant: Arc::new(variant),
            geometry,
            addresses: addresses.collect(),
            words,
            intermediate_bytes: 0,
        }
    }

    /// The launch, for which `bytes` bytes of intermediate results go to memory and come back unless they stay in L2.
    pub(super) fn passing(mut self, bytes: usize) -> Self {
        self.intermediate_bytes = bytes;
        self
    }

    /// The kernel.
    pub fn variant(&self) -> &Arc<Variant> {
        &self.variant
    }

    /// How it is launched.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The parameters, 8 bytes at a time, as far as the kernel looks at them, and of each whether it is an
    /// [`Address`].
    pub fn words(&self) -> impl Iterator<Item = Word> {
        let mut addresses = self.addresses.iter().peekable();
        self.words.iter().enumerate().map(move |(index, &word)| {
            match addresses.next_if(|&&address| usize::from(address) == index) {
                Some(_) => Word::Address(Address::of_word(word)),
                None => Word::Value(word),
            }
        })
    }

    /// Writes the parameters into `params`, whose other words the kernel does not look at.
    pub fn link(&self, bases: &Bases, params: &mut [u64; MAX_WORDS]) {
        params[..self.words.len()].copy_from_slice(&self.words);
        for &word in &self.addresses {
            let word = &mut params[usize::from(word)];
            *word = bases.resolve(Address::of_word(*word));
        }
    }
}

/// 8 bytes of a launch's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// The same for every run.
    Value(u64),
    /// A device pointer.
    Address(Address),
}
