//! Text that came from a file or a path, made fit for a terminal and a log.

/// Characters of a name or a value.
const MOST: usize = 200;

/// Characters of a sentence, which may quote several.
const MOST_OF_SENTENCE: usize = 1000;

/// A name or value on one line and at most 200 characters long: what does not print (control characters, marks that
/// turn the direction of text, line separators) is escaped as in Rust's strings, and the rest is cut off.
pub fn shown(text: &str) -> String {
    within(text, MOST)
}

/// As [`shown`], a sentence.
pub fn shown_sentence(text: &str) -> String {
    within(text, MOST_OF_SENTENCE)
}

fn within(text: &str, most: usize) -> String {
    let mut out = String::new();
    for (index, c) in text.chars().enumerate() {
        if index == most {
            out.push('…');
            break;
        }
        match c {
            // They print, and messages are full of them.
            '\'' | '"' | '\\' => out.push(c),
            c => out.extend(c.escape_debug()),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_print_is_escaped() {
        for (text, expected) in [
            ("layer.0", "layer.0"),
            (
                r#"größe "注意" C:\file it's"#,
                r#"größe "注意" C:\file it's"#,
            ),
            ("a\nerror: fake\r", r"a\nerror: fake\r"),
            ("\x1b]0;title\x07", r"\u{1b}]0;title\u{7}"),
            ("\u{202e}gnp\u{2028}", r"\u{202e}gnp\u{2028}"),
        ] {
            assert_eq!(shown(text), expected);
        }
    }

    #[test]
    fn long_text_is_cut() {
        let whole = "é".repeat(MOST);
        assert_eq!(shown(&whole), whole);
        assert_eq!(shown(&"é".repeat(3 << 20)), whole + "…");
    }
}
