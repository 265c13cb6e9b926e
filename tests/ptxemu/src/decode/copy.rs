//! Asynchronous copies: `cp.async` and `cp.async.bulk`.

use super::Result;
use super::alu::Decoder;
use super::memory::{drop_cache_policy, take_hints};
use crate::op::{BulkCopy, BulkKind, CopyAsync, Mbarrier, MbarrierOp, Op};
use crate::parse::{Space, Type, parse_int};

pub(super) fn decode(d: &mut Decoder<'_, '_>) -> Result<Op> {
    if !d.take("async") {
        return Err("only cp.async is modelled".to_owned());
    }
    if d.take("bulk") {
        return bulk(d);
    }
    if d.take("mbarrier") {
        return arrive(d);
    }
    if d.take("commit_group") {
        return Ok(Op::CopyCommit);
    }
    if d.take("wait_all") {
        return Ok(Op::CopyWaitAll);
    }
    if d.take("wait_group") {
        d.expect_operands(1)?;
        return Ok(Op::CopyWait(d.source(0, Type::U32)?));
    }
    let skips_l1 = d.statement.has("cg");
    let policy = d.statement.has("L2::cache_hint");
    take_hints(d);
    let is_shared = d.take("shared") || d.take("shared::cta");
    if !is_shared || !d.take("global") {
        return Err("this form is not modelled".to_owned());
    }
    drop_cache_policy(d, policy);
    let bytes = d.operand(2).ok().and_then(parse_int).ok_or("no size")? as u32;
    if !matches!((bytes, skips_l1), (4 | 8 | 16, false) | (16, true)) {
        return Err(format!("a copy of {bytes} bytes is not modelled here"));
    }
    let to = d.address(0)?.0;
    let from = d.address(1)?.0;
    let mut copy = CopyAsync {
        to,
        from,
        bytes,
        source_bytes: None,
        ignore: None,
    };
    match d.count() {
        3 => {}
        4 if d.builder.is_pred(d.statement.operands[3]) => copy.ignore = Some(d.guard(3)?),
        4 => {
            // A full constant size is the plain copy.
            let size = parse_int(d.operand(3)?);
            if size != Some(i128::from(bytes)) {
                copy.source_bytes = Some(d.source(3, Type::U32)?);
            }
        }
        _ => return Err("too many operands".to_owned()),
    }
    Ok(Op::CopyAsync(copy))
}

/// `cp.async.mbarrier.arrive{.noinc}.shared.b64 [mbarrier]`.
fn arrive(d: &mut Decoder<'_, '_>) -> Result<Op> {
    if !d.take("arrive") {
        return Err("this form is not modelled".to_owned());
    }
    let no_increment = d.take("noinc");
    d.take("shared");
    d.take("shared::cta");
    d.take("b64");
    d.expect_operands(1)?;
    let address = d.address(0)?.0;
    let op = MbarrierOp::ArriveOnCopies { no_increment };
    Ok(Op::Mbarrier(Mbarrier {
        space: Space::Shared,
        address,
        op,
    }))
}

fn bulk(d: &mut Decoder<'_, '_>) -> Result<Op> {
    if d.take("commit_group") {
        return Ok(Op::BulkCommit);
    }
    if d.take("wait_group") {
        // The copies complete as soon as their reads must have.
        d.take("read");
        d.expect_operands(1)?;
        return Ok(Op::BulkWait {
            keep: d.source(0, Type::U32)?,
        });
    }
    if d.take("tensor") || d.take("prefetch") {
        return Err("this form is not modelled".to_owned());
    }
    let to_cluster = d.take("shared::cluster") || {
        // From PTX 8.6 the destination may be named by its block.
        d.statement.has("mbarrier::complete_tx::bytes") && d.take("shared::cta")
    };
    let from_block = d.take("shared::cta");
    let global = d.take("global");
    let policy = d.statement.has("L2::cache_hint");
    take_hints(d);
    let multicast = d.take("multicast::cluster");
    let on_mbarrier = d.take("mbarrier::complete_tx::bytes");
    let on_group = d.take("bulk_group");
    drop_cache_policy(d, policy);
    let to = d.address(0)?.0;
    let from = d.address(1)?.0;
    let bytes = d.source(2, Type::U32)?;
    let kind = match (to_cluster, from_block, global, on_mbarrier, on_group) {
        (true, false, true, true, false) => {
            d.expect_operands(4 + usize::from(multicast))?;
            let multicast = if multicast {
                Some(d.source(4, Type::B16)?)
            } else {
                None
            };
            BulkKind::GlobalToShared {
                mbarrier: d.address(3)?.0,
                multicast,
            }
        }
        (true, true, false, true, false) if !multicast => {
            d.expect_operands(4)?;
            BulkKind::SharedToCluster {
                mbarrier: d.address(3)?.0,
            }
        }
        (false, true, true, false, true) if !multicast => {
            d.expect_operands(3)?;
            BulkKind::SharedToGlobal
        }
        _ => return Err("this bulk copy is not modelled".to_owned()),
    };
    Ok(Op::BulkCopy(BulkCopy {
        to,
        from,
        bytes,
        kind,
    }))
}
