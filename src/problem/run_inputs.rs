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

    /// Checks that runs are given windows.
    ///
    /// # Errors
    /// [`Error::FixedInput`].
    pub(crate) fn takes_windows(&self) -> Result<()> {
        match self.max_window {
            Some(_) => Ok(()),
            None => Err(Error::FixedInput {
                what: "windows",
                missing: "windows",
            }),
        }
    }

    /// Checks that runs are given a start row per item.
    ///
    /// # Errors
    /// [`Error::FixedInput`].
    pub(crate) fn takes_rows(&self) -> Result<()> {
        match &self.config.output {
            Output::Rows(StartRows::PerItem(_)) => Ok(()),
            _ => Err(Error::FixedInput {
                what: "start rows",
                missing: "a start row per item",
            }),
        }
    }

    /// Whether runs are given anything beside their layers.
    #[cfg(feature = "cuda")]
    pub(crate) fn has_run_inputs(&self) -> bool {
        self.takes_windows().is_ok() || self.takes_rows().is_ok()
    }

    /// Whether the start row of an item follows from its window and its row.
    #[cfg(feature = "cuda")]
    pub(crate) fn has_start_of_window(&self) -> bool {
        use StartRows::{Last, Mean, PerItem};
        matches!(self.config.output, Output::Rows(Last | Mean | PerItem(_)))
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
        self.takes_windows()?;
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
        self.takes_rows()?;
        check::count("start rows, one per item", self.shape.batch, rows.len())?;
        if let Some(per_item) = self.rows_mut() {
            per_item.copy_from_slice(rows);
        }
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
