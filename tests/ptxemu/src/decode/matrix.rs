//! `ldmatrix`, `stmatrix` and `mma`.

use super::Result;
use super::alu::Decoder;
use super::memory::take_space;
use crate::op::{Matrices, Mma, MmaInput, Op};
use crate::parse::{Space, Type};

pub(super) fn decode(d: &mut Decoder<'_, '_>) -> Result<Op> {
    if !d.take("sync") || !d.take("aligned") {
        return Err("only the .sync.aligned form is modelled".to_owned());
    }
    if d.statement.opcode == "mma" {
        multiply(d)
    } else {
        matrices(d)
    }
}

fn matrices(d: &mut Decoder<'_, '_>) -> Result<Op> {
    let count = d
        .take_one(&[("x1", 1), ("x2", 2), ("x4", 4)])
        .ok_or("no count")?;
    let transposed = d.take("trans");
    let space = take_space(d);
    if !d.take("m8n8") || !d.take("b16") {
        return Err("only .m8n8 of .b16 is modelled".to_owned());
    }
    if !matches!(space, Space::Shared | Space::Generic) {
        return Err("matrices in this space are not modelled".to_owned());
    }
    d.expect_operands(2)?;
    let is_load = d.statement.opcode == "ldmatrix";
    let (registers, address) = if is_load {
        (d.target_list(0)?, d.address(1)?.0)
    } else {
        (d.source_list(1, Type::B32)?, d.address(0)?.0)
    };
    if registers.len() != count {
        return Err(format!(
            "{} registers where {count} are needed",
            registers.len()
        ));
    }
    let matrices = Matrices {
        registers,
        address,
        transposed,
        space,
    };
    Ok(if is_load {
        Op::LoadMatrix(matrices)
    } else {
        Op::StoreMatrix(matrices)
    })
}

fn multiply(d: &mut Decoder<'_, '_>) -> Result<Op> {
    let k = d
        .take_one(&[("m16n8k4", 4), ("m16n8k8", 8), ("m16n8k16", 16)])
        .ok_or("this shape is not modelled")?;
    if !d.take("row") || !d.take("col") {
        return Err("only .row.col is modelled".to_owned());
    }
    let types = [
        d.take_type()?,
        d.take_type()?,
        d.take_type()?,
        d.take_type()?,
    ];
    let (input, d_is_f16, c_is_f16) = match (types, k) {
        ([Type::F32, Type::F16, Type::F16, Type::F32], 8 | 16) => (MmaInput::F16, false, false),
        ([Type::F16, Type::F16, Type::F16, Type::F16], 8 | 16) => (MmaInput::F16, true, true),
        ([Type::F32, Type::Bf16, Type::Bf16, Type::F32], 8 | 16) => (MmaInput::Bf16, false, false),
        ([Type::F32, Type::Tf32, Type::Tf32, Type::F32], 4 | 8) => (MmaInput::Tf32, false, false),
        _ => return Err("these types are not modelled for this shape".to_owned()),
    };
    d.expect_operands(4)?;
    let c_type = if c_is_f16 { Type::B32 } else { Type::F32 };
    let mma = Mma {
        d: d.target_list(0)?,
        a: d.source_list(1, Type::B32)?,
        b: d.source_list(2, Type::B32)?,
        c: d.source_list(3, c_type)?,
        input,
        k,
        d_is_f16,
        c_is_f16,
    };
    // Elements per 32-bit register.
    let packed = if input == MmaInput::Tf32 { 1 } else { 2 };
    let expected = (
        if d_is_f16 { 2 } else { 4 },
        16 * k / 32 / packed,
        8 * k / 32 / packed,
    );
    if (mma.d.len(), mma.a.len(), mma.b.len()) != expected || mma.c.len() != expected.0 {
        return Err("wrong number of registers".to_owned());
    }
    Ok(Op::Mma(mma))
}
