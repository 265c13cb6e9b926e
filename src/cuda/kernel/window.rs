//! What kernels are told about items: which tokens are valid, and which of them take part in discard.

use crate::cuda::address::{Address, Base};
use crate::cuda::parameters::params;
use crate::layout;
use crate::problem::Problem;

params! {
    /// The valid tokens of one item.
    Window {
        start: u32,
        len: u32,
    }
}

impl From<layout::Window> for Window {
    fn from(window: layout::Window) -> Self {
        Window {
            start: window.start as u32,
            len: window.len as u32,
        }
    }
}

impl Window {
    /// The windows from item `first` of a run on.
    pub(super) fn from_item(first: usize) -> Address {
        Address::of(Base::Windows) + size_of::<Window>() * first
    }
}

/// The entries that take part in discard.
#[derive(Clone, Copy)]
pub(super) struct Scope {
    /// Rows and columns of a window before this one take no part.
    pub first: u32,
    /// Whether entry (first, first) is never discarded, as a flag.
    pub spares_origin: u32,
}

impl Scope {
    /// The scope of `problem`'s discard.
    pub fn of(problem: &Problem) -> Self {
        let tokens = problem.shape().tokens;
        let scope = problem.config().discard.map(|discard| discard.scope);
        Scope {
            first: scope.map_or(0, |scope| scope.first().min(tokens)) as u32,
            spares_origin: scope.is_some_and(|scope| scope.spares_origin()).into(),
        }
    }
}
