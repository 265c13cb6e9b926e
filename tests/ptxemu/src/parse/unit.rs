//! A whole module: target, variables, functions and kernels.

use std::collections::HashMap;

use super::builder::{Builder, Symbol};
use super::function;
use super::source::{Item, ItemKind, items, parse_int, split_list};
use super::types::Space;
use super::variable::Variable;
use crate::config::Dim3;
use crate::fault::ParseError;
use crate::module::{GlobalVar, Kernel, Param};
use crate::op::Constant;

/// A `.func` with a body, decoded anew at every call.
pub(crate) struct Function {
    pub(crate) params: Vec<String>,
    pub(crate) results: Vec<String>,
    pub(crate) body: Vec<Item>,
}

/// What the functions of a module see.
#[derive(Default)]
pub(crate) struct Unit {
    pub(crate) functions: HashMap<String, Function>,
    pub(crate) symbols: HashMap<String, Symbol>,
    /// Module-level variables in shared memory, laid out in every kernel that follows.
    shared: Vec<Variable>,
}

/// Parses a module into its target, kernels and variables.
pub(crate) fn parse_module(
    text: &str,
) -> Result<(String, Vec<Kernel>, Vec<GlobalVar>), ParseError> {
    let mut unit = Unit::default();
    let mut globals = Vec::new();
    let mut entries = Vec::new();
    let mut target = String::new();
    let mut items = items(text)?.into_iter().peekable();
    while let Some(item) = items.next() {
        let error = |message: String| ParseError {
            line: item.line,
            text: item.text().to_owned(),
            message,
        };
        match &item.kind {
            ItemKind::Directive(d) => {
                if let Some(t) = d.strip_prefix(".target") {
                    target = t.split(',').next().unwrap_or_default().trim().to_owned();
                }
            }
            ItemKind::Header(header) => {
                let body = take_body(&mut items).ok_or_else(|| error("no body".to_owned()))?;
                if header.contains(".entry") {
                    entries.push((item.line, header.clone(), body));
                } else {
                    let (name, function) = function_header(header, body).map_err(error)?;
                    unit.functions.insert(name, function);
                }
            }
            ItemKind::Statement(s) => {
                let declares_function = s.contains(".func") || s.contains(".entry");
                if declares_function || s.starts_with(".alias") {
                    continue;
                }
                let variable = Variable::parse(s).map_err(&error)?;
                let variable = variable.ok_or_else(|| error("not modelled".to_owned()))?;
                module_variable(&mut unit, &mut globals, variable).map_err(error)?;
            }
            ItemKind::Label(_) | ItemKind::Open | ItemKind::Close => {
                return Err(error("outside a function".to_owned()));
            }
        }
    }
    let kernels = entries
        .iter()
        .map(|(line, header, body)| entry(&unit, *line, header, body))
        .collect::<Result<_, _>>()?;
    Ok((target, kernels, globals))
}

impl Item {
    pub(crate) fn text(&self) -> &str {
        match &self.kind {
            ItemKind::Directive(t) | ItemKind::Header(t) | ItemKind::Statement(t) => t,
            ItemKind::Label(t) => t,
            ItemKind::Open => "{",
            ItemKind::Close => "}",
        }
    }
}

/// The items between the braces that follow.
fn take_body(items: &mut impl Iterator<Item = Item>) -> Option<Vec<Item>> {
    if items.next()?.kind != ItemKind::Open {
        return None;
    }
    let mut depth = 1;
    let mut body = Vec::new();
    loop {
        let item = items.next()?;
        match item.kind {
            ItemKind::Open => depth += 1,
            ItemKind::Close => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(body);
        }
        body.push(item);
    }
}

fn module_variable(
    unit: &mut Unit,
    globals: &mut Vec<GlobalVar>,
    variable: Variable,
) -> Result<(), String> {
    let place = match variable.space {
        Space::Shared if variable.is_extern => Constant::DynamicShared(0),
        Space::Shared => {
            unit.shared.push(variable);
            return Ok(());
        }
        Space::Global | Space::Const if !variable.is_extern => {
            globals.push(GlobalVar {
                name: variable.name.clone(),
                size: variable.bytes,
                align: variable.align,
                initial: variable.initial,
                is_const: variable.space == Space::Const,
            });
            Constant::Global(globals.len() - 1, 0)
        }
        _ => return Err("a variable of this kind is not modelled".to_owned()),
    };
    unit.symbols.insert(
        variable.name,
        Symbol {
            space: variable.space,
            place,
        },
    );
    Ok(())
}

/// The text inside the first parentheses, and what follows them.
fn parenthesised(text: &str) -> Option<(&str, &str)> {
    let inner = text.trim_start().strip_prefix('(')?;
    inner.split_once(')')
}

/// Names of declared parameters.
fn param_names(list: &str) -> Result<Vec<String>, String> {
    let name = |p: &&str| match Variable::parse(p)? {
        Some(v) if v.space == Space::Param => Ok(v.name),
        _ => Err(format!("parameter {p} is not modelled")),
    };
    split_list(list).iter().map(name).collect()
}

/// `.func (.param .b32 r) name(.param .b32 a)`.
fn function_header(header: &str, body: Vec<Item>) -> Result<(String, Function), String> {
    let (_, rest) = header.split_once(".func").unwrap_or_default();
    let (results, rest) = match parenthesised(rest) {
        Some((results, rest)) => (param_names(results)?, rest),
        None => (Vec::new(), rest),
    };
    let rest = rest.trim_start();
    let end = rest
        .find(|c: char| c == '(' || c.is_whitespace())
        .unwrap_or(rest.len());
    let params = match parenthesised(&rest[end..]) {
        Some((params, _)) => param_names(params)?,
        None => Vec::new(),
    };
    Ok((
        rest[..end].to_owned(),
        Function {
            params,
            results,
            body,
        },
    ))
}

fn entry(unit: &Unit, line: u32, header: &str, body: &[Item]) -> Result<Kernel, ParseError> {
    let header_error = |message: String| ParseError {
        line,
        text: header.to_owned(),
        message,
    };
    let (_, rest) = header.split_once(".entry").unwrap_or_default();
    let rest = rest.trim_start();
    let end = rest
        .find(|c: char| c == '(' || c.is_whitespace())
        .unwrap_or(rest.len());
    let name = rest[..end].to_owned();
    let (list, directives) = parenthesised(&rest[end..]).unwrap_or(("", &rest[end..]));

    let mut builder = Builder::new(&unit.symbols);
    builder.enter_function();
    let mut params = Vec::new();
    let mut param_bytes = 0usize;
    for declaration in split_list(list) {
        let variable = Variable::parse(declaration).map_err(header_error)?;
        let variable = variable.ok_or_else(|| header_error(declaration.to_owned()))?;
        let offset = param_bytes.next_multiple_of(variable.align);
        param_bytes = offset + variable.bytes;
        let place = Constant::Bits(offset as u64);
        builder.symbol(
            &variable.name,
            Symbol {
                space: Space::Param,
                place,
            },
        );
        let (size, align) = (variable.bytes, variable.align);
        params.push(Param {
            name: variable.name,
            offset,
            size,
            align,
        });
    }
    for variable in &unit.shared {
        function::lay_out(&mut builder, variable);
    }
    function::decode_body(&mut builder, unit, body, &mut Vec::new()).map_err(|e| ParseError {
        message: format!("kernel {name}: {}", e.message),
        ..e
    })?;
    builder.leave().map_err(header_error)?;

    let limits = Directives::parse(directives).map_err(header_error)?;
    Ok(Kernel {
        name,
        params,
        param_bytes,
        static_shared_bytes: builder.shared_bytes as u32,
        local_bytes: builder.local_bytes as u32,
        max_threads: limits.max_threads,
        required_threads: limits.required_threads,
        cluster: limits.cluster,
        needs_cluster: limits.explicit_cluster,
        program: builder.program,
    })
}

/// What the directives between a kernel's header and its body say.
#[derive(Default)]
struct Directives {
    max_threads: Option<u32>,
    required_threads: Option<Dim3>,
    cluster: Option<Dim3>,
    explicit_cluster: bool,
}

impl Directives {
    fn parse(text: &str) -> Result<Self, String> {
        let mut out = Self::default();
        for directive in text.split('.').map(str::trim).filter(|d| !d.is_empty()) {
            let (name, values) = directive.split_once(' ').unwrap_or((directive, ""));
            let extent = || -> Result<Dim3, String> {
                let mut values = split_list(values).into_iter().map(parse_int);
                let mut next = || match values.next() {
                    Some(value) => value.ok_or_else(|| format!("bad extent in .{directive}")),
                    None => Ok(1),
                };
                Ok(Dim3::new(next()? as u32, next()? as u32, next()? as u32))
            };
            match name {
                "maxntid" => out.max_threads = Some(extent()?.count() as u32),
                "reqntid" => {
                    out.required_threads = Some(extent()?);
                    out.max_threads = Some(extent()?.count() as u32);
                }
                "reqnctapercluster" => out.cluster = Some(extent()?),
                "explicitcluster" => out.explicit_cluster = true,
                "minnctapersm" | "maxnctapersm" | "maxnreg" | "maxclusterrank" => {}
                "blocksareclusters" => {
                    return Err(".blocksareclusters is not modelled".to_owned());
                }
                _ => return Err(format!(".{name} is not modelled")),
            }
        }
        Ok(out)
    }
}
