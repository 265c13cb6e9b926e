//! The instructions of a kernel as machine code has them.

use super::{Cost, Instruction};
use crate::Kernel;
use crate::op::Op;

/// Most instructions that a branch skips for machine code to predicate them instead.
const MOST_PREDICATED: usize = 8;

/// The instructions of a kernel.
pub(super) fn of(kernel: &Kernel) -> Vec<Instruction> {
    let program = &kernel.program;
    let mut sources = vec![0; program.code.len() + 1];
    for instruction in &program.code {
        match &instruction.op {
            Op::Branch(to) => sources[*to as usize] += 1,
            Op::BranchTable { targets, .. } => {
                targets.iter().for_each(|&to| sources[to as usize] += 1);
            }
            _ => {}
        }
    }
    let mut code: Vec<Instruction> = program
        .code
        .iter()
        .map(|instruction| Instruction {
            cost: instruction.cost,
            reads: instruction.operands.reads.clone(),
            writes: instruction.operands.writes.clone(),
            guarded: instruction.guard.is_some(),
            is_target: false,
        })
        .collect();
    for (at, instruction) in program.code.iter().enumerate() {
        let Op::Branch(to) = instruction.op else {
            continue;
        };
        let skipped = at + 1..to as usize;
        let short = (1..=MOST_PREDICATED).contains(&skipped.len());
        let entered = skipped.clone().any(|index| sources[index] > 0);
        if code[at].guarded
            && short
            && !entered
            && code[skipped.clone()]
                .iter()
                .all(|it| can_be_predicated(it.cost))
        {
            let guard = code[at].reads.clone();
            code[at].cost = Cost::Free;
            sources[to as usize] -= 1;
            for skipped in &mut code[skipped] {
                skipped.guarded = true;
                skipped.reads.extend(&guard);
            }
        }
    }
    for (instruction, sources) in code.iter_mut().zip(sources) {
        instruction.is_target = sources > 0;
    }
    code
}

/// Whether the assembler predicates an instruction rather than branch around it: cheap ones, that no other warp sees.
fn can_be_predicated(cost: Cost) -> bool {
    matches!(
        cost,
        Cost::Free
            | Cost::Constant
            | Cost::Integer
            | Cost::IntegerWide
            | Cost::Multiply
            | Cost::BitField
            | Cost::Float
            | Cost::Convert
            | Cost::ConvertInteger
            | Cost::LoadShared
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Module;

    fn code_of(body: &str) -> Vec<Instruction> {
        let text = format!(
            ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry k() {{ .reg .pred %p<3>; .reg .f32 %f<9>; \
             .reg .b32 %r<9>;\n{body}\nret; }}"
        );
        let module = Module::parse(&text).unwrap();
        of(module.kernel("k").unwrap())
    }

    #[test]
    fn short_branches_are_predicates() {
        let code = code_of(
            "setp.eq.u32 %p1, %r1, %r2; @%p1 bra $L; add.f32 %f1, %f1, %f2; $L: add.f32 %f3, %f3, %f1;",
        );
        let [_, branch, skipped, behind, ..] = &code[..] else {
            panic!("{code:?}");
        };
        assert_eq!(branch.cost, Cost::Free);
        assert!(skipped.guarded && skipped.reads.contains(&branch.reads[0]));
        assert!(!behind.guarded && !behind.is_target);
    }

    #[test]
    fn others_stay_branches() {
        let long = "add.f32 %f1, %f1, %f2; ".repeat(MOST_PREDICATED + 1);
        for skipped in [
            &*long,
            "bar.sync 0;",
            "$M: add.f32 %f1, %f1, %f2; @%p2 bra $M;",
        ] {
            let code = code_of(&format!("@%p1 bra $L; {skipped} $L: mov.u32 %r1, 7;"));
            assert_eq!(code[0].cost, Cost::Branch, "{skipped}");
            assert!(code.iter().any(|it| it.is_target), "{skipped}");
        }
    }
}
