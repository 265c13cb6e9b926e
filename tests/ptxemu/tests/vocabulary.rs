//! What the interpreter knows is tested: every opcode and modifier that a decoder takes, and every kind of fault, stands
//! in a test.

use std::fs;
use std::path::Path;

/// The texts of all Rust files below a directory of this package.
fn sources(directory: &str) -> Vec<String> {
    let mut texts = Vec::new();
    let mut directories = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(directory)];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("a directory of this package") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                texts.push(fs::read_to_string(&path).expect("UTF-8"));
            }
        }
    }
    texts
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == ':'
}

/// Asserts that each word stands in a test, as a whole or, if it ends in `::`, as a beginning.
fn assert_tested(words: impl Iterator<Item = String>) {
    let tests = sources("tests");
    let tested: Vec<&str> = tests
        .iter()
        .flat_map(|t| t.split(|c| !is_word(c)))
        .collect();
    let mut count = 0;
    let missing: Vec<String> = words
        .inspect(|_| count += 1)
        .filter(|word| {
            let stands = |tested: &&str| match word.ends_with("::") {
                true => tested.starts_with(word.as_str()),
                false => tested == word,
            };
            !tested.iter().any(stands)
        })
        .collect();
    assert!(count > 0, "no words were found");
    assert!(missing.is_empty(), "in no test: {missing:?}");
}

#[test]
fn of_the_decoders() {
    let decoders = sources("src/decode");
    // Text between quotes; messages have spaces.
    let quoted = decoders
        .iter()
        .flat_map(|text| text.split('"').skip(1).step_by(2));
    assert_tested(
        quoted
            .filter(|word| !word.is_empty() && word.chars().all(is_word))
            .map(str::to_owned),
    );
}

#[test]
fn of_the_faults() {
    let text = sources("src")
        .into_iter()
        .find(|text| text.contains("pub enum FaultKind"));
    let text = text.expect("FaultKind is defined");
    let (_, body) = text.split_once("pub enum FaultKind {").expect("an enum");
    let (body, _) = body.split_once("\n}").expect("its end");
    let lines = body.lines().map(str::trim);
    assert_tested(
        lines
            .filter(|line| !line.starts_with("//") && !line.is_empty())
            .map(|line| line.trim_end_matches(',').to_owned()),
    );
}
