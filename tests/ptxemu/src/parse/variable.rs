//! Variable declarations: `.global .align 4 .b8 name[16] = {...}` and their like.

use super::source::{parse_int, split_list};
use super::types::{Space, Type};

/// A declared variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Variable {
    pub(crate) name: String,
    pub(crate) space: Space,
    pub(crate) bytes: usize,
    pub(crate) align: usize,
    pub(crate) is_extern: bool,
    pub(crate) initial: Vec<u8>,
}

impl Variable {
    /// Parses a declaration; `None` if the text declares no variable.
    pub(crate) fn parse(text: &str) -> Result<Option<Self>, String> {
        let (declaration, initialiser) = match text.split_once('=') {
            Some((d, i)) => (d, Some(i.trim())),
            None => (text, None),
        };
        let mut space = None;
        let mut is_extern = false;
        let mut align = None;
        let mut element = None;
        let mut words = declaration.split_whitespace().peekable();
        while let Some(word) = words.next_if(|w| w.starts_with('.')) {
            match word {
                ".global" => space = Some(Space::Global),
                ".const" => space = Some(Space::Const),
                ".shared" => space = Some(Space::Shared),
                ".local" => space = Some(Space::Local),
                ".param" => space = Some(Space::Param),
                ".extern" => is_extern = true,
                ".visible" | ".weak" | ".common" | ".managed" | ".ptr" => {}
                ".align" => align = words.next().and_then(|a| a.parse().ok()),
                _ => match Type::parse(&word[1..]) {
                    Some(ty) => element = Some(ty),
                    None => return Err(format!("{word} is not modelled in a declaration")),
                },
            }
        }
        let Some(space) = space else { return Ok(None) };
        let element = element.ok_or("no type in the declaration")?;
        let name: String = words.collect();
        let (name, count) = extents(&name)?;
        let bytes = count * element.bytes() as usize;
        let initial = match initialiser {
            Some(text) => initial_bytes(text, element, bytes)?,
            None => vec![0; bytes],
        };
        let align = align.unwrap_or(element.bytes() as usize);
        Ok(Some(Self {
            name,
            space,
            bytes,
            align,
            is_extern,
            initial,
        }))
    }
}

/// `name[2][3]` as a name and a number of elements; `name[]` has none.
fn extents(text: &str) -> Result<(String, usize), String> {
    let mut parts = text.split('[');
    let name = parts.next().unwrap_or_default().trim().to_owned();
    let mut count = 1usize;
    for part in parts {
        let extent = part.trim_end().trim_end_matches(']').trim();
        let extent = match extent {
            "" => 0,
            digits => parse_int(digits).ok_or_else(|| format!("bad extent in {text}"))?,
        };
        count = usize::try_from(extent)
            .ok()
            .and_then(|e| count.checked_mul(e))
            .ok_or_else(|| format!("bad extent in {text}"))?;
    }
    Ok((name, count))
}

fn initial_bytes(text: &str, element: Type, bytes: usize) -> Result<Vec<u8>, String> {
    let size = element.bytes() as usize;
    let mut out = Vec::with_capacity(bytes);
    let flat = text.replace(['{', '}'], " ");
    for value in split_list(&flat).iter().filter(|v| !v.is_empty()) {
        let bits = literal(value, element)
            .ok_or_else(|| format!("initial value {value} is not modelled"))?;
        out.extend(&bits.to_le_bytes()[..size]);
    }
    if out.len() > bytes {
        return Err("more initial values than elements".to_owned());
    }
    out.resize(bytes, 0);
    Ok(out)
}

/// Bits of a literal, given the type it is used as.
pub(crate) fn literal(text: &str, ty: Type) -> Option<u64> {
    let text = text.trim();
    let (negative, magnitude) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let hex = |prefix: [&str; 2]| {
        prefix
            .iter()
            .find_map(|p| magnitude.strip_prefix(p))
            .map(|d| u64::from_str_radix(d, 16))
    };
    if let Some(bits) = hex(["0f", "0F"]) {
        let bits = bits.ok()? as u32 ^ u32::from(negative) << 31;
        return Some(match ty {
            Type::F64 => f64::from(f32::from_bits(bits)).to_bits(),
            _ => bits.into(),
        });
    }
    if let Some(bits) = hex(["0d", "0D"]) {
        let bits = bits.ok()? ^ u64::from(negative) << 63;
        return Some(match ty {
            Type::F32 => (f64::from_bits(bits) as f32).to_bits().into(),
            _ => bits,
        });
    }
    if let Some(value) = parse_int(text) {
        return Some(match ty {
            Type::F32 => (value as f32).to_bits().into(),
            Type::F64 => (value as f64).to_bits(),
            _ => value as u64,
        });
    }
    if magnitude.starts_with(|c: char| c.is_ascii_digit()) && magnitude.contains('.') {
        let value: f64 = text.parse().ok()?;
        return match ty {
            Type::F32 => Some((value as f32).to_bits().into()),
            Type::F64 => Some(value.to_bits()),
            _ => None,
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declarations() {
        let v = Variable::parse(".visible .const .align 4 .f32 w[3] = {0f3F800000, 2.0, -1}");
        let v = v.unwrap().unwrap();
        assert_eq!(
            (v.name.as_str(), v.space, v.bytes, v.align),
            ("w", Space::Const, 12, 4)
        );
        let floats: Vec<_> = v
            .initial
            .chunks(4)
            .map(|c| f32::from_le_bytes(c.try_into().unwrap()))
            .collect();
        assert_eq!(floats, [1.0, 2.0, -1.0]);
        let v = Variable::parse(".extern .shared .align 16 .b8 smem[]")
            .unwrap()
            .unwrap();
        assert_eq!((v.bytes, v.align, v.is_extern), (0, 16, true));
        assert_eq!(
            Variable::parse(".pragma \"nounroll\"").unwrap_err(),
            ".pragma is not modelled in a declaration"
        );
    }

    #[test]
    fn short_initialisers_are_padded_with_zeros() {
        let v = Variable::parse(".global .u16 g[2][2] = {{1}, {2}}")
            .unwrap()
            .unwrap();
        assert_eq!(v.initial, [1, 0, 2, 0, 0, 0, 0, 0]);
    }
}
