//! Bytes as a file of tokens: what is taken is JSON, and the labels are those that a plain reading of it gives.

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
    let want = labels(&value, item, most);
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
