//! A line of a table: the traced launches of one run, and what else a prediction needs. Kept as a compressed file.

use crate::{Cold, Machine, Mechanism, Timeline, Timing};
use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use ptxemu::trace::{LaunchTrace, TraceError};
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Write};

/// One run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// Address and length of what no cache holds: the maps.
    pub cold: Vec<(u64, u64)>,
    /// Registers per thread by kernel.
    pub registers: BTreeMap<String, u32>,
    /// The launches in order.
    pub launches: Vec<LaunchTrace>,
}

/// A file that is not a line.
#[derive(Debug)]
pub enum LineError {
    /// It cannot be decompressed.
    Compression(io::Error),
    /// A trace in it is none.
    Trace(TraceError),
    /// It ends too early, or a name in it is no text.
    Malformed,
}

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LineError::Compression(error) => write!(f, "a line that does not decompress: {error}"),
            LineError::Trace(error) => write!(f, "a line with {error}"),
            LineError::Malformed => {
                f.write_str("a line that ends too early, or whose names are not UTF-8")
            }
        }
    }
}

impl std::error::Error for LineError {}

impl Line {
    /// The predicted launches. A kernel whose registers are not known is taken for one of 64.
    pub fn predict(&self, machine: &Machine) -> Vec<Timing> {
        let cold = Cold::new(self.cold.iter().copied());
        let timing = |trace: &LaunchTrace| {
            let registers = self.registers.get(&trace.kernel).copied().unwrap_or(64);
            Timing::of(trace, registers, &cold, machine)
        };
        self.launches.iter().map(timing).collect()
    }

    /// The predicted time of the run as a graph with half and twice the latencies of what was never measured, in
    /// microseconds; none where all of it was.
    pub fn range(&self, machine: &Machine) -> Option<[f64; 2]> {
        let unmeasured = |trace: &LaunchTrace| Mechanism::ALL.iter().any(|it| it.is_in(trace));
        let graph_us = |factor| self.timeline(&machine.with_unmeasured(factor)).graph_us;
        self.launches
            .iter()
            .any(unmeasured)
            .then(|| [0.5, 2.0].map(graph_us))
    }

    /// The predicted time of the run.
    pub fn timeline(&self, machine: &Machine) -> Timeline {
        Timeline::of(&self.predict(machine), machine)
    }

    /// The line as a file.
    ///
    /// Launches of one run are much alike: each is kept as its difference from the last one of the same kernel, word by
    /// word.
    ///
    /// # Errors
    /// Those of compression into memory, of which there are none.
    pub fn to_bytes(&self) -> io::Result<Vec<u8>> {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
        let mut word = |word: u64| encoder.write_all(&word.to_le_bytes());
        word(self.cold.len() as u64)?;
        for &(address, bytes) in &self.cold {
            word(address)?;
            word(bytes)?;
        }
        word(self.registers.len() as u64)?;
        for (name, &registers) in &self.registers {
            word(name.len() as u64)?;
            name.bytes().try_for_each(|byte| word(byte.into()))?;
            word(registers.into())?;
        }
        word(self.launches.len() as u64)?;
        let mut known: Vec<(&str, Vec<u32>)> = Vec::new();
        for launch in &self.launches {
            let mut bytes = Vec::new();
            launch.to_bytes(&mut bytes);
            let words = words(&bytes);
            let base = known
                .iter()
                .rposition(|(kernel, _)| *kernel == launch.kernel);
            let head = [base.map_or(0, |base| base as u64 + 1), words.len() as u64];
            head.iter()
                .try_for_each(|word| encoder.write_all(&word.to_le_bytes()))?;
            let base = base.map_or(&[][..], |base| known[base].1.as_slice());
            for (index, &word) in words.iter().enumerate() {
                let difference = word.wrapping_sub(base.get(index).copied().unwrap_or(0));
                encoder.write_all(&difference.to_le_bytes())?;
            }
            known.push((&launch.kernel, words));
        }
        encoder.finish()
    }

    /// A line from its file.
    ///
    /// # Errors
    /// [`LineError`] where it is none.
    pub fn from_bytes(bytes: &[u8]) -> Result<Line, LineError> {
        let mut text = Vec::new();
        DeflateDecoder::new(bytes)
            .read_to_end(&mut text)
            .map_err(LineError::Compression)?;
        let mut rest = text.as_slice();
        let word = |rest: &mut &[u8]| -> Result<u64, LineError> {
            let (word, behind) = rest.split_first_chunk().ok_or(LineError::Malformed)?;
            *rest = behind;
            Ok(u64::from_le_bytes(*word))
        };
        let mut line = Line::default();
        for _ in 0..word(&mut rest)? {
            line.cold.push((word(&mut rest)?, word(&mut rest)?));
        }
        for _ in 0..word(&mut rest)? {
            let len = word(&mut rest)?;
            let name = (0..len)
                .map(|_| Ok(word(&mut rest)? as u8))
                .collect::<Result<Vec<u8>, _>>()?;
            let name = String::from_utf8(name).map_err(|_| LineError::Malformed)?;
            line.registers.insert(name, word(&mut rest)? as u32);
        }
        let mut known: Vec<Vec<u32>> = Vec::new();
        for _ in 0..word(&mut rest)? {
            let base = word(&mut rest)? as usize;
            let len = word(&mut rest)? as usize;
            let (differences, behind) =
                rest.split_at_checked(4 * len).ok_or(LineError::Malformed)?;
            rest = behind;
            let base = match base {
                0 => &[][..],
                base => known.get(base - 1).ok_or(LineError::Malformed)?,
            };
            let base = base.iter().copied().chain(std::iter::repeat(0));
            let words: Vec<u32> = words(differences)
                .into_iter()
                .zip(base)
                .map(|(difference, word)| difference.wrapping_add(word))
                .collect();
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            let launch = LaunchTrace::from_bytes(&mut bytes.as_slice());
            line.launches.push(launch.map_err(LineError::Trace)?);
            known.push(words);
        }
        Ok(line)
    }
}

fn words(bytes: &[u8]) -> Vec<u32> {
    let words = bytes.chunks_exact(4);
    words
        .map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_comes_back_from_its_file() {
        let launch = |kernel: &str, threads| LaunchTrace {
            kernel: kernel.to_owned(),
            threads,
            ..LaunchTrace::default()
        };
        let line = Line {
            cold: vec![(4096, 17)],
            registers: BTreeMap::from([("a".to_owned(), 40), ("longer".to_owned(), 255)]),
            launches: vec![
                launch("a", 32),
                launch("longer", 64),
                launch("a", 96),
                launch("longer", 1),
            ],
        };
        let bytes = line.to_bytes().unwrap();
        assert_eq!(Line::from_bytes(&bytes).unwrap(), line);
        assert!(matches!(
            Line::from_bytes(&bytes[..bytes.len() / 2]),
            Err(LineError::Compression(_) | LineError::Malformed)
        ));
        assert!(Line::from_bytes(b"no line").is_err());
    }
}
