//! One instruction statement, cut into guard, opcode, modifiers and operands.

use crate::parse::{Type, split_list};

/// A statement such as `@!%p1 add.rn.ftz.f32 %f1, %f2, %f3`.
pub(crate) struct Statement<'a> {
    pub(crate) guard: Option<&'a str>,
    pub(crate) opcode: &'a str,
    modifiers: Vec<(&'a str, bool)>,
    pub(crate) operands: Vec<&'a str>,
}

impl<'a> Statement<'a> {
    pub(crate) fn parse(text: &'a str) -> Result<Self, String> {
        let (guard, rest) = match text.strip_prefix('@') {
            Some(rest) => {
                let (guard, rest) = rest.trim_start().split_once(' ').ok_or("no instruction")?;
                (Some(guard.trim()), rest.trim_start())
            }
            None => (None, text),
        };
        let end = rest.find(|c: char| c.is_whitespace()).unwrap_or(rest.len());
        let mut parts = rest[..end].split('.');
        let opcode = parts.next().unwrap_or_default();
        let operands = split_list(&rest[end..]);
        let modifiers = parts.map(|m| (m, false)).collect();
        Ok(Self {
            guard,
            opcode,
            modifiers,
            operands,
        })
    }

    /// Takes a modifier, if it is there.
    pub(crate) fn take(&mut self, name: &str) -> bool {
        match self
            .modifiers
            .iter_mut()
            .find(|(m, used)| *m == name && !used)
        {
            Some((_, used)) => {
                *used = true;
                true
            }
            None => false,
        }
    }

    /// Takes the first of several alternatives that is there.
    pub(crate) fn take_one<T: Copy>(&mut self, alternatives: &[(&str, T)]) -> Option<T> {
        alternatives
            .iter()
            .find(|(name, _)| self.take(name))
            .map(|&(_, value)| value)
    }

    /// Takes all modifiers that start with a prefix.
    pub(crate) fn take_prefixed(&mut self, prefix: &str) {
        for (modifier, used) in &mut self.modifiers {
            *used |= modifier.starts_with(prefix);
        }
    }

    /// Takes the next type suffix.
    pub(crate) fn take_type(&mut self) -> Result<Type, String> {
        let found = self
            .modifiers
            .iter_mut()
            .find_map(|(m, used)| match Type::parse(m) {
                Some(ty) if !*used => {
                    *used = true;
                    Some(ty)
                }
                _ => None,
            });
        found.ok_or_else(|| "no type, or one that is not modelled".to_owned())
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.modifiers.iter().any(|(m, _)| *m == name)
    }

    pub(crate) fn has_float_type(&self) -> bool {
        self.modifiers.iter().any(|(m, _)| {
            Type::parse(m).is_some_and(|t| t.is_float() || matches!(t, Type::F16x2 | Type::Bf16x2))
        })
    }

    pub(crate) fn unused_modifiers(&self) -> Vec<&'a str> {
        self.modifiers
            .iter()
            .filter(|(_, used)| !used)
            .map(|(m, _)| *m)
            .collect()
    }
}
