//! A progress bar for work that turns out to be long.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Work shorter than this shows no bar.
const QUIET: Duration = Duration::from_millis(500);

/// Counts bytes of attention maps; draws on stderr where that is a terminal.
pub struct MapProgress {
    started: Instant,
    total: u64,
    done: u64,
    bar: Option<ProgressBar>,
}

impl MapProgress {
    /// Starts counting towards `total` bytes.
    pub fn start(total: u64) -> Self {
        MapProgress {
            started: Instant::now(),
            total,
            done: 0,
            bar: None,
        }
    }

    /// Adds `bytes` done.
    pub fn add(&mut self, bytes: u64) {
        self.done += bytes;
        let is_long = self.started.elapsed() > QUIET && self.done < self.total;
        if self.bar.is_none() && is_long && std::io::stderr().is_terminal() {
            let style = ProgressStyle::with_template(
                "{bar:40} {decimal_bytes} of {decimal_total_bytes} of maps, {eta} left",
            );
            let bar = ProgressBar::new(self.total).with_elapsed(self.started.elapsed());
            self.bar = Some(bar.with_style(style.expect("the template is valid")));
        }
        if let Some(bar) = &self.bar {
            bar.set_position(self.done);
        }
    }
}

impl Drop for MapProgress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
