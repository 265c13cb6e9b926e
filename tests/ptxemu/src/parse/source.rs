//! Cuts PTX text into items: directives, labels, statements and braces, each with its line.

use crate::fault::ParseError;

/// A piece of PTX text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) line: u32,
    pub(crate) kind: ItemKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ItemKind {
    /// A directive that ends with its line, such as `.version 8.0` or `.loc 1 2 3`.
    Directive(String),
    /// The text before the body of a function, `.entry` or `.func` included.
    Header(String),
    /// What ends with a semicolon.
    Statement(String),
    /// `name:`.
    Label(String),
    Open,
    Close,
}

/// Directives that no semicolon ends.
const LINE_DIRECTIVES: [&str; 5] = [".version", ".target", ".address_size", ".file", ".loc"];

/// Blanks comments out, keeping line numbers.
fn strip_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('/') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if rest.starts_with("//") {
            rest = &rest[rest.find('\n').unwrap_or(rest.len())..];
        } else if rest.starts_with("/*") {
            let end = rest.find("*/").map_or(rest.len(), |e| e + 2);
            out.extend(rest[..end].chars().filter(|&c| c == '\n'));
            rest = &rest[end..];
        } else {
            out.push('/');
            rest = &rest[1..];
        }
    }
    out.push_str(rest);
    out
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '%')
}

/// Where the next item ends: the offset of `;`, or of the `{` that opens a body.
fn item_end(rest: &str) -> Option<usize> {
    let header = rest.starts_with('.')
        && rest
            .split([';', '{'])
            .next()
            .is_some_and(|h| h.split_whitespace().any(|w| w == ".entry" || w == ".func"));
    let mut depth = 0;
    for (at, c) in rest.char_indices() {
        match c {
            '{' if header && depth == 0 => return Some(at),
            '{' | '(' | '[' => depth += 1,
            '}' | ')' | ']' => depth -= 1,
            ';' if depth <= 0 => return Some(at),
            _ => {}
        }
    }
    None
}

/// Cuts a whole module.
pub(crate) fn items(text: &str) -> Result<Vec<Item>, ParseError> {
    let text = strip_comments(text);
    let text = text.trim_end_matches('\0');
    let mut items = Vec::new();
    let mut line = 1;
    let mut rest = text;
    loop {
        let trimmed = rest.trim_start();
        line += count_lines(&rest[..rest.len() - trimmed.len()]);
        rest = trimmed;
        let Some(first) = rest.chars().next() else {
            return Ok(items);
        };
        let error = |message: &str| ParseError {
            line,
            text: rest.lines().next().unwrap_or_default().trim().to_owned(),
            message: message.to_owned(),
        };
        let mut push = |kind| items.push(Item { line, kind });
        let used = if first == '{' {
            push(ItemKind::Open);
            1
        } else if first == '}' {
            push(ItemKind::Close);
            1
        } else if first == ';' {
            1
        } else if rest
            .split_whitespace()
            .next()
            .is_some_and(|w| LINE_DIRECTIVES.contains(&w))
        {
            let end = rest.find('\n').unwrap_or(rest.len());
            push(ItemKind::Directive(rest[..end].trim().to_owned()));
            end
        } else if rest.starts_with(".section") {
            rest.find('}')
                .ok_or_else(|| error("unterminated section"))?
                + 1
        } else {
            let name = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
            let after = rest[name..].trim_start();
            if name > 0 && after.starts_with(':') && !after.starts_with("::") {
                push(ItemKind::Label(rest[..name].to_owned()));
                rest.len() - after.len() + 1
            } else {
                let end = item_end(rest).ok_or_else(|| error("unterminated statement"))?;
                let body = rest[..end].split_whitespace().collect::<Vec<_>>().join(" ");
                if rest.as_bytes()[end] == b'{' {
                    push(ItemKind::Header(body));
                    end
                } else {
                    push(ItemKind::Statement(body));
                    end + 1
                }
            }
        };
        line += count_lines(&rest[..used]);
        rest = &rest[used..];
    }
}

fn count_lines(text: &str) -> u32 {
    text.matches('\n').count() as u32
}

/// Splits at commas outside brackets.
pub(crate) fn split_list(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0, 0);
    for (at, c) in text.char_indices() {
        match c {
            '{' | '[' | '(' => depth += 1,
            '}' | ']' | ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    let last = text[start..].trim();
    if !last.is_empty() {
        parts.push(last);
    }
    parts
}

/// An integer literal: decimal or hexadecimal, optionally negative or with the suffix `U`.
pub(crate) fn parse_int(text: &str) -> Option<i128> {
    let text = text.trim().trim_end_matches('U');
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let value = match digits.strip_prefix("0x").or(digits.strip_prefix("0X")) {
        Some(hex) => i128::from(u64::from_str_radix(hex, 16).ok()?),
        None => i128::from(digits.parse::<u64>().ok()?),
    };
    Some(if negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_carry_their_lines() {
        let text = ".version 8.0\n// c\n.visible .entry k(.param .u64 a)\n{\nadd.u32 %r1, {%r2,\n \
                    %r3}; $L:\n/* x\n */ ret;\n}\n.global .b8 g[2] = {1, 2};\n";
        let kinds: Vec<_> = items(text)
            .unwrap()
            .into_iter()
            .map(|i| (i.line, i.kind))
            .collect();
        let expected = [
            (1, ItemKind::Directive(".version 8.0".into())),
            (
                3,
                ItemKind::Header(".visible .entry k(.param .u64 a)".into()),
            ),
            (4, ItemKind::Open),
            (5, ItemKind::Statement("add.u32 %r1, {%r2, %r3}".into())),
            (6, ItemKind::Label("$L".into())),
            (8, ItemKind::Statement("ret".into())),
            (9, ItemKind::Close),
            (10, ItemKind::Statement(".global .b8 g[2] = {1, 2}".into())),
        ];
        assert_eq!(kinds, expected);
    }

    #[test]
    fn literals() {
        assert_eq!(parse_int("-0x10"), Some(-16));
        assert_eq!(parse_int("4294967295U"), Some(0xffff_ffff));
        assert_eq!(parse_int("%r1"), None);
    }
}
