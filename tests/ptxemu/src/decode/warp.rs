//! Exchanges within a warp.

use super::Result;
use super::alu::Decoder;
use crate::op::{Collective, Fold, Op, Shuffle, ShuffleMode, VoteMode};
use crate::parse::Type;
use crate::registers::PredSlot;

pub(super) fn decode(d: &mut Decoder<'_, '_>) -> Result<Op> {
    if d.statement.opcode == "activemask" {
        d.take("b32");
        d.expect_operands(1)?;
        return Ok(Op::ActiveMask(d.target(0)?));
    }
    if !d.take("sync") {
        return Err("only the .sync form is modelled".to_owned());
    }
    match d.statement.opcode {
        "shfl" => shuffle(d),
        "vote" => vote(d),
        "match" => match_value(d),
        "redux" => reduce(d),
        _ => elect(d),
    }
}

/// `d` or `d|p`.
fn pair(d: &Decoder<'_, '_>) -> Result<(String, Option<String>)> {
    let text = d.operand(0)?;
    Ok(match text.split_once('|') {
        Some((first, second)) => (first.trim().to_owned(), Some(second.trim().to_owned())),
        None => (text.to_owned(), None),
    })
}

fn optional_pred(d: &mut Decoder<'_, '_>, name: Option<String>) -> Result<Option<PredSlot>> {
    name.map(|n| d.builder.pred_target(&n)).transpose()
}

fn shuffle(d: &mut Decoder<'_, '_>) -> Result<Op> {
    let modes = [
        ("up", ShuffleMode::Up),
        ("down", ShuffleMode::Down),
        ("bfly", ShuffleMode::Bfly),
        ("idx", ShuffleMode::Idx),
    ];
    let mode = d.take_one(&modes).ok_or("no mode")?;
    if !d.take("b32") {
        return Err("only .b32 is modelled".to_owned());
    }
    d.expect_operands(5)?;
    let (to, in_range) = pair(d)?;
    let op = Collective::Shuffle(Shuffle {
        mode,
        to: d.builder.target(&to)?,
        in_range: optional_pred(d, in_range)?,
        value: d.source(1, Type::B32)?,
        lane: d.source(2, Type::B32)?,
        clamp: d.source(3, Type::B32)?,
    });
    Ok(Op::Collective {
        op,
        members: d.source(4, Type::B32)?,
    })
}

fn vote(d: &mut Decoder<'_, '_>) -> Result<Op> {
    let modes = [
        ("all", VoteMode::All),
        ("any", VoteMode::Any),
        ("uni", VoteMode::Uni),
        ("ballot", VoteMode::Ballot),
    ];
    let mode = d.take_one(&modes).ok_or("no mode")?;
    d.expect_operands(3)?;
    let (to_pred, to) = if mode == VoteMode::Ballot {
        d.take("b32");
        (None, Some(d.target(0)?))
    } else {
        d.take("pred");
        (Some(d.pred_target(0)?), None)
    };
    let value = d.guard(1)?;
    let op = Collective::Vote {
        mode,
        to_pred,
        to,
        value,
    };
    Ok(Op::Collective {
        op,
        members: d.source(2, Type::B32)?,
    })
}

fn match_value(d: &mut Decoder<'_, '_>) -> Result<Op> {
    let all = d
        .take_one(&[("all", true), ("any", false)])
        .ok_or("no mode")?;
    let ty = d.take_type()?;
    if !matches!(ty, Type::B32 | Type::B64) {
        return Err(format!("{ty:?} is not modelled here"));
    }
    d.expect_operands(3)?;
    let (to, found) = pair(d)?;
    let op = Collective::Match {
        all,
        to: d.builder.target(&to)?,
        found: optional_pred(d, found)?,
        value: d.any_source(1, ty)?,
    };
    Ok(Op::Collective {
        op,
        members: d.source(2, Type::B32)?,
    })
}

fn reduce(d: &mut Decoder<'_, '_>) -> Result<Op> {
    let name = ["add", "min", "max", "and", "or", "xor"]
        .into_iter()
        .find(|name| d.statement.take(name));
    let ty = d.take_type()?;
    let fold: Fold = match (name.unwrap_or_default(), ty) {
        ("add", Type::U32 | Type::S32) => u32::wrapping_add,
        ("min", Type::U32) => u32::min,
        ("max", Type::U32) => u32::max,
        ("min", Type::S32) => |a, b| (a as i32).min(b as i32) as u32,
        ("max", Type::S32) => |a, b| (a as i32).max(b as i32) as u32,
        ("and", Type::B32) => |a, b| a & b,
        ("or", Type::B32) => |a, b| a | b,
        ("xor", Type::B32) => |a, b| a ^ b,
        _ => return Err("this reduction is not modelled".to_owned()),
    };
    d.expect_operands(3)?;
    let op = Collective::Redux {
        to: d.target(0)?,
        value: d.source(1, ty)?,
        fold,
    };
    Ok(Op::Collective {
        op,
        members: d.source(2, Type::B32)?,
    })
}

fn elect(d: &mut Decoder<'_, '_>) -> Result<Op> {
    d.expect_operands(2)?;
    let (to, elected) = pair(d)?;
    let elected = elected.ok_or("elect.sync needs a predicate")?;
    let op = Collective::Elect {
        to: Some(d.builder.target(&to)?),
        elected: d.builder.pred_target(&elected)?,
    };
    Ok(Op::Collective {
        op,
        members: d.source(1, Type::B32)?,
    })
}
