//! Interim engine behind the public interface; replaced module by module.
#![allow(clippy::all, missing_docs, unsafe_op_in_unsafe_fn, dead_code, unused)]
pub mod exec;
pub mod num;
pub mod parse;
#[derive(Debug, Clone)]
pub struct EmuError(pub String);
pub type Res<T> = Result<T, EmuError>;

macro_rules! bail { ($($t:tt)*) => { return Err($crate::poc::EmuError(format!($($t)*))) } }
pub(crate) use bail;
