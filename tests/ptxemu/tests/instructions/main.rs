//! Every arithmetic instruction form, run over edge values and compared with Rust arithmetic.

mod bits;
mod compare;
mod convert;
mod float;
mod half;
mod integer;
mod moves;
mod oracle;
mod table;
