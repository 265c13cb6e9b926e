//! A fault on its way from the access that found it to the warp that adds the place.

use crate::fault::FaultKind;

/// What went wrong, before it is known where.
#[derive(Debug)]
pub(crate) struct Stop {
    pub(crate) kind: FaultKind,
    pub(crate) lane: Option<usize>,
    pub(crate) message: String,
}

/// The result of executing something.
pub(crate) type Exec<T> = Result<T, Box<Stop>>;

pub(crate) fn stop<T>(kind: FaultKind, message: impl Into<String>) -> Exec<T> {
    Err(Box::new(Stop {
        kind,
        lane: None,
        message: message.into(),
    }))
}

/// Adds the lane that did it.
pub(crate) trait AtLane<T> {
    fn at_lane(self, lane: usize) -> Exec<T>;
}

impl<T> AtLane<T> for Exec<T> {
    #[inline(always)]
    fn at_lane(self, lane: usize) -> Exec<T> {
        self.map_err(|mut stop| {
            stop.lane.get_or_insert(lane);
            stop
        })
    }
}
