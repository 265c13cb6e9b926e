//! Finding devices, and what each offers.

use std::fmt;
use std::sync::Arc;

use cudarc::driver::{CudaContext, result, sys};
use sys::CUdevice_attribute_enum as Attribute;

use super::library::{self, driver_error};
use crate::cuda::limits::DeviceLimits;
use crate::cuda::nvrtc::Version;
use crate::error::{Error, Result};

/// A device, as a list of devices shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// Its number, from 0, in the order of `CUDA_VISIBLE_DEVICES`.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Its memory in bytes.
    pub memory_bytes: usize,
    /// What the choice of kernels depends on.
    pub limits: DeviceLimits,
}

impl DeviceInfo {
    /// Why the kernels cannot run on this device, if they cannot.
    ///
    /// # Errors
    /// [`Error::Architecture`].
    pub fn supported(&self) -> Result<()> {
        if self.limits.arch < DeviceLimits::OLDEST_ARCH {
            return Err(Error::Architecture {
                required: DeviceLimits::OLDEST_ARCH,
                got: self.limits.arch,
            });
        }
        Ok(())
    }
}

impl fmt::Display for DeviceInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DeviceLimits {
            arch,
            multiprocessors,
            l2_bytes,
            ..
        } = self.limits;
        write!(
            f,
            "{}: {} (sm_{arch}, {multiprocessors} multiprocessors, {} MiB memory, {} MiB L2)",
            self.ordinal,
            self.name,
            self.memory_bytes >> 20,
            l2_bytes >> 20,
        )
    }
}

/// The devices of this machine, also those too old for the kernels ([`DeviceInfo::supported`] tells).
///
/// Creates no context and allocates nothing on any device.
///
/// # Errors
/// [`Error::NoDriver`], [`Error::DriverTooOld`], [`Error::NoDevice`], [`Error::Driver`].
pub fn available() -> Result<Vec<DeviceInfo>> {
    library::ready()?;
    let count = result::device::get_count().map_err(driver_error("cuDeviceGetCount"))?;
    if count == 0 {
        return Err(Error::NoDevice);
    }
    (0..count).map(info).collect()
}

/// The newest CUDA version the driver supports.
///
/// # Errors
/// [`Error::NoDriver`], [`Error::DriverTooOld`], [`Error::NoDevice`], [`Error::Driver`].
pub fn driver_version() -> Result<Version> {
    library::version()
}

/// The context of device `ordinal` (its primary context, shared with other libraries of the process).
///
/// Unlike [`CudaContext::new`] this never panics.
///
/// # Errors
/// As [`available`]; [`Error::DeviceOrdinal`] where there is no such device, [`Error::Architecture`] where it is too
/// old for the kernels.
pub fn context(ordinal: usize) -> Result<Arc<CudaContext>> {
    let devices = available()?;
    let info = devices.get(ordinal).ok_or(Error::DeviceOrdinal {
        ordinal,
        available: devices.len(),
    })?;
    info.supported()?;
    CudaContext::new(ordinal).map_err(driver_error("cuDevicePrimaryCtxRetain"))
}

/// What the device of `context` offers.
///
/// # Errors
/// [`Error::Driver`].
pub fn limits(context: &CudaContext) -> Result<DeviceLimits> {
    limits_of(context.cu_device())
}

/// Free and total memory of the device of `context` in bytes.
///
/// # Errors
/// [`Error::Driver`].
pub fn memory(context: &CudaContext) -> Result<(usize, usize)> {
    context
        .mem_get_info()
        .map_err(driver_error("cuMemGetInfo_v2"))
}

fn info(ordinal: i32) -> Result<DeviceInfo> {
    let device = result::device::get(ordinal).map_err(driver_error("cuDeviceGet"))?;
    let name = result::device::get_name(device).map_err(driver_error("cuDeviceGetName"))?;
    // SAFETY: the driver has just given this handle.
    let memory_bytes = unsafe { result::device::total_mem(device) }
        .map_err(driver_error("cuDeviceTotalMem_v2"))?;
    Ok(DeviceInfo {
        ordinal: ordinal as usize,
        name,
        memory_bytes,
        limits: limits_of(device)?,
    })
}

fn limits_of(device: sys::CUdevice) -> Result<DeviceLimits> {
    let attribute = |attribute: Attribute| {
        // SAFETY: the handle came from the driver.
        unsafe { result::device::get_attribute(device, attribute) }
            .map(|value| u32::try_from(value).unwrap_or(0))
            .map_err(driver_error("cuDeviceGetAttribute"))
    };
    let bytes = |which| attribute(which).map(|value| value as usize);
    let arch = 10 * attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?
        + attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    Ok(DeviceLimits {
        arch,
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_bytes_per_block: bytes(
            Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
        )?,
        shared_bytes_per_multiprocessor: bytes(
            Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR,
        )?,
        registers_per_multiprocessor: attribute(
            Attribute::CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR,
        )?,
        threads_per_multiprocessor: attribute(
            Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR,
        )?,
        l2_bytes: bytes(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
        memory_bytes_per_us: memory_bytes_per_us(
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?,
        ),
        clusters: arch >= 90,
    })
}

/// What memory of this clock and bus moves at its peak, in bytes a microsecond: two transfers in each cycle.
fn memory_bytes_per_us(clock_khz: u32, bus_bits: u32) -> u32 {
    let bytes_per_ms = 2 * u64::from(clock_khz) * u64::from(bus_bits / 8);
    u32::try_from(bytes_per_ms / 1000).unwrap_or(u32::MAX)
}
