//! Runs of one plan on several streams: each goes behind the last.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream};

use super::buffers::check_stream;
use crate::cuda::driver::{Event, bind, is_capturing};
use crate::error::{Error, Result};

/// Orders runs that share a workspace across streams.
pub(super) struct Handover {
    event: Event,
    last: Option<Arc<CudaStream>>,
}

impl Handover {
    pub fn new(context: &Arc<CudaContext>) -> Result<Self> {
        Ok(Handover {
            event: Event::new(context)?,
            last: None,
        })
    }

    /// Makes `stream` wait for the last run where that was submitted to another stream. Not while it is capturing.
    pub fn follow(&mut self, stream: &Arc<CudaStream>) -> Result<()> {
        match &self.last {
            Some(last) if last.cu_stream() == stream.cu_stream() => return Ok(()),
            Some(last) => self.event.order(last.cu_stream(), stream.cu_stream())?,
            None => {}
        }
        self.last = Some(stream.clone());
        Ok(())
    }
}

/// Binds `context` and brings `stream` behind the last run, to see what that left.
pub(super) fn ready_to_check(
    context: &Arc<CudaContext>,
    stream: &Arc<CudaStream>,
    handover: &mut Handover,
) -> Result<()> {
    bind(context)?;
    check_stream(context, stream)?;
    if is_capturing(stream)? {
        return Err(Error::Capturing {
            what: "a copy of what a run left",
            instead: "check after a replay",
        });
    }
    handover.follow(stream)
}
