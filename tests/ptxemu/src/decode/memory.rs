//! `ld` and `st`.

use super::Result;
use super::alu::Decoder;
use crate::op::{Address, Load, Op, Order, Store, StoreAsync};
use crate::parse::{Space, Type};

/// State spaces as modifiers.
const SPACES: [(&str, Space); 9] = [
    ("global", Space::Global),
    ("shared::cluster", Space::SharedCluster),
    ("shared::cta", Space::Shared),
    ("shared", Space::Shared),
    ("local", Space::Local),
    ("const", Space::Const),
    ("param", Space::Param),
    ("param::entry", Space::Param),
    ("param::func", Space::Param),
];

/// Takes the state space of an access; none means generic.
pub(super) fn take_space(d: &mut Decoder<'_, '_>) -> Space {
    d.take_one(&SPACES).unwrap_or(Space::Generic)
}

/// Takes caching hints, which have no effect on results.
pub(super) fn take_hints(d: &mut Decoder<'_, '_>) {
    for hint in ["ca", "cg", "cs", "lu", "cv", "wb", "wt"] {
        d.take(hint);
    }
    d.statement.take_prefixed("L1::");
    d.statement.take_prefixed("L2::");
}

/// Takes memory order and scope.
pub(super) fn take_order(d: &mut Decoder<'_, '_>) -> Order {
    let strong = Order {
        strong: true,
        ..Order::default()
    };
    let orders = [
        ("weak", Order::default()),
        ("volatile", strong),
        ("relaxed", strong),
        (
            "acquire",
            Order {
                acquire: true,
                ..strong
            },
        ),
        (
            "release",
            Order {
                release: true,
                ..strong
            },
        ),
        (
            "acq_rel",
            Order {
                acquire: true,
                release: true,
                strong: true,
            },
        ),
    ];
    // Always with .relaxed.
    d.take("mmio");
    let order = d.take_one(&orders).unwrap_or_default();
    for scope in ["cta", "cluster", "gpu", "sys"] {
        d.take(scope);
    }
    order
}

/// Takes the number of elements of a vector access.
fn take_vector(d: &mut Decoder<'_, '_>) -> usize {
    d.take_one(&[("v2", 2), ("v4", 4), ("v8", 8)]).unwrap_or(1)
}

/// The address operand; a symbol that lives elsewhere than the instruction says, such as the
/// parameter of an inlined function, decides the space.
fn located(d: &mut Decoder<'_, '_>, index: usize, space: Space) -> Result<(Space, Address)> {
    let (address, symbol_space) = d.address(index)?;
    let space = match symbol_space {
        Some(Space::Local) if space == Space::Param => Space::Local,
        _ => space,
    };
    Ok((space, address))
}

/// Drops the cache policy operand of `.L2::cache_hint`.
pub(super) fn drop_cache_policy(d: &mut Decoder<'_, '_>, has_policy: bool) {
    if has_policy {
        d.statement.operands.pop();
    }
}

/// `st.async{.weak}.shared::cluster.mbarrier::complete_tx::bytes{.vec}.type [to], from, [mbarrier]`.
fn store_async(d: &mut Decoder<'_, '_>) -> Result<Op> {
    d.take("weak");
    if !d.take("shared::cluster") || !d.take("mbarrier::complete_tx::bytes") {
        return Err("this form is not modelled".to_owned());
    }
    let count = take_vector(d);
    let ty = d.take_type()?;
    d.expect_operands(3)?;
    let bytes = ty.bytes();
    if bytes < 4 || bytes as usize * count > 16 {
        return Err("an asynchronous store of this type is not modelled".to_owned());
    }
    let names = d.names(1)?;
    if names.len() != count {
        return Err(format!(
            "{} registers where {count} are needed",
            names.len()
        ));
    }
    let from = names
        .iter()
        .map(|n| d.builder.any_source(n, ty, bytes == 8))
        .collect::<Result<_>>()?;
    Ok(Op::StoreAsync(StoreAsync {
        bytes,
        from,
        to: d.address(0)?.0,
        mbarrier: d.address(2)?.0,
    }))
}

pub(super) fn decode(d: &mut Decoder<'_, '_>) -> Result<Op> {
    if d.statement.opcode == "st" && d.take("async") {
        return store_async(d);
    }
    let order = take_order(d);
    let space = take_space(d);
    let policy = d.statement.has("L2::cache_hint");
    take_hints(d);
    d.take("nc");
    let count = take_vector(d);
    let ty = d.take_type()?;
    drop_cache_policy(d, policy);
    d.expect_operands(2)?;
    let bytes = ty.bytes();
    if matches!(ty, Type::F16x2 | Type::Bf16x2 | Type::Pred) || bytes as usize * count > 32 {
        return Err("an access of this type is not modelled".to_owned());
    }
    let is_store = d.statement.opcode == "st";
    let (address_index, data_index) = if is_store { (0, 1) } else { (1, 0) };
    let (space, address) = located(d, address_index, space)?;
    let names = d.names(data_index)?;
    if names.len() != count {
        return Err(format!(
            "{} registers where {count} are needed",
            names.len()
        ));
    }
    if !is_store {
        let to = names
            .iter()
            .map(|n| d.builder.any_target(n))
            .collect::<Result<_>>()?;
        let signed = ty.is_signed();
        return Ok(Op::Load(Load {
            space,
            bytes,
            signed,
            to,
            from: address,
            order,
        }));
    }
    if matches!(space, Space::Const | Space::Param) {
        return Err("a store to this space is not modelled".to_owned());
    }
    let from = names
        .iter()
        .map(|n| d.builder.any_source(n, ty, bytes == 8))
        .collect::<Result<_>>()?;
    Ok(Op::Store(Store {
        space,
        bytes,
        from,
        to: address,
        order,
    }))
}
