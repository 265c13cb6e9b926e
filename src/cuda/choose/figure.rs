//! Numbers that remember the weakest origin of what went into them.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, Div, Mul};

/// Where a rate is from, and what an estimate is worth that goes by it: the weakest of its rates'. Weaker ones are less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Nobody measured, predicted or published it for this device: what is gone by instead.
    Assumed(&'static str),
    /// By the maker of the device or by others: where.
    Published(&'static str),
    /// By a model of a multiprocessor that replays what the kernels execute: the file of its device.
    Predicted(&'static str),
    /// On such a device: the file of the measurements.
    Measured(&'static str),
    /// Counted, not estimated. No time is.
    Counted,
}

impl Origin {
    /// What is said about it beside the word for its kind; nothing of counts.
    pub fn source(&self) -> &'static str {
        match self {
            Origin::Assumed(source)
            | Origin::Published(source)
            | Origin::Predicted(source)
            | Origin::Measured(source) => source,
            Origin::Counted => "",
        }
    }
}

/// The word for its kind.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Origin::Assumed(_) => "assumed",
            Origin::Published(_) => "published",
            Origin::Predicted(_) => "predicted",
            Origin::Measured(_) => "measured",
            Origin::Counted => "counted",
        })
    }
}

/// A number with the weakest origin of the rates that went into it. Numbers without one are counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Figure {
    pub value: f64,
    pub origin: Origin,
}

impl Figure {
    pub const ZERO: Figure = Figure::new(0.0, Origin::Counted);

    pub const fn new(value: f64, origin: Origin) -> Self {
        Figure { value, origin }
    }

    pub fn max(self, other: impl Into<Figure>) -> Figure {
        self.with(other, f64::max)
    }

    pub fn min(self, other: impl Into<Figure>) -> Figure {
        self.with(other, f64::min)
    }

    fn with(self, other: impl Into<Figure>, operation: impl Fn(f64, f64) -> f64) -> Figure {
        let other = other.into();
        Figure {
            value: operation(self.value, other.value),
            origin: self.origin.min(other.origin),
        }
    }
}

impl From<f64> for Figure {
    fn from(count: f64) -> Self {
        Figure::new(count, Origin::Counted)
    }
}

impl<T: Into<Figure>> Add<T> for Figure {
    type Output = Figure;

    fn add(self, other: T) -> Figure {
        self.with(other, f64::add)
    }
}

/// What is taken no times is not in the product.
impl<T: Into<Figure>> Mul<T> for Figure {
    type Output = Figure;

    fn mul(self, other: T) -> Figure {
        match self.with(other, f64::mul) {
            Figure { value: 0.0, .. } => Figure::ZERO,
            product => product,
        }
    }
}

impl<T: Into<Figure>> Div<T> for Figure {
    type Output = Figure;

    fn div(self, other: T) -> Figure {
        self.with(other, f64::div)
    }
}

impl Mul<Figure> for f64 {
    type Output = Figure;

    fn mul(self, other: Figure) -> Figure {
        other * self
    }
}

impl Div<Figure> for f64 {
    type Output = Figure;

    fn div(self, other: Figure) -> Figure {
        Figure::from(self) / other
    }
}

impl Sum for Figure {
    fn sum<I: Iterator<Item = Figure>>(figures: I) -> Figure {
        figures.fold(Figure::ZERO, Figure::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEASURED: Figure = Figure::new(2.0, Origin::Measured("a"));
    const PREDICTED: Figure = Figure::new(3.0, Origin::Predicted("b"));
    const PUBLISHED: Figure = Figure::new(5.0, Origin::Published("c"));
    const ASSUMED: Figure = Figure::new(7.0, Origin::Assumed("d"));

    #[test]
    fn the_weakest_origin_goes_through_every_operation() {
        let of = |value, of: Figure| Figure::new(value, of.origin);
        assert_eq!(MEASURED + PREDICTED, of(5.0, PREDICTED));
        assert_eq!(PUBLISHED * PREDICTED, of(15.0, PUBLISHED));
        assert_eq!(MEASURED / ASSUMED, of(2.0 / 7.0, ASSUMED));
        assert_eq!(MEASURED.max(PUBLISHED), of(5.0, PUBLISHED));
        assert_eq!(PUBLISHED.max(MEASURED), of(5.0, PUBLISHED));
        assert_eq!(MEASURED.min(ASSUMED), of(2.0, ASSUMED));
        assert_eq!(
            [MEASURED, PREDICTED].into_iter().sum::<Figure>(),
            of(5.0, PREDICTED)
        );
        let all = [ASSUMED, PUBLISHED, PREDICTED, MEASURED, Figure::ZERO];
        assert!(all.map(|figure| figure.origin).is_sorted());
    }

    #[test]
    fn counts_weaken_nothing_and_nothing_is_of_no_origin() {
        let of = |value| Figure::new(value, MEASURED.origin);
        assert_eq!(4.0 * MEASURED, of(8.0));
        assert_eq!(MEASURED * 4.0, of(8.0));
        assert_eq!(8.0 / MEASURED, of(4.0));
        assert_eq!(MEASURED / 4.0, of(0.5));
        assert_eq!(MEASURED + 1.0, of(3.0));
        assert_eq!(MEASURED + ASSUMED * 0.0, MEASURED);
        assert_eq!(MEASURED + 0.0 * ASSUMED, MEASURED);
    }

    #[test]
    fn origins_say_what_they_are() {
        assert_eq!(format!("{:9}.", MEASURED.origin), "measured .");
        let words = [MEASURED, PREDICTED, PUBLISHED, ASSUMED].map(|figure| {
            let origin = figure.origin;
            format!("{origin} {}", origin.source())
        });
        assert_eq!(
            words,
            ["measured a", "predicted b", "published c", "assumed d"]
        );
        assert_eq!(Origin::Counted.source(), "");
    }
}
