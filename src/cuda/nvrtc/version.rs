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

    /// The first NVRTC that, beside a driver, keeps what it compiled in the driver's cache. Of what it finds there it has
    /// no log, and so no registers to tell: it is told not to look.
    pub(super) const WITH_CACHE: Version = Version {
        major: 12,
        minor: 9,
    };
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}
