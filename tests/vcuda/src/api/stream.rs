//! Streams.

use super::{Out, exports};
use crate::{
    codes::Code,
    driver::Driver,
    work::{HostFunction, Op},
};

const NON_BLOCKING: u32 = 1;

exports! {
    /// Makes a stream.
    fn cuStreamCreate(driver, stream: Out<u64>, flags: u32) {
        create(driver, stream, flags, 0)
    }

    /// Makes a stream of a priority, clamped as documented.
    fn cuStreamCreateWithPriority(driver, stream: Out<u64>, flags: u32, priority: i32) {
        create(driver, stream, flags, priority.clamp(-5, 0))
    }

    /// Destroys a stream; what it holds still runs.
    fn cuStreamDestroy_v2(driver, stream: u64) {
        let defaults = |context: &crate::driver::Context| {
            context.legacy == stream || context.per_thread.iter().any(|&(_, own)| own == stream)
        };
        if stream <= 2 || driver.contexts.values().any(defaults) {
            return Err(Code::InvalidHandle);
        }
        driver.destroy_stream(stream)
    }

    /// The host waits for the stream.
    fn cuStreamSynchronize(driver, stream: u64) {
        let stream = driver.stream_of(stream)?;
        driver.forbid_on_capturing(stream, "cuStreamSynchronize")?;
        driver.wait_for_stream(stream)
    }

    /// Whether the stream is done.
    fn cuStreamQuery(driver, stream: u64) {
        let stream = driver.stream_of(stream)?;
        driver.forbid_on_capturing(stream, "cuStreamQuery")?;
        let done = driver.poll_stream(stream);
        let context = driver.stream(stream)?.context;
        driver.usable(context)?;
        if done { Ok(()) } else { Err(Code::NotReady) }
    }

    /// The stream waits for the event.
    fn cuStreamWaitEvent(driver, stream: u64, event: u64, _flags: u32) {
        let stream = driver.stream_of(stream)?;
        driver.wait_event(stream, event)
    }

    /// Calls a host function in stream order. The function must not call the driver: here it is refused.
    fn cuLaunchHostFunc(driver, stream: u64, function: Option<HostFunction>, data: usize) {
        let stream = driver.stream_of(stream)?;
        let function = function.ok_or(Code::InvalidValue)?;
        driver.submit(stream, Op::HostCall { function, data })
    }

    /// The stream's context.
    fn cuStreamGetCtx(driver, stream: u64, context: Out<u64>) {
        let stream = driver.stream_of(stream)?;
        context.set(driver.stream(stream)?.context)
    }

    /// The stream's flags.
    fn cuStreamGetFlags(driver, stream: u64, flags: Out<u32>) {
        let stream = driver.stream_of(stream)?;
        flags.set(if driver.stream(stream)?.blocking { 0 } else { NON_BLOCKING })
    }

    /// The stream's priority.
    fn cuStreamGetPriority(driver, stream: u64, priority: Out<i32>) {
        let stream = driver.stream_of(stream)?;
        priority.set(driver.stream(stream)?.priority)
    }

    /// A number that no other stream ever has.
    fn cuStreamGetId(driver, stream: u64, id: Out<u64>) {
        let stream = driver.stream_of(stream)?;
        id.set(stream)
    }
}

fn create(driver: &mut Driver, stream: Out<u64>, flags: u32, priority: i32) -> Result<(), Code> {
    let context = driver.current()?;
    if flags > NON_BLOCKING {
        return Err(Code::InvalidValue);
    }
    let handle = driver.create_stream(context, flags & NON_BLOCKING == 0, priority);
    stream.set(handle)
}
