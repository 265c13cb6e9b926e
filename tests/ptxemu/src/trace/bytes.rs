//! Traces as bytes: little-endian words, lists behind their lengths.

use super::{Cost, Instruction, LaunchTrace, WarpTrace};
use std::fmt;

/// First word of a trace, and of what version.
const MAGIC: u32 = u32::from_le_bytes(*b"PTT1");

/// Bytes that are not a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TraceError {
    /// They do not begin as one, or are of another version.
    Magic {
        /// What stands in its place.
        got: u32,
    },
    /// They end in the middle of one.
    Truncated,
    /// A class of instructions that does not exist.
    Cost {
        /// Its number.
        got: u32,
    },
    /// A kernel's name is no text.
    Name,
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic { got } => write!(
                f,
                "expected {MAGIC:#x} at the start of a trace, got {got:#x}"
            ),
            Self::Truncated => f.write_str("a trace that ends too early"),
            Self::Cost { got } => write!(
                f,
                "expected a class of instructions below {}, got {got}",
                Cost::ALL.len()
            ),
            Self::Name => f.write_str("a kernel's name that is not UTF-8"),
        }
    }
}

impl std::error::Error for TraceError {}

const GUARDED: u32 = 1 << 8;
const TARGET: u32 = 1 << 9;
/// Where the blocks that ran together stand in the word of the cluster's.
const TOGETHER_BITS: u32 = 16;

impl LaunchTrace {
    /// Appends the trace to `out`.
    pub fn to_bytes(&self, out: &mut Vec<u8>) {
        let mut word = |word: u32| out.extend(word.to_le_bytes());
        word(MAGIC);
        word(self.kernel.len() as u32);
        self.kernel.bytes().for_each(|byte| word(byte.into()));
        word(self.stream as u32);
        word((self.stream >> 32) as u32);
        self.grid.into_iter().for_each(&mut word);
        let blocks = self.cluster | self.together << TOGETHER_BITS;
        [self.threads, blocks, self.shared_bytes]
            .into_iter()
            .for_each(&mut word);
        word(self.code.len() as u32);
        for instruction in &self.code {
            let flags = [
                (instruction.guarded, GUARDED),
                (instruction.is_target, TARGET),
            ];
            let flags: u32 = flags.iter().filter(|flag| flag.0).map(|flag| flag.1).sum();
            word(instruction.cost as u32 | flags);
            for registers in [&instruction.reads, &instruction.writes] {
                word(registers.len() as u32);
                registers.iter().copied().for_each(&mut word);
            }
        }
        word(self.blocks.len() as u32);
        for warps in &self.blocks {
            word(warps.len() as u32);
            for warp in warps {
                word(warp.words.len() as u32);
                warp.words.iter().copied().for_each(&mut word);
            }
        }
    }

    /// Takes a trace off the front of `bytes`.
    ///
    /// # Errors
    /// [`TraceError`] where there is none.
    pub fn from_bytes(bytes: &mut &[u8]) -> Result<LaunchTrace, TraceError> {
        let got = word(bytes)?;
        if got != MAGIC {
            return Err(TraceError::Magic { got });
        }
        let name: Vec<u8> = list(bytes, |bytes| Ok(word(bytes)? as u8))?;
        let kernel = String::from_utf8(name).map_err(|_| TraceError::Name)?;
        let stream = u64::from(word(bytes)?) | u64::from(word(bytes)?) << 32;
        let grid = [word(bytes)?, word(bytes)?, word(bytes)?];
        let [threads, blocks] = [word(bytes)?, word(bytes)?];
        Ok(LaunchTrace {
            kernel,
            stream,
            grid,
            threads,
            cluster: blocks & ((1 << TOGETHER_BITS) - 1),
            together: blocks >> TOGETHER_BITS,
            shared_bytes: word(bytes)?,
            code: list(bytes, |bytes| {
                let head = word(bytes)?;
                let got = head & 0xff;
                let cost = Cost::ALL.get(got as usize);
                Ok(Instruction {
                    cost: *cost.ok_or(TraceError::Cost { got })?,
                    guarded: head & GUARDED != 0,
                    is_target: head & TARGET != 0,
                    reads: list(bytes, word)?,
                    writes: list(bytes, word)?,
                })
            })?,
            blocks: list(bytes, |bytes| {
                list(bytes, |bytes| {
                    Ok(WarpTrace {
                        words: list(bytes, word)?,
                    })
                })
            })?,
        })
    }
}

fn word(bytes: &mut &[u8]) -> Result<u32, TraceError> {
    let (word, rest) = bytes.split_first_chunk().ok_or(TraceError::Truncated)?;
    *bytes = rest;
    Ok(u32::from_le_bytes(*word))
}

fn list<T>(
    bytes: &mut &[u8],
    item: impl Fn(&mut &[u8]) -> Result<T, TraceError>,
) -> Result<Vec<T>, TraceError> {
    // A length that the bytes cannot hold fails at their end, without being believed.
    let len = word(bytes)?;
    (0..len).map(|_| item(bytes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> LaunchTrace {
        let instruction = |cost, guarded| Instruction {
            cost,
            reads: vec![1, 2],
            writes: vec![3],
            guarded,
            is_target: !guarded,
        };
        LaunchTrace {
            kernel: "k".to_owned(),
            stream: 1 << 40,
            grid: [3, 2, 1],
            threads: 64,
            cluster: 2,
            shared_bytes: 100,
            together: 2,
            code: vec![instruction(Cost::Mma, true), instruction(Cost::Exit, false)],
            blocks: vec![vec![
                WarpTrace { words: vec![0, 1] },
                WarpTrace { words: vec![] },
            ]],
        }
    }

    #[test]
    fn bytes_hold_traces_one_after_the_other() {
        let mut bytes = Vec::new();
        example().to_bytes(&mut bytes);
        let len = bytes.len();
        LaunchTrace::default().to_bytes(&mut bytes);
        let mut rest = bytes.as_slice();
        assert_eq!(LaunchTrace::from_bytes(&mut rest), Ok(example()));
        assert_eq!(
            LaunchTrace::from_bytes(&mut rest),
            Ok(LaunchTrace::default())
        );
        assert!(rest.is_empty());
        for cut in 0..len {
            assert_eq!(
                LaunchTrace::from_bytes(&mut &bytes[..cut]),
                Err(TraceError::Truncated)
            );
        }
    }

    #[test]
    fn other_bytes_are_refused() {
        let got = u32::from_le_bytes(*b"else");
        assert_eq!(
            LaunchTrace::from_bytes(&mut &b"elsewhere"[..]),
            Err(TraceError::Magic { got })
        );
        let mut bytes = Vec::new();
        example().to_bytes(&mut bytes);
        let head = [Cost::Mma as u8, 1, 0, 0, 2];
        let at = bytes.windows(5).position(|window| window == head).unwrap();
        bytes[at] = 200;
        assert_eq!(
            LaunchTrace::from_bytes(&mut bytes.as_slice()),
            Err(TraceError::Cost { got: 200 })
        );
    }
}
