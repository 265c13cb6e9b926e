//! Problems, against the reference.
#![no_main]

#[path = "../../../common/mod.rs"]
mod common;
#[path = "../../library.rs"]
mod library;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| library::check(bytes));
