//! The labels of one item's tokens, picked out of a JSON file that may hold those of a whole data set.

use std::fmt;
use std::io::{BufReader, Read};
use std::path::Path;

use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::error::{Error, Result};
use crate::tensors::open_regular;

/// Longest file that is read.
const MAX_BYTES: u64 = 1 << 30;

/// Longest label drawn; the rest of a longer token is cut off.
pub const LABEL_CHARS: usize = 32;

/// Reads the labels of item `item` from `[[...], ...]`, `{"tokens": [[...], ...]}`, or, for item 0, a single list.
/// Returns the first `most` of them, and how many there are.
pub fn read(path: &Path, item: usize, most: usize) -> Result<(Vec<String>, usize)> {
    let (file, length) = open_regular(path)?;
    if length > MAX_BYTES {
        let expected = format!("expected at most {MAX_BYTES} bytes of tokens, got {length}");
        return Err(Error::input(path, expected));
    }
    // What grows meanwhile, or says that it is empty and is not, ends there too.
    let reader = BufReader::new(file.take(MAX_BYTES));
    pick(reader, item, most).map_err(|reason| Error::input(path, reason))
}

/// As [`read`], from the JSON itself.
pub fn pick(json: impl Read, item: usize, most: usize) -> Result<(Vec<String>, usize), String> {
    let mut json = serde_json::Deserializer::from_reader(json);
    let found = Pick { item, most }
        .deserialize(&mut json)
        .and_then(|found| json.end().map(|()| found));
    let lists = found.map_err(|error| match error.is_data() {
        true => {
            let expected =
                "expected lists of strings, one list per item, alone or under \"tokens\"";
            format!("{expected}: {error}")
        }
        false => format!("not JSON: {error}"),
    })?;
    let got = lists.count;
    let missing = || format!("expected tokens of item {item}, got {got} items");
    let labels = lists.picked.ok_or_else(missing)?;
    Ok((labels.first, labels.count))
}

/// The labels of one item.
#[derive(Default)]
struct Labels {
    /// As many as were asked for.
    first: Vec<String>,
    count: usize,
}

impl Labels {
    fn push(&mut self, label: Label, most: usize) {
        if self.count < most {
            self.first.push(label.0);
        }
        self.count += 1;
    }
}

/// Lists of labels, of which one was picked.
struct Lists {
    picked: Option<Labels>,
    count: usize,
}

/// Reads what a file holds.
#[derive(Clone, Copy)]
struct Pick {
    item: usize,
    most: usize,
}

impl<'de> DeserializeSeed<'de> for Pick {
    type Value = Lists;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Lists, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Pick {
    type Value = Lists;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Lists, A::Error> {
        let mut lists = None;
        while let Some(key) = map.next_key::<String>()? {
            if key == "tokens" {
                if lists.is_some() {
                    return Err(A::Error::duplicate_field("tokens"));
                }
                lists = Some(map.next_value_seed(self)?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        lists.ok_or_else(|| A::Error::missing_field("tokens"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Lists, A::Error> {
        let mut flat = Labels::default();
        let mut lists = Lists {
            picked: None,
            count: 0,
        };
        let most = self.most;
        loop {
            let element = Element {
                most: (lists.count == self.item).then_some(most),
            };
            match sequence.next_element_seed(element)? {
                None => break,
                Some(Found::Label(label)) => flat.push(label, most),
                Some(Found::List(labels)) => {
                    lists.count += 1;
                    lists.picked = lists.picked.or(labels);
                }
            }
            if flat.count > 0 && lists.count > 0 {
                return Err(A::Error::custom("strings beside lists"));
            }
        }
        if flat.count > 0 {
            lists = Lists {
                picked: (self.item == 0).then_some(flat),
                count: 1,
            };
        }
        Ok(lists)
    }
}

/// Reads a label, or a list of labels of which the first `most` are kept; nothing is, where that is `None`.
struct Element {
    most: Option<usize>,
}

enum Found {
    Label(Label),
    List(Option<Labels>),
}

impl<'de> DeserializeSeed<'de> for Element {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Found, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Element {
    type Value = Found;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a list of strings")
    }

    fn visit_str<E: serde::de::Error>(self, token: &str) -> Result<Found, E> {
        Ok(Found::Label(Label::of(token)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Found, A::Error> {
        let Some(most) = self.most else {
            while sequence.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(Found::List(None));
        };
        let mut labels = Labels::default();
        while let Some(label) = sequence.next_element()? {
            labels.push(label, most);
        }
        Ok(Found::List(Some(labels)))
    }
}

/// A token as it is drawn: one line, of bounded length.
struct Label(String);

impl Label {
    fn of(token: &str) -> Self {
        let printable = |c: char| if c.is_control() { '\u{fffd}' } else { c };
        let mut chars = token.chars().map(printable);
        let mut label: String = chars.by_ref().take(LABEL_CHARS).collect();
        if chars.next().is_some() {
            label.push('…');
        }
        Label(label)
    }
}

impl<'de> Deserialize<'de> for Label {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(LabelVisitor)
    }
}

struct LabelVisitor;

impl Visitor<'_> for LabelVisitor {
    type Value = Label;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: serde::de::Error>(self, token: &str) -> Result<Label, E> {
        Ok(Label::of(token))
    }
}
