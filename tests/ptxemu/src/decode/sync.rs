//! Barriers, fences and control flow.

use super::Result;
use super::alu::Decoder;
use crate::op::{AnyTarget, Barrier, BarrierReduction, ClusterBarrier, Collective, Op};
use crate::parse::Type;

/// `bar`, `barrier`, `membar` and `fence`.
pub(super) fn decode(d: &mut Decoder<'_, '_>) -> Result<Op> {
    let opcode = d.statement.opcode;
    if opcode == "membar" {
        membar(d)
    } else if opcode == "fence" {
        fence(d)
    } else if d.take("warp") {
        d.take("sync");
        d.expect_operands(1)?;
        let members = d.source(0, Type::B32)?;
        Ok(Op::Collective {
            op: Collective::WarpBarrier,
            members,
        })
    } else if d.take("cluster") {
        cluster(d)
    } else {
        block(d, opcode == "bar")
    }
}

fn block(d: &mut Decoder<'_, '_>, is_bar: bool) -> Result<Op> {
    d.take("cta");
    let aligned = d.take("aligned") || is_bar;
    let kind = d
        .take_one(&[("sync", 's'), ("arrive", 'a'), ("red", 'r')])
        .ok_or("no form")?;
    if kind != 'r' {
        let id = d.source(0, Type::B32)?;
        let threads = if d.count() > 1 {
            Some(d.source(1, Type::B32)?)
        } else {
            None
        };
        d.expect_operands(1 + usize::from(threads.is_some()))?;
        let arrive = kind == 'a';
        return Ok(Op::Barrier(Barrier {
            id,
            threads,
            arrive,
            aligned,
            reduction: None,
        }));
    }
    let reductions = [
        ("popc", BarrierReduction::Popc),
        ("and", BarrierReduction::And),
        ("or", BarrierReduction::Or),
    ];
    let reduction = d.take_one(&reductions).ok_or("no reduction")?;
    let target = match reduction {
        BarrierReduction::Popc => {
            d.take("u32");
            AnyTarget::Register(d.target(0)?)
        }
        _ => {
            d.take("pred");
            AnyTarget::Pred(d.pred_target(0)?)
        }
    };
    let last = d
        .count()
        .checked_sub(1)
        .filter(|&l| l == 2 || l == 3)
        .ok_or("bad operands")?;
    let id = d.source(1, Type::B32)?;
    let threads = if last == 3 {
        Some(d.source(2, Type::B32)?)
    } else {
        None
    };
    let reduction = Some((reduction, d.guard(last)?, target));
    Ok(Op::Barrier(Barrier {
        id,
        threads,
        arrive: false,
        aligned,
        reduction,
    }))
}

fn cluster(d: &mut Decoder<'_, '_>) -> Result<Op> {
    let arrive = d
        .take_one(&[("arrive", true), ("wait", false)])
        .ok_or("no form")?;
    let aligned = d.take("aligned");
    let relaxed = d.take("relaxed");
    d.take(if arrive { "release" } else { "acquire" });
    d.expect_operands(0)?;
    Ok(Op::ClusterBarrier(if arrive {
        ClusterBarrier::Arrive {
            aligned,
            release: !relaxed,
        }
    } else {
        ClusterBarrier::Wait { aligned }
    }))
}

fn membar(d: &mut Decoder<'_, '_>) -> Result<Op> {
    let scopes = [("cta", ()), ("gl", ()), ("sys", ())];
    d.take_one(&scopes).ok_or("this fence is not modelled")?;
    Ok(Op::Fence {
        acquire: true,
        release: true,
    })
}

fn fence(d: &mut Decoder<'_, '_>) -> Result<Op> {
    // Proxy fences order generic accesses with asynchronous copies; which of them are needed is
    // not checked.
    if d.statement.has("proxy") || d.statement.has("mbarrier_init") {
        for modifier in [
            "proxy",
            "async",
            "alias",
            "mbarrier_init",
            "release",
            "cluster",
        ] {
            d.take(modifier);
        }
        for space in ["shared::cta", "shared::cluster", "global"] {
            d.take(space);
        }
        return Ok(Op::Nop);
    }
    let (acquire, release) = d
        .take_one(&[
            ("acq_rel", (true, true)),
            ("sc", (true, true)),
            ("acquire", (true, false)),
            ("release", (false, true)),
        ])
        .unwrap_or((true, true));
    let scopes = [("cta", ()), ("cluster", ()), ("gpu", ()), ("sys", ())];
    d.take_one(&scopes).ok_or("this fence is not modelled")?;
    Ok(Op::Fence { acquire, release })
}

/// Branches, exits, and hints without effect on results.
pub(super) fn control(d: &mut Decoder<'_, '_>) -> Result<Op> {
    match d.statement.opcode {
        "bra" => {
            d.take("uni");
            d.expect_operands(1)?;
            let label = d.operand(0)?.to_owned();
            d.builder.branches_to(&label, 0);
            Ok(Op::Branch(0))
        }
        "brx" => {
            d.take("idx");
            d.take("uni");
            d.expect_operands(2)?;
            let index = d.source(0, Type::U32)?;
            let table = d.operand(1)?.to_owned();
            let labels = d.builder.table(&table).ok_or("unknown branch table")?;
            for (entry, label) in labels.iter().enumerate() {
                d.builder.branches_to(label, entry);
            }
            Ok(Op::BranchTable {
                index,
                targets: vec![0; labels.len()],
            })
        }
        "ret" | "exit" => {
            d.take("uni");
            Ok(Op::Exit)
        }
        "trap" | "brkpt" => Ok(Op::Trap),
        "nanosleep" | "pmevent" => {
            d.take("u32");
            d.take("mask");
            Ok(Op::Nop)
        }
        "setmaxnreg" => {
            for modifier in ["inc", "dec", "sync", "aligned", "u32"] {
                d.take(modifier);
            }
            Ok(Op::Nop)
        }
        "griddepcontrol" => {
            d.take("launch_dependents");
            d.take("wait");
            Ok(Op::Nop)
        }
        _ => {
            for modifier in ["global", "local", "L1", "L2"] {
                d.take(modifier);
            }
            d.statement.take_prefixed("L2::");
            Ok(Op::Nop)
        }
    }
}
