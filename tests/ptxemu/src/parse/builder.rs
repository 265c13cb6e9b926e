//! The program under construction: registers, symbols, constants and code of one kernel.

use std::collections::HashMap;

use super::source::parse_int;
use super::types::{Space, Type};
use super::variable::literal;
use crate::op::{Address, Class, Constant, Guard, Instruction, Op, Operands, Program, Special};
use crate::registers::{AnySlot, Lane, PredSlot, Slot};
use crate::trace::Cost;

/// Where a variable lives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Symbol {
    pub(crate) space: Space,
    pub(crate) place: Constant,
}

#[derive(Clone, Copy)]
enum Register {
    Value(AnySlot),
    Pred(PredSlot),
}

/// Names visible in one `{ ... }` block, or in one inlined function.
#[derive(Default)]
struct Scope {
    registers: HashMap<String, Register>,
    symbols: HashMap<String, Symbol>,
    labels: HashMap<String, u32>,
    tables: HashMap<String, Vec<String>>,
    fixups: Vec<Fixup>,
    /// Names of an enclosing scope are visible.
    open: bool,
}

/// A branch whose label is not resolved yet.
struct Fixup {
    at: usize,
    /// Position in a branch table.
    entry: usize,
    label: String,
}

/// Builds a [`Program`].
pub(crate) struct Builder<'a> {
    /// Symbols of the module.
    module: &'a HashMap<String, Symbol>,
    scopes: Vec<Scope>,
    constants: HashMap<(bool, Constant), AnySlot>,
    specials: HashMap<Special, AnySlot>,
    carry: Option<PredSlot>,
    /// Of the instruction that is being decoded.
    operands: Operands,
    pub(crate) program: Program,
    pub(crate) line: u32,
    pub(crate) source_line: u32,
    pub(crate) text: String,
    pub(crate) shared_bytes: usize,
    pub(crate) local_bytes: usize,
}

type Result<T> = std::result::Result<T, String>;

impl<'a> Builder<'a> {
    pub(crate) fn new(module: &'a HashMap<String, Symbol>) -> Self {
        Self {
            module,
            scopes: Vec::new(),
            constants: HashMap::new(),
            specials: HashMap::new(),
            carry: None,
            operands: Operands::default(),
            program: Program {
                shared_granule: 16,
                global_granule: 16,
                ..Program::default()
            },
            line: 0,
            source_line: 0,
            text: String::new(),
            shared_bytes: 0,
            local_bytes: 0,
        }
    }

    /// Enters a function: its names hide all others.
    pub(crate) fn enter_function(&mut self) {
        self.scopes.push(Scope::default());
    }

    /// Enters a block inside a function.
    pub(crate) fn enter_block(&mut self) {
        self.scopes.push(Scope {
            open: true,
            ..Scope::default()
        });
    }

    /// Leaves a function or a block and resolves the branches to its labels.
    pub(crate) fn leave(&mut self) -> Result<()> {
        let scope = self.scopes.pop().unwrap_or_default();
        for fixup in scope.fixups {
            let Some(&target) = scope.labels.get(&fixup.label) else {
                match self.scopes.last_mut() {
                    Some(outer) if scope.open => outer.fixups.push(fixup),
                    _ => return Err(format!("label {} is not defined", fixup.label)),
                }
                continue;
            };
            match &mut self.program.code[fixup.at].op {
                Op::BranchTable { targets, .. } => targets[fixup.entry] = target,
                op => *op = Op::Branch(target),
            }
        }
        Ok(())
    }

    fn visible(&self) -> impl Iterator<Item = &Scope> {
        let first = self.scopes.iter().rposition(|s| !s.open).unwrap_or(0);
        self.scopes[first..].iter().rev()
    }

    fn scope(&mut self) -> &mut Scope {
        if self.scopes.is_empty() {
            self.scopes.push(Scope::default());
        }
        self.scopes.last_mut().expect("just filled")
    }

    pub(crate) fn label(&mut self, name: &str) {
        let at = self.program.code.len() as u32;
        self.scope().labels.insert(name.to_owned(), at);
    }

    /// Declares `name: .branchtargets a, b`.
    pub(crate) fn branch_table(&mut self, name: &str, targets: Vec<String>) {
        self.scope().tables.insert(name.to_owned(), targets);
    }

    pub(crate) fn symbol(&mut self, name: &str, symbol: Symbol) {
        self.scope().symbols.insert(name.to_owned(), symbol);
    }

    pub(crate) fn find_symbol(&self, name: &str) -> Option<Symbol> {
        let local = self.visible().find_map(|s| s.symbols.get(name));
        local.or_else(|| self.module.get(name)).copied()
    }

    fn new_lines(&mut self, count: u32) -> u32 {
        let line = self.program.lines;
        self.program.lines += count;
        line
    }

    pub(crate) fn new_pred(&mut self) -> PredSlot {
        PredSlot(self.new_lines(1))
    }

    pub(crate) fn new_slot<L: Lane>(&mut self) -> Slot<L> {
        Slot::at(self.new_lines(L::LINES))
    }

    fn new_any(&mut self, wide: bool) -> AnySlot {
        if wide {
            AnySlot::Wide(self.new_slot())
        } else {
            AnySlot::Narrow(self.new_slot())
        }
    }

    /// The carry flag of `add.cc` and its like.
    pub(crate) fn carry(&mut self) -> PredSlot {
        if let Some(slot) = self.carry {
            return slot;
        }
        let slot = self.new_pred();
        self.carry = Some(slot);
        slot
    }

    /// Declares registers: `.reg .b32 %r<10>`.
    pub(crate) fn declare_registers(&mut self, ty: Type, names: &[&str]) -> Result<()> {
        for name in names {
            let (stem, count) = match name.split_once('<') {
                Some((stem, count)) => {
                    let count = count.trim_end_matches('>').parse::<u32>();
                    (
                        stem,
                        Some(count.map_err(|_| format!("bad register count in {name}"))?),
                    )
                }
                None => (*name, None),
            };
            for index in 0..count.unwrap_or(1) {
                let register = match ty {
                    Type::Pred => Register::Pred(self.new_pred()),
                    _ => Register::Value(self.new_any(ty.bytes() == 8)),
                };
                let name = if count.is_some() {
                    format!("{stem}{index}")
                } else {
                    stem.to_owned()
                };
                self.scope().registers.insert(name, register);
            }
        }
        Ok(())
    }

    fn register(&self, name: &str) -> Option<Register> {
        self.visible().find_map(|s| s.registers.get(name)).copied()
    }

    /// A register that is written. `_` stands for one that nobody reads.
    pub(crate) fn target<L: Lane>(&mut self, name: &str) -> Result<Slot<L>> {
        if name == "_" {
            return Ok(self.new_slot());
        }
        L::slot(self.any_target(name)?).ok_or_else(|| format!("{name} has the wrong width"))
    }

    /// A register of either width that is written.
    pub(crate) fn any_target(&mut self, name: &str) -> Result<AnySlot> {
        match self.register(name) {
            Some(Register::Value(slot)) => {
                self.operands.writes.push(slot.line());
                Ok(slot)
            }
            Some(Register::Pred(_)) => Err(format!("{name} is a predicate")),
            None if name == "_" => Ok(self.new_any(true)),
            None => Err(format!("{name} is not a register")),
        }
    }

    pub(crate) fn pred_target(&mut self, name: &str) -> Result<PredSlot> {
        match self.register(name) {
            Some(Register::Pred(slot)) => {
                self.operands.writes.push(slot.0);
                Ok(slot)
            }
            Some(Register::Value(_)) => Err(format!("{name} is not a predicate")),
            None if name == "_" => Ok(self.new_pred()),
            None => Err(format!("{name} is not a register")),
        }
    }

    pub(crate) fn is_pred(&self, name: &str) -> bool {
        matches!(
            self.register(name.trim_start_matches('!')),
            Some(Register::Pred(_))
        )
    }

    /// A predicate that is read: `%p1` or `!%p1`.
    pub(crate) fn guard(&mut self, text: &str) -> Result<Guard> {
        let (name, negated) = match text.strip_prefix('!') {
            Some(name) => (name.trim(), true),
            None => (text, false),
        };
        match self.register(name) {
            Some(Register::Pred(slot)) => {
                self.operands.reads.push(slot.0);
                Ok(Guard { slot, negated })
            }
            _ => match parse_int(name) {
                Some(value) => Ok(Guard {
                    slot: self.pred_constant(value != 0),
                    negated,
                }),
                None => Err(format!("{name} is not a predicate")),
            },
        }
    }

    /// A predicate that is the same in all lanes.
    fn pred_constant(&mut self, value: bool) -> PredSlot {
        let bits = if value { u32::MAX.into() } else { 0 };
        match self.constant(Constant::Bits(bits), false) {
            AnySlot::Narrow(slot) => slot.as_pred(),
            AnySlot::Wide(_) => self.new_pred(),
        }
    }

    /// A value that is read, of the width of `L`; literals are taken as of type `ty`.
    pub(crate) fn source<L: Lane>(&mut self, text: &str, ty: Type) -> Result<Slot<L>> {
        let any = self.any_source(text, ty, L::LINES == 2)?;
        L::slot(any).ok_or_else(|| format!("{text} has the wrong width"))
    }

    /// A value that is read; literals and symbols are given the width `wide`.
    pub(crate) fn any_source(&mut self, text: &str, ty: Type, wide: bool) -> Result<AnySlot> {
        match self.register(text) {
            Some(Register::Value(slot)) => {
                self.operands.reads.push(slot.line());
                return Ok(slot);
            }
            Some(Register::Pred(_)) => return Err(format!("{text} is a predicate")),
            None => {}
        }
        if text.starts_with('%') {
            return self.special(text);
        }
        if text == "WARP_SZ" {
            return Ok(self.constant(Constant::Bits(32), wide));
        }
        if let Some(bits) = literal(text, ty) {
            return Ok(self.constant(Constant::Bits(bits), wide));
        }
        let (name, offset) = split_offset(text)?;
        let symbol = self
            .find_symbol(name)
            .ok_or_else(|| format!("{name} is not defined"))?;
        Ok(self.constant(shifted(symbol.place, offset), wide))
    }

    /// A register that holds a constant.
    pub(crate) fn constant(&mut self, value: Constant, wide: bool) -> AnySlot {
        if let Some(&slot) = self.constants.get(&(wide, value)) {
            return slot;
        }
        let slot = self.new_any(wide);
        self.constants.insert((wide, value), slot);
        self.program.constants.push((slot, value));
        slot
    }

    fn special(&mut self, name: &str) -> Result<AnySlot> {
        let special = special_register(name).ok_or_else(|| format!("{name} is not modelled"))?;
        self.operands.special = true;
        Ok(self.special_register(special))
    }

    /// The register that holds a special register.
    pub(crate) fn special_register(&mut self, special: Special) -> AnySlot {
        if let Some(&slot) = self.specials.get(&special) {
            return slot;
        }
        let slot = self.new_any(false);
        self.specials.insert(special, slot);
        self.program.specials.push((slot, special));
        slot
    }

    /// `[register+offset]`, `[symbol+offset]` or `[literal]`; also the space of a symbol.
    pub(crate) fn address(&mut self, text: &str) -> Result<(Address, Option<Space>)> {
        let inner = text
            .strip_prefix('[')
            .and_then(|t| t.strip_suffix(']'))
            .ok_or_else(|| format!("{text} is not an address"))?;
        let (name, offset) = split_offset(inner)?;
        if let Some(Register::Value(base)) = self.register(name) {
            self.operands.reads.push(base.line());
            return Ok((Address { base, offset }, None));
        }
        if let Some(value) = parse_int(name) {
            let base = self.constant(Constant::Bits(value as u64), true);
            return Ok((Address { base, offset }, None));
        }
        let symbol = self
            .find_symbol(name)
            .ok_or_else(|| format!("{name} is not defined"))?;
        let base = self.constant(shifted(symbol.place, offset), true);
        Ok((Address { base, offset: 0 }, Some(symbol.space)))
    }

    /// The registers of the instruction that is being decoded, so far.
    pub(crate) fn operands(&self) -> &Operands {
        &self.operands
    }

    /// Appends an instruction.
    pub(crate) fn push(&mut self, op: Op, guard: Option<Guard>, class: Class, cost: Cost) {
        let (shared, global) = op.granules();
        let program = &mut self.program;
        program.shared_granule = program.shared_granule.min(shared.unwrap_or(16));
        program.global_granule = program.global_granule.min(global.unwrap_or(16));
        program.orders_blocks |= op.orders_blocks();
        program.code.push(Instruction {
            class: op.class(class),
            op,
            guard,
            cost,
            operands: std::mem::take(&mut self.operands),
            line: self.line,
            source_line: self.source_line,
            text: self.text.clone(),
        });
    }

    /// Notes that the instruction about to be pushed branches to a label.
    pub(crate) fn branches_to(&mut self, label: &str, entry: usize) {
        let at = self.program.code.len();
        self.scope().fixups.push(Fixup {
            at,
            entry,
            label: label.to_owned(),
        });
    }

    pub(crate) fn table(&self, name: &str) -> Option<Vec<String>> {
        self.visible().find_map(|s| s.tables.get(name)).cloned()
    }
}

fn shifted(place: Constant, by: i64) -> Constant {
    match place {
        Constant::Bits(bits) => Constant::Bits(bits.wrapping_add_signed(by)),
        Constant::Global(index, offset) => Constant::Global(index, offset + by),
        Constant::DynamicShared(offset) => Constant::DynamicShared(offset + by),
    }
}

/// `name+4`, `name+-4` or `name` as a name and an offset.
fn split_offset(text: &str) -> Result<(&str, i64)> {
    match text.split_once('+') {
        Some((name, offset)) => {
            let offset = parse_int(offset).ok_or_else(|| format!("bad offset in {text}"))?;
            Ok((name.trim(), offset as i64))
        }
        None => Ok((text.trim(), 0)),
    }
}

fn special_register(name: &str) -> Option<Special> {
    let (stem, axis) = match name.rsplit_once('.') {
        Some((stem, "x")) => (stem, 0),
        Some((stem, "y")) => (stem, 1),
        Some((stem, "z")) => (stem, 2),
        Some(_) => return None,
        None => {
            return Some(match name {
                "%laneid" => Special::Laneid,
                "%warpid" => Special::Warpid,
                "%nwarpid" => Special::Nwarpid,
                "%lanemask_eq" => Special::LanemaskEq,
                "%lanemask_lt" => Special::LanemaskLt,
                "%lanemask_le" => Special::LanemaskLe,
                "%lanemask_gt" => Special::LanemaskGt,
                "%lanemask_ge" => Special::LanemaskGe,
                "%dynamic_smem_size" => Special::DynamicSharedBytes,
                "%total_smem_size" | "%aggr_smem_size" => Special::TotalSharedBytes,
                "%cluster_ctarank" => Special::ClusterCtarank,
                "%cluster_nctarank" => Special::ClusterNctarank,
                "%smid" | "%gridid" => Special::Zero,
                _ => return None,
            });
        }
    };
    Some(match stem {
        "%tid" => Special::Tid(axis),
        "%ntid" => Special::Ntid(axis),
        "%ctaid" => Special::Ctaid(axis),
        "%nctaid" => Special::Nctaid(axis),
        "%clusterid" => Special::Clusterid(axis),
        "%nclusterid" => Special::Nclusterid(axis),
        "%cluster_ctaid" => Special::ClusterCtaid(axis),
        "%cluster_nctaid" => Special::ClusterNctaid(axis),
        _ => return None,
    })
}
