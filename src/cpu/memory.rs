//! The memory of a plan: allocated once, aligned for the widest vectors.

use std::ops::{Deref, DerefMut};

use crate::cpu::prepared::{Prepared, Sizes};
use crate::error::{Error, Result};

/// A cache line.
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

/// Floats of a cache line.
const LINE: usize = 16;

/// Floats that begin on a cache line and fill whole ones.
#[derive(Debug, Default)]
pub(crate) struct Floats(Vec<Line>);

impl Floats {
    /// `len` zeros, rounded up to whole cache lines.
    ///
    /// # Errors
    /// [`Error::HostMemory`].
    pub fn zeroed(len: usize) -> Result<Self> {
        Ok(Floats(zeroed(len.div_ceil(LINE))?))
    }
}

impl Deref for Floats {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        bytemuck::cast_slice(&self.0)
    }
}

impl DerefMut for Floats {
    fn deref_mut(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

/// The memory of one member, or the memory that the team shares.
#[derive(Default)]
pub(crate) struct Workspace {
    pub floats: Floats,
    pub candidates: Floats,
}

impl Workspace {
    /// Memory for one member, large enough for each of `problems`.
    pub fn for_member(problems: &[Prepared]) -> Result<Self> {
        let most = |sizes: fn(&Sizes) -> usize| {
            problems.iter().map(|p| sizes(&p.sizes)).max().unwrap_or(0)
        };
        Ok(Workspace {
            floats: Floats::zeroed(most(|s| {
                3 * s.relevance + s.fused + s.weights + s.ahat + s.spare + s.map
            }))?,
            candidates: Floats::zeroed(most(|s| s.candidates))?,
        })
    }

    /// Memory that the team shares, large enough for each of `problems`.
    pub fn for_team(problems: &[Prepared], members: usize) -> Result<Self> {
        let shared = |p: &Prepared| {
            if p.choice.share_rest && members > 1 {
                p.sizes.parts + p.sizes.ahat + p.sizes.spare + p.sizes.map
            } else {
                0
            }
        };
        Ok(Workspace {
            floats: Floats::zeroed(problems.iter().map(shared).max().unwrap_or(0))?,
            candidates: Floats::default(),
        })
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.floats[..]) + size_of_val(&self.candidates[..])
    }
}

/// `len` zeros, or [`Error::HostMemory`].
fn zeroed<T: Clone + Default>(len: usize) -> Result<Vec<T>> {
    let mut memory = Vec::new();
    memory
        .try_reserve_exact(len)
        .map_err(|_| Error::HostMemory {
            what: "the workspace",
            required: len.saturating_mul(size_of::<T>()),
        })?;
    memory.resize(len, T::default());
    Ok(memory)
}
