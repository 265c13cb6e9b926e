//! Versions of CUDA.

use std::fmt;

/// A version of CUDA: of an NVRTC library, or the newest one a driver supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Major version: 12 in 12.9.
    pub major: u32,
    /// Minor version: 9 in 12.9.
    pub minor: u32,
}

impl Version {
    /// The oldest NVRTC accepted.
    pub const OLDEST_NVRTC: Version = Version {
        major: 12,
        minor: 0,
    };
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}
