//! Headers of files.
#![no_main]

#[path = "../../../common/mod.rs"]
mod common;
#[path = "../../../../src/cli/header.rs"]
mod header;
#[path = "../../../../src/cli/shown.rs"]
#[allow(dead_code, reason = "the header needs a part of it")]
mod shown;
#[path = "../../surface.rs"]
#[allow(dead_code, reason = "libFuzzer mutates by itself")]
mod surface;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| surface::check(bytes));
