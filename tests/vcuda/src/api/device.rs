//! Initialisation, versions, error texts and devices.

use super::{Out, exports};
use crate::codes::Code;
use std::ffi::{CStr, c_char};

exports! {
    /// Starts the driver; without a device that is an error.
    fn cuInit(driver, flags: u32) {
        if flags != 0 {
            return Err(Code::InvalidValue);
        }
        if driver.devices.is_empty() {
            return Err(Code::NoDevice);
        }
        driver.initialised = true;
        Ok(())
    }

    /// The version of the driver; needs no `cuInit`.
    fn cuDriverGetVersion(driver, version: Out<i32>) {
        version.set(driver.version as i32)
    }

    /// The number of devices.
    fn cuDeviceGetCount(driver, count: Out<i32>) {
        if !driver.initialised {
            return Err(Code::NotInitialized);
        }
        count.set(driver.devices.len() as i32)
    }

    /// The device of that ordinal; devices are their ordinals.
    fn cuDeviceGet(driver, device: Out<i32>, ordinal: i32) {
        driver.device(ordinal)?;
        device.set(ordinal)
    }

    /// The device's name, cut to the room there is.
    fn cuDeviceGetName(driver, name: Out<u8>, room: i32, device: i32) {
        let room = usize::try_from(room).ok().filter(|&room| room > 0).ok_or(Code::InvalidValue)?;
        let mut text = driver.device(device)?.model.name.as_bytes().to_vec();
        text.truncate(room - 1);
        text.push(0);
        name.set_bytes(&text)
    }

    /// Sixteen bytes that tell devices apart.
    fn cuDeviceGetUuid(driver, uuid: Out<[u8; 16]>, device: i32) {
        uuid.set(uuid_of(driver.device(device)?.model.sm(), device))
    }

    /// The same under its newer name.
    fn cuDeviceGetUuid_v2(driver, uuid: Out<[u8; 16]>, device: i32) {
        uuid.set(uuid_of(driver.device(device)?.model.sm(), device))
    }

    /// The size of the device's memory.
    fn cuDeviceTotalMem_v2(driver, bytes: Out<usize>, device: i32) {
        bytes.set(driver.device(device)?.model.memory_bytes as usize)
    }

    /// A limit or ability of the device.
    fn cuDeviceGetAttribute(driver, value: Out<i32>, attribute: u32, device: i32) {
        let model = driver.device(device)?.model;
        value.set(model.attribute(attribute).ok_or(Code::InvalidValue)? as i32)
    }

    /// The compute capability; deprecated in favour of attributes, still exported by real drivers.
    fn cuDeviceComputeCapability(driver, major: Out<i32>, minor: Out<i32>, device: i32) {
        let model = driver.device(device)?.model;
        major.set(model.major as i32)?;
        minor.set(model.minor as i32)
    }

    /// A made-up PCI address, one bus per device.
    fn cuDeviceGetPCIBusId(driver, id: Out<u8>, room: i32, device: i32) {
        driver.device(device)?;
        let text = format!("0000:{:02X}:00.0\0", device + 1);
        if room < text.len() as i32 {
            return Err(Code::InvalidValue);
        }
        id.set_bytes(text.as_bytes())
    }
}

fn uuid_of(sm: u32, device: i32) -> [u8; 16] {
    let mut uuid = *b"vcuda-device\0\0\0\0";
    uuid[12..14].copy_from_slice(&(sm as u16).to_be_bytes());
    uuid[14..].copy_from_slice(&(device as u16).to_be_bytes());
    uuid
}

/// The name of a result code. Takes no lock: it may be called from anywhere.
///
/// # Safety
/// `name` is null or valid.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub unsafe extern "C" fn cuGetErrorName(code: u32, name: Out<*const c_char>) -> u32 {
    answer(code, name, c"CUDA_SUCCESS", Code::name)
}

/// The text of a result code. Takes no lock: it may be called from anywhere.
///
/// # Safety
/// `text` is null or valid.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub unsafe extern "C" fn cuGetErrorString(code: u32, text: Out<*const c_char>) -> u32 {
    answer(code, text, c"no error", Code::text)
}

fn answer(
    code: u32,
    out: Out<*const c_char>,
    success: &'static CStr,
    of: impl Fn(Code) -> &'static CStr,
) -> u32 {
    let found = match code {
        0 => Some(success),
        code => Code::from_raw(code).map(of),
    };
    match out.set(found.map_or(std::ptr::null(), CStr::as_ptr)) {
        Ok(()) if found.is_some() => 0,
        _ => Code::InvalidValue as u32,
    }
}
