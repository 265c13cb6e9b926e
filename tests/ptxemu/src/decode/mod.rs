//! Decodes instruction statements into operations.
//!
//! Every decoder takes the modifiers it understands; whatever is left over is an error, so that no
//! form is ever executed as if it were another one.

mod alu;
mod atomic;
mod bits;
mod compare;
mod convert;
mod copy;
mod cost;
mod float;
mod half;
mod integer;
mod matrix;
mod mbarrier;
mod memory;
mod moves;
mod statement;
mod sync;
mod warp;

use alu::Decoder;
pub(crate) use statement::Statement;

use crate::op::{Class, Op};
use crate::parse::builder::Builder;

type Result<T> = std::result::Result<T, String>;

/// Decodes one instruction and appends it to the program.
pub(crate) fn instruction(builder: &mut Builder<'_>, statement: Statement<'_>) -> Result<()> {
    let guard = statement.guard.map(|g| builder.guard(g)).transpose()?;
    let mut decoder = Decoder { builder, statement };
    let (op, class) = decode(&mut decoder)?;
    let unknown = decoder.statement.unused_modifiers();
    if !unknown.is_empty() {
        return Err(format!(
            "modifier .{} is not modelled here",
            unknown.join(" .")
        ));
    }
    let cost = cost::of(&decoder.statement, &op, decoder.builder.operands());
    decoder.builder.push(op, guard, class, cost);
    Ok(())
}

fn decode(d: &mut Decoder<'_, '_>) -> Result<(Op, Class)> {
    let classed = |class| move |op| (op, class);
    match d.statement.opcode {
        "add" | "sub" | "mul" | "mad" | "fma" | "div" | "rem" | "min" | "max" | "neg" | "abs" => {
            if d.statement.has_float_type() {
                float::arithmetic(d).map(classed(Class::Float))
            } else {
                integer::arithmetic(d).map(classed(Class::Integer))
            }
        }
        "addc" | "subc" | "madc" | "mul24" | "mad24" | "sad" | "dp4a" | "dp2a" => {
            integer::arithmetic(d).map(classed(Class::Integer))
        }
        "rcp" | "sqrt" | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" | "copysign"
        | "testp" => float::function(d).map(classed(Class::Float)),
        "and" | "or" | "xor" | "not" | "cnot" | "lop3" | "shl" | "shr" | "shf" | "bfe" | "bfi"
        | "bfind" | "brev" | "clz" | "popc" | "prmt" | "bmsk" | "szext" => {
            bits::decode(d).map(classed(Class::Integer))
        }
        "setp" | "set" | "selp" | "slct" => compare::decode(d).map(classed(Class::Integer)),
        "cvt" => convert::decode(d).map(classed(Class::Convert)),
        "mov" | "cvta" | "isspacep" | "mapa" | "getctarank" => {
            moves::decode(d).map(classed(Class::Move))
        }
        "ld" | "ldu" | "st" => memory::decode(d).map(classed(Class::OtherMemory)),
        "atom" | "red" => atomic::decode(d).map(classed(Class::Global)),
        "shfl" | "vote" | "match" | "redux" | "activemask" | "elect" => {
            warp::decode(d).map(classed(Class::Warp))
        }
        "bar" | "barrier" | "membar" | "fence" => sync::decode(d).map(classed(Class::Barrier)),
        "bra" | "brx" | "ret" | "exit" | "trap" | "brkpt" | "nanosleep" | "pmevent"
        | "setmaxnreg" | "griddepcontrol" | "prefetch" | "prefetchu" | "applypriority"
        | "discard" => sync::control(d).map(classed(Class::Control)),
        "cp" => copy::decode(d).map(classed(Class::AsyncCopy)),
        "mbarrier" => mbarrier::decode(d).map(classed(Class::Barrier)),
        "ldmatrix" | "stmatrix" | "mma" => matrix::decode(d).map(classed(Class::Mma)),
        _ => Err("unknown instruction".to_owned()),
    }
}
