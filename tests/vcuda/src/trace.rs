//! Traces of launches, for a timing model.

use crate::driver::Handle;
use ptxemu::{Fault, Kernel, Launch, Memory, Module, Options};

/// What was traced, and whether launches are.
#[derive(Default)]
pub struct Traces {
    /// Most blocks of a launch that are run and traced; 0: launches run whole, and are not.
    pub sample: u64,
    /// The traces as bytes, one after the other.
    pub bytes: Vec<u8>,
}

impl Traces {
    /// Runs a sample of a launch: blocks that one multiprocessor would get if blocks were dealt out in turn.
    pub fn take(
        &mut self,
        stream: Handle,
        (module, kernel): (&Module, &Kernel),
        run: &Launch<'_>,
        memory: &Memory,
        options: &Options,
        multiprocessors: u32,
    ) -> Result<(), Fault> {
        let stride = u64::from(multiprocessors);
        let sample = run.grid.count().div_ceil(stride).min(self.sample);
        let blocks: Vec<u64> = (0..sample).map(|turn| turn * stride).collect();
        let mut trace = ptxemu::trace::trace(module, kernel, run, memory, options, &blocks)?;
        trace.stream = stream;
        trace.to_bytes(&mut self.bytes);
        Ok(())
    }
}
