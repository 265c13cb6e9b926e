#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

mod config;
mod decode;
mod exec;
mod fault;
mod memory;
mod module;
mod num;
mod op;
mod parse;
mod registers;
mod report;
pub mod trace;

pub use config::{Dim3, Launch, Options};
pub use exec::launch;
pub use fault::{Fault, FaultKind, MemoryError, ParseError};
pub use memory::Memory;
pub use module::{GlobalVar, Kernel, Module, Param};
pub use report::{AccessCounts, BankConflict, ClassCounts, Report, SharedCounts, Traffic};
