//! What runs of one plan may differ in: which items they take, the windows of the items, and start rows of each.

use std::ops::Range;

use super::{Problem, check};
use crate::config::{Output, RolloutConfig, StartRows};
use crate::error::{Error, Result};
use crate::layer::HostLayer;
use crate::layout::Window;

impl Problem {
    /// Whether one plan serves both: they differ at most in what a run is given.
    pub(crate) fn has_plan_of(&self, other: &Problem) -> bool {
        let fixed = |config: &RolloutConfig| {
            let mut config = config.clone();
            if let Output::Rows(StartRows::PerItem(rows)) = &mut config.output {
                rows.fill(0);
            }
            config
        };
        self.shape() == other.shape()
            && self.dtype() == other.dtype()
            && self.max_window() == other.max_window()
            && self.queries_keys() == other.queries_keys()
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

    /// Checks that runs are given start rows per item.
    ///
    /// # Errors
    /// [`Error::FixedInput`].
    pub(crate) fn takes_rows(&self) -> Result<()> {
        match &self.config.output {
            Output::Rows(StartRows::PerItem(_)) => Ok(()),
            _ => Err(Error::FixedInput {
                what: "start rows",
                missing: "start rows per item",
            }),
        }
    }

    /// Whether runs are given anything beside their layers.
    #[cfg(feature = "cuda")]
    pub(crate) fn has_run_inputs(&self) -> bool {
        self.takes_windows().is_ok() || self.takes_rows().is_ok()
    }

    /// Whether the start rows of an item follow from its window, and from rows counted from its start.
    #[cfg(feature = "cuda")]
    pub(crate) fn has_start_of_window(&self) -> bool {
        use StartRows::{Last, Mean, PerItem, Rows};
        let output = &self.config.output;
        matches!(output, Output::Rows(Last | Mean | PerItem(_) | Rows(_)))
    }

    /// The start rows that all items share, counted from their windows' starts; else none.
    #[cfg(feature = "cuda")]
    pub(crate) fn shared_rows(&self) -> &[usize] {
        match &self.config.output {
            Output::Rows(StartRows::Rows(rows)) => rows,
            _ => &[],
        }
    }

    /// The start rows of each item, one item after the other, where they differ by item; else none.
    pub(crate) fn item_rows(&self) -> &[usize] {
        match &self.config.output {
            Output::Rows(StartRows::PerItem(rows)) => rows,
            _ => &[],
        }
    }

    /// The same, to be changed.
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

    /// The start rows of each item in the runs to come, counted from its window's start.
    ///
    /// # Errors
    /// [`Error::FixedInput`], [`Error::Count`]. After an error the rows are as they were.
    pub(crate) fn set_rows(&mut self, rows: &[usize]) -> Result<()> {
        self.takes_rows()?;
        check::count(check::ROWS_PER_ITEM, self.item_rows().len(), rows.len())?;
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
        self.check_rows_of(0..self.shape.batch)
    }

    /// The same of `items`, which are items of the problem.
    pub(crate) fn check_rows_of(&self, mut items: Range<usize>) -> Result<()> {
        let rows = self.item_rows();
        if rows.is_empty() {
            return Ok(());
        }
        let count = self.start_rows();
        items.try_for_each(|item| {
            let rows = &rows[item * count..][..count];
            check::rows_inside(item, rows, &self.windows[item], &self.shape)
        })
    }

    /// Checks, as [`check_layers`](Problem::check_layers), what a run of `items`, items of the batch, reads and writes: theirs
    /// alone.
    ///
    /// # Errors
    /// As [`check_layers`](Problem::check_layers); [`Error::Items`].
    pub(crate) fn check_layers_of(
        &self,
        items: &Range<usize>,
        layers: &[HostLayer<'_>],
        out_len: usize,
    ) -> Result<()> {
        self.check_items(items)?;
        let part = self.slice_batch(items.clone());
        part.check_layers(layers, out_len)
    }

    /// Checks that the batch has the items `items`.
    ///
    /// # Errors
    /// [`Error::Items`].
    pub(crate) fn check_items(&self, items: &Range<usize>) -> Result<()> {
        let batch = self.shape.batch;
        match items.start <= items.end && items.end <= batch {
            true => Ok(()),
            false => Err(Error::Items {
                start: items.start,
                end: items.end,
                batch,
            }),
        }
    }
}
