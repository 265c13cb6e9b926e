//! Builds register arithmetic from scalar functions.

use super::{Result, Statement};
use crate::num::Value;
use crate::op::{Address, Alu, Guard, Op};
use crate::parse::builder::Builder;
use crate::parse::{Space, Type};
use crate::registers::{AnySlot, LANES, Lane, PredSlot, Slot};

/// A statement being decoded, and the program it goes to.
pub(super) struct Decoder<'b, 'a> {
    pub(super) builder: &'b mut Builder<'a>,
    pub(super) statement: Statement<'b>,
}

impl Decoder<'_, '_> {
    pub(super) fn take(&mut self, modifier: &str) -> bool {
        self.statement.take(modifier)
    }

    pub(super) fn take_one<T: Copy>(&mut self, alternatives: &[(&str, T)]) -> Option<T> {
        self.statement.take_one(alternatives)
    }

    pub(super) fn take_type(&mut self) -> Result<Type> {
        self.statement.take_type()
    }

    /// Number of operands.
    pub(super) fn count(&self) -> usize {
        self.statement.operands.len()
    }

    pub(super) fn expect_operands(&self, count: usize) -> Result<()> {
        if self.count() == count {
            Ok(())
        } else {
            Err(format!(
                "{} operands where {count} are modelled",
                self.count()
            ))
        }
    }

    pub(super) fn operand(&self, index: usize) -> Result<&str> {
        let operand = self.statement.operands.get(index).copied();
        operand.ok_or_else(|| format!("operand {index} is missing"))
    }

    fn owned(&self, index: usize) -> Result<String> {
        self.operand(index).map(str::to_owned)
    }

    pub(super) fn target<L: Lane>(&mut self, index: usize) -> Result<Slot<L>> {
        let name = self.owned(index)?;
        self.builder.target(&name)
    }

    pub(super) fn any_target(&mut self, index: usize) -> Result<AnySlot> {
        let name = self.owned(index)?;
        self.builder.any_target(&name)
    }

    pub(super) fn pred_target(&mut self, index: usize) -> Result<PredSlot> {
        let name = self.owned(index)?;
        self.builder.pred_target(&name)
    }

    pub(super) fn source<L: Lane>(&mut self, index: usize, ty: Type) -> Result<Slot<L>> {
        let text = self.owned(index)?;
        self.builder.source(&text, ty)
    }

    pub(super) fn any_source(&mut self, index: usize, ty: Type) -> Result<AnySlot> {
        let text = self.owned(index)?;
        self.builder.any_source(&text, ty, ty.bytes() == 8)
    }

    pub(super) fn guard(&mut self, index: usize) -> Result<Guard> {
        let text = self.owned(index)?;
        self.builder.guard(&text)
    }

    pub(super) fn address(&mut self, index: usize) -> Result<(Address, Option<Space>)> {
        let text = self.owned(index)?;
        self.builder.address(&text)
    }

    /// Registers of an operand `{a, b}`, or of the single operand `a`.
    pub(super) fn names(&self, index: usize) -> Result<Vec<String>> {
        let text = self.operand(index)?;
        let inner = text
            .strip_prefix('{')
            .and_then(|t| t.strip_suffix('}'))
            .unwrap_or(text);
        Ok(inner.split(',').map(|n| n.trim().to_owned()).collect())
    }

    pub(super) fn target_list(&mut self, index: usize) -> Result<Vec<Slot<u32>>> {
        let names = self.names(index)?;
        names.iter().map(|n| self.builder.target(n)).collect()
    }

    pub(super) fn source_list(&mut self, index: usize, ty: Type) -> Result<Vec<Slot<u32>>> {
        let names = self.names(index)?;
        names.iter().map(|n| self.builder.source(n, ty)).collect()
    }

    /// `d = f(a)`.
    pub(super) fn unary<A: Value, R: Value>(
        &mut self,
        ty: Type,
        f: impl Fn(A) -> R + Send + Sync + 'static,
    ) -> Result<Op> {
        self.expect_operands(2)?;
        let (d, a) = (self.target(0)?, self.source(1, ty)?);
        Ok(Op::Alu(unary(d, a, f)))
    }

    /// `d = f(a, b)`.
    pub(super) fn binary<A: Value, B: Value, R: Value>(
        &mut self,
        ty: Type,
        f: impl Fn(A, B) -> R + Send + Sync + 'static,
    ) -> Result<Op> {
        self.expect_operands(3)?;
        let (d, a, b) = (self.target(0)?, self.source(1, ty)?, self.source(2, ty)?);
        Ok(Op::Alu(binary(d, a, b, f)))
    }

    /// `d = f(a, b, c)`.
    pub(super) fn ternary<A: Value, B: Value, C: Value, R: Value>(
        &mut self,
        ty: Type,
        f: impl Fn(A, B, C) -> R + Send + Sync + 'static,
    ) -> Result<Op> {
        self.expect_operands(4)?;
        let (d, a, b) = (self.target(0)?, self.source(1, ty)?, self.source(2, ty)?);
        let c = self.source(3, ty)?;
        Ok(Op::Alu(ternary(d, a, b, c, f)))
    }
}

pub(super) fn unary<A: Value, R: Value>(
    d: Slot<R::Lane>,
    a: Slot<A::Lane>,
    f: impl Fn(A) -> R + Send + Sync + 'static,
) -> Alu {
    Box::new(move |registers, mask| {
        let a = registers.get(a);
        let out: [_; LANES] = std::array::from_fn(|l| f(A::from_lane(a[l])).to_lane());
        registers.set(d, &out, mask);
    })
}

pub(super) fn binary<A: Value, B: Value, R: Value>(
    d: Slot<R::Lane>,
    a: Slot<A::Lane>,
    b: Slot<B::Lane>,
    f: impl Fn(A, B) -> R + Send + Sync + 'static,
) -> Alu {
    Box::new(move |registers, mask| {
        let (a, b) = (registers.get(a), registers.get(b));
        let out: [_; LANES] =
            std::array::from_fn(|l| f(A::from_lane(a[l]), B::from_lane(b[l])).to_lane());
        registers.set(d, &out, mask);
    })
}

pub(super) fn ternary<A: Value, B: Value, C: Value, R: Value>(
    d: Slot<R::Lane>,
    a: Slot<A::Lane>,
    b: Slot<B::Lane>,
    c: Slot<C::Lane>,
    f: impl Fn(A, B, C) -> R + Send + Sync + 'static,
) -> Alu {
    Box::new(move |registers, mask| {
        let (a, b, c) = (registers.get(a), registers.get(b), registers.get(c));
        let out: [_; LANES] = std::array::from_fn(|l| {
            f(A::from_lane(a[l]), B::from_lane(b[l]), C::from_lane(c[l])).to_lane()
        });
        registers.set(d, &out, mask);
    })
}

/// One bit per lane: `f(a, b)`.
#[inline(always)]
pub(super) fn compare_lanes<A: Value>(
    a: &[A::Lane; LANES],
    b: &[A::Lane; LANES],
    f: impl Fn(A, A) -> bool,
) -> u32 {
    let mut bits = 0;
    for lane in 0..LANES {
        bits |= u32::from(f(A::from_lane(a[lane]), A::from_lane(b[lane]))) << lane;
    }
    bits
}
