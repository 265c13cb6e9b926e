//! Events.

use super::{Out, exports};
use crate::{
    codes::Code,
    driver::Driver,
    schedule::{Event, EventState},
};

exports! {
    /// Makes an event.
    fn cuEventCreate(driver, event: Out<u64>, flags: u32) {
        const FLAGS: u32 = 0b111;
        const DISABLE_TIMING: u32 = 2;
        const INTERPROCESS: u32 = 4;
        let context = driver.current()?;
        let timing = flags & DISABLE_TIMING == 0;
        if flags & !FLAGS != 0 || (flags & INTERPROCESS != 0 && timing) {
            return Err(Code::InvalidValue);
        }
        let handle = driver.new_handle();
        let entry = Event { context, timing, state: EventState::Unrecorded };
        driver.schedule.events.insert(handle, entry);
        event.set(handle)
    }

    /// Destroys an event; work that waits for it is not affected.
    fn cuEventDestroy_v2(driver, event: u64) {
        driver.event(event)?;
        driver.schedule.events.remove(&event);
        Ok(())
    }

    /// Records what the stream holds.
    fn cuEventRecord(driver, event: u64, stream: u64) {
        let stream = driver.stream_of(stream)?;
        driver.record_event(event, stream)
    }

    /// The same; external events of captures are not modelled.
    fn cuEventRecordWithFlags(driver, event: u64, stream: u64, flags: u32) {
        if flags != 0 {
            return Err(Code::NotSupported);
        }
        let stream = driver.stream_of(stream)?;
        driver.record_event(event, stream)
    }

    /// The host waits for the event.
    fn cuEventSynchronize(driver, event: u64) {
        match recorded(driver, event)? {
            None => Ok(()),
            Some(target) => {
                driver.counters.host_waits += 1;
                driver.run_until(&[target])?;
                driver.event(event).map(drop)
            }
        }
    }

    /// Whether the event has happened.
    fn cuEventQuery(driver, event: u64) {
        let done = match recorded(driver, event)? {
            None => true,
            Some(target) => driver.poll(target),
        };
        driver.event(event)?;
        if done { Ok(()) } else { Err(Code::NotReady) }
    }

    /// Milliseconds between two events, by the host's clock.
    fn cuEventElapsedTime(driver, milliseconds: Out<f32>, start: u64, end: u64) {
        milliseconds.set(elapsed(driver, start, end)?)
    }

    /// The same under its newer name.
    fn cuEventElapsedTime_v2(driver, milliseconds: Out<f32>, start: u64, end: u64) {
        milliseconds.set(elapsed(driver, start, end)?)
    }
}

/// Stream and ticket of the event; `None` if it was never recorded.
fn recorded(driver: &mut Driver, event: u64) -> Result<Option<(u64, u64)>, Code> {
    match driver.event(event)?.state {
        EventState::Unrecorded => Ok(None),
        EventState::Recorded { stream, ticket, .. } => Ok(Some((stream, ticket))),
        EventState::Captured { capture, .. } => {
            driver.break_capture(capture);
            driver.refuse(
                Code::CapturedEvent,
                "the event was last recorded in a capturing stream",
            )
        }
    }
}

fn elapsed(driver: &mut Driver, start: u64, end: u64) -> Result<f32, Code> {
    let mut times = [None; 2];
    for (time, event) in times.iter_mut().zip([start, end]) {
        if !driver.event(event)?.timing {
            return driver.refuse(
                Code::InvalidHandle,
                "an event made without timing has no time",
            );
        }
        recorded(driver, event)?;
        *time = match driver.event(event)?.state {
            EventState::Recorded { at: Some(at), .. } => Some(at),
            EventState::Recorded { at: None, .. } => return Err(Code::NotReady),
            _ => return driver.refuse(Code::InvalidHandle, "the event was never recorded"),
        };
    }
    let [Some(start), Some(end)] = times else {
        return Err(Code::InvalidHandle);
    };
    let forward = end.saturating_duration_since(start).as_secs_f32();
    let backward = start.saturating_duration_since(end).as_secs_f32();
    Ok((forward - backward) * 1e3)
}
