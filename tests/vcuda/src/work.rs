//! The pieces of work a stream holds, and what executing one does.

use crate::{
    capture::Graph,
    codes::Code,
    driver::{Driver, Handle},
    launch::Launch,
    schedule::EventState,
};
use std::{ffi::c_void, sync::Arc, time::Instant};

/// A host function queued by `cuLaunchHostFunc`.
pub type HostFunction = unsafe extern "C" fn(*mut c_void);

/// One piece of work. Cheap to clone, since a graph executes its copy again and again.
#[derive(Clone)]
pub enum Op {
    /// Host bytes to device memory.
    ToDevice { dst: u64, src: HostBytes },
    /// Device memory to host bytes.
    ToHost { dst: HostRange, src: u64 },
    /// Device memory to device memory.
    Within { dst: u64, src: u64, bytes: usize },
    /// A pattern of `width` bytes, `count` times.
    Fill {
        dst: u64,
        value: u32,
        width: usize,
        count: usize,
    },
    /// `cuMemAllocAsync`: the address exists already, and may be used from here on.
    Allocate(u64),
    /// `cuMemFreeAsync`.
    Free(u64),
    /// A kernel.
    Kernel(Arc<Launch>),
    /// All nodes of a graph.
    Graph(Arc<Graph>),
    /// An event.
    Record(Handle),
    /// A call into the host program.
    HostCall { function: HostFunction, data: usize },
    /// Nothing: only its dependencies matter.
    Wait,
}

/// Where host bytes come from.
#[derive(Clone)]
pub enum HostBytes {
    /// Copied when the call was made, as the driver does with pageable memory.
    Staged(Arc<[u8]>),
    /// Read when the work is executed.
    Late(HostRange),
}

/// A range of the host's memory.
#[derive(Clone, Copy)]
pub struct HostRange {
    pub address: usize,
    pub bytes: usize,
    /// The range was pinned when the call was made, and has to be so still.
    pub pinned: bool,
}

impl HostBytes {
    fn len(&self) -> usize {
        match self {
            HostBytes::Staged(bytes) => bytes.len(),
            HostBytes::Late(range) => range.bytes,
        }
    }
}

impl Driver {
    /// Executes one piece of work of a context.
    pub fn execute(&mut self, context: Handle, ticket: u64, op: &Op) -> Result<(), Code> {
        match op {
            Op::Record(event) => {
                if let Some(event) = self.schedule.events.get_mut(event)
                    && let EventState::Recorded {
                        ticket: recorded,
                        at,
                        ..
                    } = &mut event.state
                    && *recorded == ticket
                {
                    *at = Some(Instant::now());
                }
                Ok(())
            }
            Op::Graph(graph) => self.replay(context, graph),
            op => self.execute_node(context, op, false),
        }
    }

    /// Executes what may also be a node of a graph.
    pub fn execute_node(&mut self, context: Handle, op: &Op, from_graph: bool) -> Result<(), Code> {
        match op {
            Op::ToDevice { dst, src } => {
                self.check_device(*dst, src.len(), "copy to device")?;
                let written = match src {
                    HostBytes::Staged(bytes) => self.memory.memory.write(*dst, bytes),
                    HostBytes::Late(range) => {
                        self.check_host(range)?;
                        // SAFETY: the caller of the copy keeps the range alive until the work is done;
                        // a pinned range was just checked to be still pinned.
                        let bytes = unsafe { range.as_slice() };
                        self.memory.memory.write(*dst, bytes)
                    }
                };
                written.or_else(|error| self.refuse(Code::IllegalAddress, error.to_string()))
            }
            Op::ToHost { dst, src } => {
                self.check_device(*src, dst.bytes, "copy to host")?;
                self.check_host(dst)?;
                let mut bytes = vec![0; dst.bytes];
                let read = self.memory.memory.read(*src, &mut bytes);
                read.or_else(|error| self.refuse(Code::IllegalAddress, error.to_string()))?;
                // SAFETY: as above; the caller gave the range for writing.
                unsafe { dst.write(&bytes) };
                Ok(())
            }
            Op::Within { dst, src, bytes } => {
                self.check_device(*dst, *bytes, "copy to device")?;
                self.check_device(*src, *bytes, "copy from device")?;
                let copied = self.memory.memory.copy(*dst, *src, *bytes);
                copied.or_else(|error| self.refuse(Code::IllegalAddress, error.to_string()))
            }
            Op::Fill {
                dst,
                value,
                width,
                count,
            } => {
                self.check_device(*dst, width * count, "fill")?;
                let bytes = value.to_le_bytes()[..*width].repeat(*count);
                let written = self.memory.memory.write(*dst, &bytes);
                written.or_else(|error| self.refuse(Code::IllegalAddress, error.to_string()))
            }
            Op::Allocate(address) => {
                self.memory.make_ready(*address);
                Ok(())
            }
            Op::Free(address) => match self.memory.free(*address) {
                true => Ok(()),
                false => self.refuse(
                    Code::IllegalAddress,
                    format!("{address:#x} was freed twice"),
                ),
            },
            Op::Kernel(launch) => self.run_kernel(context, launch, from_graph),
            Op::HostCall { function, data } => {
                // SAFETY: the caller of `cuLaunchHostFunc` gave a function and the argument made for it.
                unsafe { function(std::ptr::with_exposed_provenance_mut(*data)) };
                Ok(())
            }
            Op::Graph(graph) => self.replay(context, graph),
            Op::Record(_) | Op::Wait => Ok(()),
        }
    }

    /// The range was valid when the work was submitted; it must be so still.
    fn check_device(&mut self, address: u64, bytes: usize, what: &str) -> Result<(), Code> {
        if bytes == 0 || self.memory.contains_ready(address, bytes as u64) {
            return Ok(());
        }
        self.refuse(
            Code::IllegalAddress,
            format!(
                "{what}: {bytes} bytes at {address:#x} were freed before the work ran, or not allocated yet"
            ),
        )
    }

    fn check_host(&mut self, range: &HostRange) -> Result<(), Code> {
        if !range.pinned || self.host.contains(range.address, range.bytes) {
            return Ok(());
        }
        self.refuse(
            Code::IllegalAddress,
            format!(
                "{} pinned bytes at {:#x} were freed or unregistered before the copy was executed",
                range.bytes, range.address
            ),
        )
    }
}

impl HostRange {
    /// # Safety
    /// The range is alive and nothing writes to it meanwhile.
    pub unsafe fn as_slice(&self) -> &[u8] {
        if self.bytes == 0 {
            return &[];
        }
        // SAFETY: the caller's promise.
        unsafe {
            std::slice::from_raw_parts(std::ptr::with_exposed_provenance(self.address), self.bytes)
        }
    }

    /// # Safety
    /// The range is alive, writable, and nothing else touches it meanwhile; `bytes` has its length.
    unsafe fn write(&self, bytes: &[u8]) {
        let dst: *mut u8 = std::ptr::with_exposed_provenance_mut(self.address);
        // SAFETY: the caller's promise.
        unsafe { dst.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }
}
