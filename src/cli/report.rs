//! Lines on stdout, and notes on stderr.

use std::fmt::Display;
use std::io::{ErrorKind, Write};

use crate::error::{Error, Result};

/// Prints a line. A reader that has gone away is no error: the work is done, and its exit status tells how it went. A
/// full disk is one: whoever has stdout sent to a file counts on it.
pub fn line(line: impl Display) -> Result<()> {
    match writeln!(std::io::stdout(), "{line}") {
        Err(source) if source.kind() != ErrorKind::BrokenPipe => Err(Error::Stdout { source }),
        _ => Ok(()),
    }
}

/// Prints a note on stderr: nothing is wrong, but the user may want to know.
pub fn note(note: impl Display) {
    let _ = writeln!(std::io::stderr(), "note: {note}");
}
