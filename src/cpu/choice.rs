//! How a problem is computed: the form and the instruction set.

use std::fmt;

use crate::config::Output;
use crate::cpu::prefetch::Prefetch;
use crate::cpu::simd::Simd;
use crate::problem::Problem;

/// Items are shared by all threads only where each reads at least this much; below, the barriers would cost more than
/// they save.
const SHARED_ITEM_BYTES: usize = 1 << 20;

/// The order of evaluation. Both give the same result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `r <- b r + a (r fused)`, last layer to first, for relevance rows only.
    Rows,
    /// `R <- Ahat R`, first layer to last.
    Product,
}

/// How a problem is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The order of evaluation.
    pub form: Form,
    /// The instruction set of the inner loops.
    pub simd: Simd,
    /// Items that do not divide evenly among the threads are computed by all threads together, a share of the rows
    /// each, instead of by one thread each.
    pub share_rest: bool,
    /// How far ahead maps are prefetched.
    pub prefetch: Prefetch,
}

impl Choice {
    /// The cheapest form for `problem`, on the widest instruction set of this machine, with the prefetches that are faster on it.
    pub fn of(problem: &Problem) -> Self {
        Choice::with(problem, None)
    }

    /// The same, with these prefetches where there are some.
    pub(crate) fn with(problem: &Problem, prefetch: Option<Prefetch>) -> Self {
        let item_bytes = problem.map_bytes() / problem.shape().batch.max(1);
        Choice {
            form: Form::of(problem),
            simd: Simd::detect(),
            share_rest: item_bytes >= SHARED_ITEM_BYTES,
            prefetch: prefetch.unwrap_or_else(Prefetch::of_machine),
        }
    }
}

impl Form {
    /// The form that needs fewer multiplications.
    pub fn of(problem: &Problem) -> Self {
        let (rows, tokens) = (problem.start_rows() as f64, problem.shape().tokens as f64);
        let layers = problem.layers().len() as f64;
        let row_form = layers * rows * tokens * tokens;
        let product_form = (layers - 1.0) * tokens * tokens * tokens + rows * tokens * tokens;
        match problem.config().output {
            Output::Rows(_) if row_form <= product_form || rows <= 1.0 => Form::Rows,
            _ => Form::Product,
        }
    }
}

impl Form {
    /// `wanted` where `problem` can be computed so: matrices come from product form alone.
    pub(crate) fn possible(problem: &Problem, wanted: Form) -> Self {
        match problem.config().output {
            Output::Rows(_) => wanted,
            Output::Matrix | Output::Cumulative => Form::Product,
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Form::Rows => "row form",
            Form::Product => "product form",
        })
    }
}
