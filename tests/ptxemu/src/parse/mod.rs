//! From PTX text to programs: source items, declarations, function bodies, modules.

pub(crate) mod builder;
mod function;
mod source;
mod types;
mod unit;
mod variable;

pub(crate) use source::{parse_int, split_list};
pub(crate) use types::{Space, Type};
pub(crate) use unit::parse_module;
