//! Function bodies: declarations, labels, instructions, and calls, which are inlined.

use super::builder::{Builder, Symbol};
use super::source::{Item, ItemKind, split_list};
use super::types::{Space, Type};
use super::unit::Unit;
use super::variable::Variable;
use crate::decode::{self, Statement};
use crate::fault::ParseError;
use crate::op::{Class, Constant, Op};
use crate::trace::Cost;

/// Deepest nesting of calls; recursion cannot be inlined.
const MAX_CALL_DEPTH: usize = 24;

/// Gives a variable of a kernel its place in shared or local memory.
pub(crate) fn lay_out(builder: &mut Builder<'_>, variable: &Variable) {
    let (space, place) = match variable.space {
        Space::Shared if variable.is_extern => (Space::Shared, Constant::DynamicShared(0)),
        Space::Shared => {
            let offset = builder.shared_bytes.next_multiple_of(variable.align);
            builder.shared_bytes = offset + variable.bytes;
            (Space::Shared, Constant::Bits(offset as u64))
        }
        // Parameters of calls live in local memory as well.
        _ => {
            let offset = builder.local_bytes.next_multiple_of(variable.align);
            builder.local_bytes = offset + variable.bytes;
            (Space::Local, Constant::Bits(offset as u64))
        }
    };
    builder.symbol(&variable.name, Symbol { space, place });
}

/// Decodes the items of a body. `calls` names the functions being inlined.
pub(crate) fn decode_body(
    builder: &mut Builder<'_>,
    unit: &Unit,
    body: &[Item],
    calls: &mut Vec<String>,
) -> Result<(), ParseError> {
    let returns = format!("return from call {}", calls.len());
    let mut pending_label: Option<&str> = None;
    for item in body {
        let error = |message: String| ParseError {
            line: item.line,
            text: item.text().to_owned(),
            message,
        };
        builder.line = item.line;
        match &item.kind {
            ItemKind::Open => builder.enter_block(),
            ItemKind::Close => builder.leave().map_err(error)?,
            ItemKind::Label(name) => {
                builder.label(name);
                pending_label = Some(name);
                continue;
            }
            ItemKind::Directive(d) => {
                if let Some(loc) = d.strip_prefix(".loc") {
                    let line = loc.split_whitespace().nth(1).and_then(|l| l.parse().ok());
                    builder.source_line = line.unwrap_or(0);
                }
            }
            ItemKind::Header(_) => return Err(error("a function inside a function".to_owned())),
            ItemKind::Statement(s) => {
                builder.text.clone_from(s);
                if let Some(list) = s.strip_prefix(".branchtargets") {
                    let label = pending_label.ok_or_else(|| error("no label".to_owned()))?;
                    let targets = split_list(list).into_iter().map(str::to_owned).collect();
                    builder.branch_table(label, targets);
                } else {
                    statement(builder, unit, s, calls, &returns)?.map_err(error)?;
                }
            }
        }
        pending_label = None;
    }
    builder.text = "(end of the body)".to_owned();
    if calls.is_empty() {
        builder.push(Op::Exit, None, Class::Control, Cost::Exit);
    } else {
        builder.label(&returns);
    }
    Ok(())
}

/// Decodes one statement. The outer error comes from inside a called function.
fn statement(
    builder: &mut Builder<'_>,
    unit: &Unit,
    text: &str,
    calls: &mut Vec<String>,
    returns: &str,
) -> Result<Result<(), String>, ParseError> {
    if text.starts_with('.') {
        return Ok(declaration(builder, text));
    }
    let statement = match Statement::parse(text) {
        Ok(statement) => statement,
        Err(message) => return Ok(Err(message)),
    };
    match statement.opcode {
        "call" => call(builder, unit, &statement, calls),
        "ret" if !calls.is_empty() => {
            let guard = statement.guard.map(|g| builder.guard(g)).transpose();
            Ok(guard.map(|guard| {
                builder.branches_to(returns, 0);
                builder.push(Op::Branch(0), guard, Class::Control, Cost::Branch);
            }))
        }
        _ => Ok(decode::instruction(builder, statement)),
    }
}

fn declaration(builder: &mut Builder<'_>, text: &str) -> Result<(), String> {
    if text.starts_with(".pragma") || text.starts_with(".callprototype") {
        return Ok(());
    }
    if let Some(rest) = text.strip_prefix(".reg") {
        let (ty, names) = rest.trim().split_once(' ').ok_or("no name")?;
        let ty = Type::parse(ty.trim_start_matches('.'))
            .ok_or_else(|| format!("registers of type {ty} are not modelled"))?;
        return builder.declare_registers(ty, &split_list(names));
    }
    let variable = Variable::parse(text)?.ok_or("not modelled")?;
    if !matches!(variable.space, Space::Shared | Space::Local | Space::Param) {
        return Err("a variable of this space inside a function is not modelled".to_owned());
    }
    lay_out(builder, &variable);
    Ok(())
}

/// Inlines `call (results), name, (arguments)`: parameters are bound to the caller's variables.
fn call(
    builder: &mut Builder<'_>,
    unit: &Unit,
    statement: &Statement<'_>,
    calls: &mut Vec<String>,
) -> Result<Result<(), String>, ParseError> {
    if statement.guard.is_some() {
        return Ok(Err("a predicated call is not modelled".to_owned()));
    }
    let mut operands = statement.operands.iter();
    let mut next = || operands.next().copied().unwrap_or_default();
    let strip = |list: &str| {
        list.trim_start_matches('(')
            .trim_end_matches(')')
            .to_owned()
    };
    let first = next();
    let (results, name) = if first.starts_with('(') {
        (strip(first), next())
    } else {
        (String::new(), first)
    };
    let arguments = strip(next());
    let Some(function) = unit.functions.get(name) else {
        return Ok(Err(format!(
            "a call of {name}, which has no body here, is not modelled"
        )));
    };
    if calls.len() >= MAX_CALL_DEPTH || calls.iter().any(|c| c == name) {
        return Ok(Err(format!("recursion through {name} is not modelled")));
    }
    let actual: Vec<&str> = split_list(&results)
        .into_iter()
        .chain(split_list(&arguments))
        .collect();
    let formal: Vec<&String> = function.results.iter().chain(&function.params).collect();
    if actual.len() != formal.len() {
        return Ok(Err(format!("{name} takes {} parameters", formal.len())));
    }
    let bound: Option<Vec<Symbol>> = actual.iter().map(|a| builder.find_symbol(a)).collect();
    let Some(bound) = bound else {
        return Ok(Err(
            "an argument that is not a .param variable is not modelled".to_owned(),
        ));
    };
    let line = builder.line;
    builder.enter_function();
    for (name, symbol) in formal.into_iter().zip(bound) {
        builder.symbol(name, symbol);
    }
    calls.push(name.to_owned());
    decode_body(builder, unit, &function.body, calls)?;
    calls.pop();
    builder.line = line;
    Ok(builder.leave())
}
