//! `mbarrier` instructions.

use super::Result;
use super::alu::Decoder;
use super::memory::take_space;
use crate::op::{Mbarrier, MbarrierOp, Op, Phase};
use crate::parse::{Space, Type};

pub(super) fn decode(d: &mut Decoder<'_, '_>) -> Result<Op> {
    let forms = [
        ("init", "init"),
        ("inval", "inval"),
        ("arrive", "arrive"),
        ("arrive_drop", "arrive_drop"),
        ("expect_tx", "expect_tx"),
        ("complete_tx", "complete_tx"),
        ("test_wait", "test_wait"),
        ("try_wait", "try_wait"),
    ];
    let arrive_expects = d.statement.has("arrive") || d.statement.has("arrive_drop");
    let form = d
        .take_one(if arrive_expects { &forms[2..4] } else { &forms })
        .ok_or("no form")?;
    let expects = arrive_expects && d.take("expect_tx");
    let no_complete = d.take("noComplete");
    let by_parity = d.take("parity");
    for order in ["release", "acquire", "relaxed", "cta", "cluster"] {
        d.take(order);
    }
    let space = match take_space(d) {
        space @ (Space::Generic | Space::Shared | Space::SharedCluster) => space,
        _ => return Err("an mbarrier in this space is not modelled".to_owned()),
    };
    if !d.take("b64") && form != "expect_tx" && form != "complete_tx" {
        return Err("only .b64 is modelled".to_owned());
    }
    let (address, op) = match form {
        "init" => {
            d.expect_operands(2)?;
            (
                d.address(0)?.0,
                MbarrierOp::Init {
                    count: d.source(1, Type::U32)?,
                },
            )
        }
        "inval" => {
            d.expect_operands(1)?;
            (d.address(0)?.0, MbarrierOp::Inval)
        }
        "expect_tx" => {
            d.expect_operands(2)?;
            (
                d.address(0)?.0,
                MbarrierOp::ExpectTx {
                    bytes: d.source(1, Type::U32)?,
                },
            )
        }
        "complete_tx" => {
            d.expect_operands(2)?;
            (
                d.address(0)?.0,
                MbarrierOp::CompleteTx {
                    bytes: d.source(1, Type::U32)?,
                },
            )
        }
        "test_wait" | "try_wait" => {
            let limits_time = form == "try_wait" && d.count() == 4;
            d.expect_operands(if limits_time { 4 } else { 3 })?;
            let phase = if by_parity {
                Phase::Parity(d.source(2, Type::U32)?)
            } else {
                Phase::State(d.source(2, Type::B64)?)
            };
            (
                d.address(1)?.0,
                MbarrierOp::Test {
                    done: d.pred_target(0)?,
                    phase,
                },
            )
        }
        _ => arrive(d, form == "arrive_drop", expects, no_complete)?,
    };
    Ok(Op::Mbarrier(Mbarrier { space, address, op }))
}

/// `mbarrier.arrive state, [address], count`; a remote arrival returns no state.
fn arrive(
    d: &mut Decoder<'_, '_>,
    drop: bool,
    expects: bool,
    no_complete: bool,
) -> Result<(crate::op::Address, MbarrierOp)> {
    let has_state = !d.operand(0)?.starts_with('[');
    let first = usize::from(has_state);
    let state = if has_state { Some(d.target(0)?) } else { None };
    let address = d.address(first)?.0;
    let number = if d.count() > first + 1 {
        Some(d.source(first + 1, Type::U32)?)
    } else {
        None
    };
    d.expect_operands(first + 1 + usize::from(number.is_some()))?;
    let (count, expect) = if expects {
        (None, number)
    } else {
        (number, None)
    };
    Ok((
        address,
        MbarrierOp::Arrive {
            state,
            count,
            expect,
            drop,
            no_complete,
        },
    ))
}
