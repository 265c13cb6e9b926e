//! Whether queries, keys and a given LSE belong together: what is known of sums of relevance, and the LSE of some rows.

use std::f32::consts::LN_2;

use super::block::{Queries, lanes};
use super::inner::QUERIES;
use super::{Buffers, ItemScores, probed_rows};
use crate::cpu::simd::Simd;
use crate::cpu::team::Member;
use crate::error::Result;
use crate::problem::Mass;
use crate::queries_keys::Lse;

impl ItemScores<'_> {
    /// Notes what the rows of relevance `[start rows, len]` must sum to after this layer, where that is known.
    pub fn expect_masses(&self, relevance: &[f32]) {
        if self.problem.mass_tolerance().is_none() {
            return;
        }
        let residual = self.problem.residual(self.layer);
        let (a, b) = (f64::from(residual.attention), f64::from(residual.identity));
        let Buffers { masses, .. } = self.buffers();
        let rows = relevance.chunks_exact(self.len());
        for (expected, row) in masses.chunks_exact_mut(2).zip(rows) {
            let weighted = (row.iter().enumerate()).filter(|(_, weight)| **weight != 0.0);
            let (mut sum, mut magnitude) = (0.0, 0.0);
            for (i, &weight) in weighted {
                let attention = self.attention_sum(i);
                let weight = f64::from(weight);
                sum += weight * (a * attention.sum + b);
                magnitude += weight.abs() * (a.abs() * attention.magnitude + b.abs());
            }
            expected.copy_from_slice(&[sum as f32, magnitude as f32]);
        }
    }

    /// Checks the rows of relevance after this layer against what was noted before it.
    ///
    /// # Errors
    /// [`Error::Mass`].
    pub fn check_masses(&self, relevance: &[f32]) -> Result<()> {
        if self.problem.mass_tolerance().is_none() {
            return Ok(());
        }
        let Buffers { masses, .. } = self.buffers();
        let rows = relevance.chunks_exact(self.len());
        let mut rows = masses.chunks_exact(2).zip(rows).enumerate();
        rows.try_for_each(|(row, (expected, relevance))| {
            let expected = Mass {
                sum: expected[0].into(),
                magnitude: expected[1].into(),
            };
            self.check_mass(row, expected, relevance)
        })
    }

    /// Checks rows of `Ahat`, `[rows, len]` from row `first` on.
    ///
    /// # Errors
    /// [`Error::Mass`].
    pub fn check_rows(&self, first: usize, ahat: &[f32]) -> Result<()> {
        if self.problem.mass_tolerance().is_none() {
            return Ok(());
        }
        let residual = self.problem.residual(self.layer);
        let (a, b) = (f64::from(residual.attention), f64::from(residual.identity));
        let mut rows = ahat.chunks_exact(self.len()).enumerate();
        rows.try_for_each(|(row, entries)| {
            let row = first + row;
            let attention = self.attention_sum(row);
            let expected = Mass {
                sum: a * attention.sum + b,
                magnitude: a.abs() * attention.magnitude + b.abs(),
            };
            self.check_mass(row, expected, entries)
        })
    }

    fn check_mass(&self, row: usize, expected: Mass, got: &[f32]) -> Result<()> {
        let sum: f64 = got.iter().map(|&entry| f64::from(entry)).sum();
        let (layer, item) = (self.layer, self.item);
        self.problem.check_mass(layer, item, row, expected, sum)
    }

    /// What a row of the fused map sums to: the shares of the heads in which it is not empty.
    fn attention_sum(&self, row: usize) -> Mass {
        let none = Mass {
            sum: 0.0,
            magnitude: 0.0,
        };
        (0..self.problem.shape().heads).fold(none, |mass, head| {
            let share = match self.given_lse(head, row, 1.0).is_infinite() {
                true => 0.0,
                false => f64::from(self.share(head).unwrap_or(0.0)),
            };
            Mass {
                sum: mass.sum + share,
                magnitude: mass.magnitude + share.abs(),
            }
        })
    }

    /// Recomputes the LSE of some rows of the heads that fall to this member, where it is given and looked at.
    ///
    /// # Errors
    /// [`Error::Lse`].
    pub fn probe(&self, simd: Simd, member: Member<'_>) -> Result<()> {
        let Lse::Given(base) = self.source.lse else {
            return Ok(());
        };
        let len = self.len();
        let rows = probed_rows(self.problem).min(len);
        let Buffers { mut scoring, .. } = self.buffers();
        for head in member.part(self.problem.shape().heads) {
            for first in (0..rows).step_by(QUERIES) {
                let step = len / rows;
                let queries = Queries {
                    first: first * step,
                    step,
                    count: QUERIES.min(rows - first),
                };
                self.recompute(simd, head, queries, &mut scoring);
                let at = lanes(head, queries).start;
                for lane in 0..queries.count {
                    let (shift, factor) = (scoring.shifts[at + lane], scoring.factors[at + lane]);
                    let expected = -shift * LN_2 - factor.ln();
                    let got = self.given_lse(head, queries.row(lane), base.ln());
                    let row = queries.row(lane);
                    let (layer, item) = (self.layer, self.item);
                    (self.problem).check_lse(layer, item, head, row, expected, got)?;
                }
            }
        }
        Ok(())
    }
}
