#![no_main]

#[path = "../../../../src/cli/main.rs"]
#[allow(dead_code, reason = "a target needs a part of it")]
mod cli;
#[path = "../../../common/mod.rs"]
mod common;
#[path = "../../targets/mod.rs"]
mod targets;

use cli::*;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::photos::check(bytes));
