//! GPU architectures and compile targets.

use std::fmt;
use std::str::FromStr;

/// A GPU architecture, such as `90` or `90a`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Arch {
    /// Compute capability times ten: 90 for 9.0.
    pub number: u32,
    /// A feature set that other architectures lack.
    pub feature: Option<ArchFeature>,
}

/// A suffix of an architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ArchFeature {
    /// `a`: code for exactly this architecture (`sm_90a` has `wgmma`).
    Architecture,
    /// `f`: code for this architecture's family.
    Family,
}

impl Arch {
    /// `90a` for `Arch::specific(90)`: code that runs on exactly this architecture and may use all of it.
    pub const fn specific(number: u32) -> Self {
        Self {
            number,
            feature: Some(ArchFeature::Architecture),
        }
    }
}

impl From<u32> for Arch {
    fn from(number: u32) -> Self {
        Self {
            number,
            feature: None,
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = match self.feature {
            None => "",
            Some(ArchFeature::Architecture) => "a",
            Some(ArchFeature::Family) => "f",
        };
        write!(f, "{}{suffix}", self.number)
    }
}

/// A text is not an architecture.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a GPU architecture; expected a number such as 90, or 90a or 100f")]
pub struct ParseArchError {
    /// The text.
    pub text: String,
}

impl FromStr for Arch {
    type Err = ParseArchError;

    fn from_str(text: &str) -> Result<Self, ParseArchError> {
        let (digits, feature) = match text.as_bytes().last() {
            Some(b'a') => (&text[..text.len() - 1], Some(ArchFeature::Architecture)),
            Some(b'f') => (&text[..text.len() - 1], Some(ArchFeature::Family)),
            _ => (text, None),
        };
        let error = || ParseArchError {
            text: text.to_owned(),
        };
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(error());
        }
        let number = digits.parse().map_err(|_| error())?;
        Ok(Self { number, feature })
    }
}

/// What to compile to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// Machine code for one architecture (`sm_90`): what the driver loads as it is.
    Cubin(Arch),
    /// PTX of one virtual architecture (`compute_90`): the driver compiles it on loading. A driver older than the
    /// NVRTC that wrote it refuses it.
    Ptx(Arch),
}

impl Target {
    /// The architecture.
    pub fn arch(self) -> Arch {
        match self {
            Target::Cubin(arch) | Target::Ptx(arch) => arch,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Cubin(arch) => write!(f, "sm_{arch}"),
            Target::Ptx(arch) => write!(f, "compute_{arch}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_read_back_as_written() {
        for text in ["75", "90", "90a", "100f", "120"] {
            assert_eq!(text.parse::<Arch>().unwrap().to_string(), text);
        }
        assert_eq!("90a".parse(), Ok(Arch::specific(90)));
        assert_eq!("90".parse(), Ok(Arch::from(90)));
    }

    #[test]
    fn other_texts_are_not_architectures() {
        for text in ["", "a", "+90", "9.0", "sm_90", "90b", "é", "99999999999"] {
            assert!(text.parse::<Arch>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn targets_are_named_as_the_compiler_names_them() {
        assert_eq!(Target::Cubin(Arch::specific(90)).to_string(), "sm_90a");
        assert_eq!(Target::Ptx(80.into()).to_string(), "compute_80");
    }
}
