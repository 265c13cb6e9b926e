//! Bytes as a file of tokens: what is taken is JSON, and the labels are those that a plain reading of it gives.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::change;
use crate::common::generate::Random;
use crate::heatmap::labels::{LABEL_CHARS, pick};

/// Picks the labels of the item that the first byte tells, as many as the second tells, from what follows.
pub fn check(bytes: &[u8]) {
    let [item, most, json @ ..] = bytes else {
        return;
    };
    let (item, most) = (usize::from(item % 4), usize::from(most % 8));
    let got = pick(json, item, most);
    // What is skipped need not be representable: numbers, lone surrogates, any depth.
    let Ok(value) = serde_json::from_slice::<Value>(json) else {
        return;
    };
    let twice = serde_json::from_slice::<Keys>(json)
        .is_ok_and(|Keys(keys)| keys.iter().filter(|&key| key == "tokens").count() > 1);
    let want = labels(&value, item, most).filter(|_| !twice);
    assert_eq!(got.ok(), want, "item {item}, at most {most}");
}

fn labels(value: &Value, item: usize, most: usize) -> Option<(Vec<String>, usize)> {
    let lists = match value {
        Value::Object(map) => map.get("tokens")?,
        lists => lists,
    };
    let picked = match &lists.as_array()?[..] {
        flat @ [Value::String(_), ..] => {
            flat.iter().all(Value::is_string).then_some(())?;
            (item == 0).then_some(flat)?
        }
        lists => {
            lists.iter().all(Value::is_array).then_some(())?;
            lists.get(item)?.as_array()?
        }
    };
    let all = picked.iter().map(|label| Some(shown(label.as_str()?)));
    let all = all.collect::<Option<Vec<String>>>()?;
    Some((all.iter().take(most).cloned().collect(), all.len()))
}

/// The keys of a map, of which some may be there twice.
struct Keys(Vec<String>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfMap;

        impl<'de> Visitor<'de> for OfMap {
            type Value = Keys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                let mut keys = Vec::new();
                while let Some((key, _)) = map.next_entry::<String, Value>()? {
                    keys.push(key);
                }
                Ok(Keys(keys))
            }
        }

        deserializer.deserialize_map(OfMap)
    }
}

fn shown(label: &str) -> String {
    let one_line = label.replace(char::is_control, "\u{fffd}");
    match one_line.char_indices().nth(LABEL_CHARS) {
        None => one_line,
        Some((end, _)) => format!("{}…", &one_line[..end]),
    }
}

const PIECES: [&str; 20] = [
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    "\"",
    "[]",
    "[[\"a\"],[\"b\",\"c\"]]",
    "\"tokens\":",
    "\"tokens\":[[\"x\"]],",
    "\"other\":[1,{\"a\":null}],",
    "\"[CLS]\",",
    "\"\\u0000\\ud83d\\ude00\"",
    "\"\\ud800\"",
    "null",
    "true,",
    "-1e999",
    "\"this label is longer than thirty-two characters\",",
    "[[[[[[[[",
];

/// A file of the corpus with some places changed.
pub fn mutate(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut file = corpus[random.below(corpus.len())].clone();
    file[0] = random.bits() as u8;
    file[1] = random.bits() as u8;
    for _ in 0..random.below(4) {
        change(random, &mut file, 2, &PIECES);
    }
    file
}
