//! What runs of one plan may differ in: the windows of the items, and a start row for each of them.

use super::{Problem, check};
use crate::config::{Output, RolloutConfig, StartRows};
use crate::error::{Error, Result};
use crate::layout::Window;

impl Problem {
    /// Whether one plan serves both: they differ at most in what a run is given.
    pub(crate) fn has_plan_of(&self, other: &Problem) -> bool {
        let fixed = |config: &RolloutConfig| {
            let mut config = config.clone();
            if let Output::Rows(StartRows::PerItem(rows)) = &mut config.output {
                rows.clear();
            }
            config
        };
        self.shape() == other.shape()
            && self.dtype() == other.dtype()
            && self.max_window() == other.max_window()
            && (0..self.shape().layers).all(|layer| self.strides(layer) == other.strides(layer))
            && fixed(self.config()) == fixed(other.config())
    }

    /// The start row of each item, where they differ by item; else none.
    pub(crate) fn item_rows(&self) -> &[usize] {
        match &self.config.output {
            Output::Rows(StartRows::PerItem(rows)) => rows,
            _ => &[],
        }
    }

    /// The start row of each item, to be changed, where they differ by item.
    fn rows_mut(&mut self) -> Option<&mut Vec<usize>> {
        match &mut self.config.output {
            Output::Rows(StartRows::PerItem(rows)) => Some(rows),
            _ => None,
        }
    }

    /// The windows of the runs to come. Start rows that differ by item may follow, and are looked at when all are there.
    ///
    /// # Errors
    /// [`Error::FixedInput`], [`Error::Count`], [`Error::Window`], [`Error::WindowLen`]; [`Error::StartRow`] where a start
    /// row that is the same for all items lies outside one of them. After an error the windows are as they were.
    pub(crate) fn set_windows(&mut self, windows: &[Window]) -> Result<()> {
        if self.max_window().is_none() {
            return Err(Error::FixedInput {
                what: "windows",
                missing: "windows",
            });
        }
        check::windows(windows, &self.shape, self.max_window)?;
        if let Output::Rows(rows @ StartRows::Rows(_)) = &self.config().output {
            check::start_rows(rows, &self.shape, windows)?;
        }
        self.windows.copy_from_slice(windows);
        Ok(())
    }

    /// The start row of each item in the runs to come, counted from its window's start.
    ///
    /// # Errors
    /// [`Error::FixedInput`], [`Error::Count`]. After an error the rows are as they were.
    pub(crate) fn set_rows(&mut self, rows: &[usize]) -> Result<()> {
        let batch = self.shape().batch;
        let Some(per_item) = self.rows_mut() else {
            return Err(Error::FixedInput {
                what: "start rows",
                missing: "a start row per item",
            });
        };
        if rows.len() != batch {
            return Err(Error::Count {
                what: "start rows, one per item",
                expected: batch,
                got: rows.len(),
            });
        }
        per_item.copy_from_slice(rows);
        Ok(())
    }

    /// Puts back the windows and rows of earlier.
    pub(crate) fn restore(&mut self, windows: &[Window], rows: &[usize]) {
        self.windows.copy_from_slice(windows);
        if let Some(per_item) = self.rows_mut() {
            per_item.copy_from_slice(rows);
        }
    }

    /// Checks that start rows that differ by item lie in the windows.
    ///
    /// # Errors
    /// [`Error::StartRow`].
    pub(crate) fn check_rows(&self) -> Result<()> {
        match &self.config().output {
            Output::Rows(rows @ StartRows::PerItem(_)) => {
                check::start_rows(rows, &self.shape, &self.windows)
            }
            _ => Ok(()),
        }
    }
}
