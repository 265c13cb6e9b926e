//! What is fuzzed: a function of bytes each, which panics where something is wrong. `mutate`, where there is one, makes
//! up bytes for the harness on stable Rust; libFuzzer does so by itself.
#![allow(dead_code, reason = "libFuzzer's targets take one each")]

pub mod header;
pub mod library;
pub mod options;
pub mod photos;
pub mod tokens;

use attention_rollout::{HostLayer, Problem, reference};

use crate::common::compare::{Budget, check_close};
use crate::common::generate::Random;

/// Panics where `got` is not what the reference makes of the problem.
fn compare(what: &str, problem: &Problem, layers: &[HostLayer<'_>], got: &[f32]) {
    let want = reference::rollout(problem, layers).expect("the problem is valid");
    let budget = Budget::new(problem, layers);
    let close = check_close(what, &problem.output_shape(), got, &want, |i| {
        budget.tolerance(i)
    });
    close.unwrap_or_else(|message| panic!("{message}"));
}

/// Changes a byte or a bit of `bytes` from `first` on, or puts one of `pieces` in, over others or between them.
fn change(random: &mut Random, bytes: &mut Vec<u8>, first: usize, pieces: &[&str]) {
    let length = bytes.len();
    let at = first + random.below(length - first + 1);
    match random.below(4) {
        0 if at < length => bytes[at] = random.bits() as u8,
        1 if at < length => bytes[at] ^= 1 << random.below(8),
        kind => {
            let end = if kind == 2 { at + random.below(12) } else { at };
            let piece = pieces[random.below(pieces.len())];
            bytes.splice(at..end.min(length), piece.bytes());
        }
    }
}
