//! What to launch, and how to run it.

use std::fmt;

/// Three extents, as in CUDA's `dim3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dim3 {
    /// Extent along x.
    pub x: u32,
    /// Extent along y.
    pub y: u32,
    /// Extent along z.
    pub z: u32,
}

impl Dim3 {
    /// `(1, 1, 1)`.
    pub const ONE: Self = Self::new(1, 1, 1);

    /// The given extents.
    pub const fn new(x: u32, y: u32, z: u32) -> Self {
        Self { x, y, z }
    }

    /// The product of the extents.
    pub const fn count(self) -> u64 {
        self.x as u64 * self.y as u64 * self.z as u64
    }
}

impl From<u32> for Dim3 {
    fn from(x: u32) -> Self {
        Self::new(x, 1, 1)
    }
}

impl fmt::Display for Dim3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({},{},{})", self.x, self.y, self.z)
    }
}

/// One kernel launch.
#[derive(Clone, Debug)]
pub struct Launch<'a> {
    /// Blocks per grid.
    pub grid: Dim3,
    /// Threads per block.
    pub block: Dim3,
    /// Blocks per cluster. [`Dim3::ONE`] also accepts the cluster a kernel was compiled for.
    pub cluster: Dim3,
    /// Run all blocks of the grid together, so that they may wait for each other.
    pub cooperative: bool,
    /// Bytes of dynamic shared memory, after the static ones.
    pub dynamic_shared_bytes: u32,
    /// The parameter block, laid out as [`Kernel::params`](crate::Kernel::params) says.
    pub params: &'a [u8],
    /// Addresses of the module's variables, in the order of
    /// [`Module::globals`](crate::Module::globals); see
    /// [`Module::allocate_globals`](crate::Module::allocate_globals).
    pub globals: &'a [u64],
}

impl<'a> Launch<'a> {
    /// A launch without clusters, dynamic shared memory and module variables.
    pub fn new(grid: impl Into<Dim3>, block: impl Into<Dim3>, params: &'a [u8]) -> Self {
        Self {
            grid: grid.into(),
            block: block.into(),
            cluster: Dim3::ONE,
            cooperative: false,
            dynamic_shared_bytes: 0,
            params,
            globals: &[],
        }
    }
}

/// How a launch is run and what is checked.
#[derive(Clone, Debug)]
pub struct Options {
    /// Look for data races in shared and global memory.
    pub check_races: bool,
    /// Report reads of bytes that nothing has written.
    pub check_uninitialised: bool,
    /// Host threads to run blocks on. Results, counts and faults do not depend on it.
    pub threads: usize,
    /// Warp instructions one launch may execute.
    pub max_steps: u64,
    /// Order in which the warps of a block take turns; different seeds show different schedules.
    pub seed: u64,
    /// Compute capability to pretend, for example 90; checked against the module's target.
    pub sm: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            check_races: true,
            check_uninitialised: true,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            max_steps: 20_000_000_000,
            seed: 0,
            sm: 120,
        }
    }
}
