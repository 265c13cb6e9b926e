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
    /// Runs a sample of a launch: blocks that one multiprocessor would get if blocks were dealt out in turn; of a
    /// cooperative launch blocks that run together.
    pub fn take(
        &mut self,
        stream: Handle,
        (module, kernel): (&Module, &Kernel),
        run: &Launch<'_>,
        memory: &Memory,
        options: &Options,
        multiprocessors: u32,
    ) -> Result<(), Fault> {
        // Blocks that wait for each other are those of a column of the grid: some of them, at even distances.
        let blocks: Vec<u64> = if run.cooperative {
            let (column, width) = (u64::from(run.grid.y), u64::from(run.grid.x));
            let sample = column.min(self.sample);
            (0..sample)
                .map(|turn| turn * column / sample * width)
                .collect()
        } else {
            let stride = u64::from(multiprocessors);
            let sample = run.grid.count().div_ceil(stride).min(self.sample);
            (0..sample).map(|turn| turn * stride).collect()
        };
        let mut trace = ptxemu::trace::trace(module, kernel, run, memory, options, &blocks)?;
        trace.stream = stream;
        trace.to_bytes(&mut self.bytes);
        Ok(())
    }
}
