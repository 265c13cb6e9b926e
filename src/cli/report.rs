//! Lines on stdout, and notes on stderr.

use std::fmt::Display;
use std::io::Write;

/// Prints a line. A reader that has gone away is no error: the work is done, and its exit status tells how it went.
pub fn line(line: impl Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Prints a note on stderr: nothing is wrong, but the user may want to know.
pub fn note(note: impl Display) {
    let _ = writeln!(std::io::stderr(), "note: {note}");
}
