//! What is known of sums and of an LSE, and whether what was computed agrees.

use super::Problem;
use crate::error::{Error, Result};
use crate::queries_keys::QueriesKeys;

/// A sum, and how large it can be at most where its terms cancel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mass {
    pub sum: f64,
    pub magnitude: f64,
}

impl Problem {
    /// Checks that `sum`, that of a row after `layer`, is what is `expected`, where that is looked at.
    ///
    /// # Errors
    /// [`Error::Mass`].
    pub(crate) fn check_mass(
        &self,
        layer: usize,
        item: usize,
        row: usize,
        expected: Mass,
        sum: f64,
    ) -> Result<()> {
        let Some(tolerance) = self.mass_tolerance() else {
            return Ok(());
        };
        if (sum - expected.sum).abs() <= f64::from(tolerance) * expected.magnitude {
            return Ok(());
        }
        Err(Error::Mass {
            layer,
            item,
            row,
            expected: expected.sum as f32,
            got: sum as f32,
            tolerance,
        })
    }

    /// Checks the LSE that was given for a row, to base e, against the one `expected`. An empty row is one because the caller
    /// says so.
    ///
    /// # Errors
    /// [`Error::Lse`].
    pub(crate) fn check_lse(
        &self,
        layer: usize,
        item: usize,
        head: usize,
        row: usize,
        expected: f32,
        got: f32,
    ) -> Result<()> {
        if (got - expected).abs() <= QueriesKeys::PROBE_TOLERANCE || got.is_infinite() {
            return Ok(());
        }
        Err(Error::Lse {
            layer,
            item,
            head,
            row,
            expected,
            got,
        })
    }

    /// Whether a given LSE is probed.
    pub(crate) fn probes_lse(&self) -> bool {
        self.queries_keys()
            .is_some_and(|source| source.has_lse() && source.mass_tolerance.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::layout::Shape;
    use crate::queries_keys::{LogBase, Lse};

    #[test]
    fn a_sum_may_be_off_by_a_share_of_its_terms() {
        let shape = Shape {
            layers: 1,
            batch: 1,
            heads: 1,
            tokens: 2,
        };
        let source = QueriesKeys {
            lse: Lse::Given(LogBase::E),
            mass_tolerance: Some(0.5),
            ..QueriesKeys::new(&shape, 8)
        };
        let problem = Problem::builder(shape, DType::F32).queries_keys(source);
        let problem = problem.build().unwrap();
        let expected = Mass {
            sum: 1.0,
            magnitude: 4.0,
        };
        for (sum, is_well) in [(3.0, true), (-1.0, true), (3.25, false), (f64::NAN, false)] {
            let checked = problem.check_mass(0, 0, 0, expected, sum);
            assert_eq!(checked.is_ok(), is_well, "{sum}: {checked:?}");
        }
    }
}
