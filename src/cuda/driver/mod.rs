//! The driver: whether it is there, what devices it has, the objects it gives out, and launches.

mod device;
mod foreign;
mod handles;
mod library;
mod submit;

pub use device::{DeviceInfo, available, context, driver_version, limits, memory};
pub(crate) use foreign::{foreign_device, is_capturing};
pub(crate) use handles::{
    DeviceMemory, Event, Function, PinnedMemory, Stream, allocation_error, bind,
};
pub(crate) use library::driver_error;
pub(crate) use library::version;
pub(crate) use submit::launch;
