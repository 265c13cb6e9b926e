//! Tiers 1 and 2: every kernel compiles for every architecture it runs on, within its stated resources; run in the PTX
//! interpreter it computes what the f64 reference does; and faults seeded into the sources are noticed.

mod abi;
mod cases;
#[path = "../common/mod.rs"]
mod common;
mod compile;
mod device;
mod entries;
mod lab;
mod maps;
mod mutants;
mod suite;
mod traffic;

use libtest_mimic::Arguments;

fn main() {
    let arguments = Arguments::from_args();
    let nvrtcs = common::nvrtc::nvrtcs();
    let mut trials = compile::trials(&nvrtcs);
    trials.extend(suite::trials(&nvrtcs));
    trials.extend(mutants::trials(nvrtcs.first()));
    libtest_mimic::run(&arguments, trials).exit();
}
