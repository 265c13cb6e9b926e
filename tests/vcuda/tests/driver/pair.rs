//! Two streams that share a buffer.

use crate::{
    kernels::{self, Kernel},
    machine,
};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DriverError};
use std::sync::Arc;
use vcuda::client::{Ordering, Vcuda};

/// Two streams on one buffer: `producer` writes 1 into it, `consumer` adds 1 into `out`. Event tracking
/// of cudarc is off, so the test says what depends on what.
pub struct Pair {
    pub producer: Arc<CudaStream>,
    pub consumer: Arc<CudaStream>,
    pub kernel: Kernel,
    pub ones: CudaSlice<f32>,
    pub buffer: CudaSlice<f32>,
    pub out: CudaSlice<f32>,
    pub vcuda: Vcuda,
}

impl Pair {
    pub fn new(ordering: Ordering) -> Result<Pair, DriverError> {
        let vcuda = machine("sm_90");
        let context = CudaContext::new(0)?;
        // SAFETY: the tests order the streams themselves, or fail to on purpose.
        unsafe { context.disable_event_tracking() };
        let (producer, consumer) = (context.new_stream()?, context.new_stream()?);
        let pair = Pair {
            kernel: kernels::add_kernel(&context)?,
            ones: producer.clone_htod(&[1f32; 64])?,
            buffer: producer.alloc_zeros(64)?,
            out: producer.alloc_zeros(64)?,
            vcuda,
            producer,
            consumer,
        };
        context.synchronize()?;
        pair.vcuda.set_ordering(ordering);
        Ok(pair)
    }

    pub fn produce(&mut self) -> Result<(), DriverError> {
        kernels::add(
            &self.producer,
            &self.kernel,
            &mut self.buffer,
            &self.ones,
            4.0,
        )
    }

    pub fn consume(&mut self) -> Result<(), DriverError> {
        kernels::add(
            &self.consumer,
            &self.kernel,
            &mut self.out,
            &self.buffer,
            1.0,
        )
    }

    pub fn result(&self) -> Result<f32, DriverError> {
        Ok(self.consumer.clone_dtoh(&self.out)?[0])
    }
}
