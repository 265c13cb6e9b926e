//! A stand-in for the CUDA driver: a `libcuda.so` whose kernels are run by the PTX interpreter `ptxemu`.
//!
//! Built as a shared library with the driver's name inside, so that once it is loaded,
//! `dlopen("libcuda.so")` anywhere in the process finds it, and host code and the bindings it uses run
//! unmodified. Built as a Rust library for its [`client`], with which a test loads and directs it.
//!
//! From the outside in: `api` and `control` export the C functions; `driver` is the state behind them;
//! `schedule`, `capture`, `work`, `launch`, `modules` and `memory` are its parts; `models` are the GPUs
//! it can be; `orders` are the failures a test asked for; `report` is
//! what a test gets to see, and `trace` what a timing model gets.

#![deny(missing_docs)]

mod api;
mod capture;
pub mod client;
mod codes;
mod control;
mod driver;
mod launch;
mod memory;
mod models;
mod modules;
mod occupancy;
mod orders;
pub mod report;
mod schedule;
mod trace;
mod work;

pub use codes::Code;
