//! What is known about a pointer.

use super::{Out, exports};
use crate::{codes::Code, driver::Driver};

exports! {
    /// One attribute of a pointer; a pointer unknown to the driver is an error.
    fn cuPointerGetAttribute(driver, data: Out<u8>, attribute: u32, pointer: u64) {
        driver.current()?;
        let facts = facts(driver, pointer).ok_or(Code::InvalidValue)?;
        data.set_bytes(&facts.attribute(attribute)?)
    }

    /// Several attributes of a pointer; one unknown to the driver has zeros.
    fn cuPointerGetAttributes(
        driver,
        count: u32,
        attributes: *const u32,
        data: *const Out<u8>,
        pointer: u64,
    ) {
        driver.current()?;
        if attributes.is_null() || data.is_null() {
            return Err(Code::InvalidValue);
        }
        let facts = facts(driver, pointer).unwrap_or_default();
        for index in 0..count as usize {
            // SAFETY: the caller promises so many attributes and places.
            let (attribute, place) = unsafe { (*attributes.add(index), *data.add(index)) };
            place.set_bytes(&facts.attribute(attribute)?)?;
        }
        Ok(())
    }
}

#[derive(Default)]
struct Facts {
    context: u64,
    memory_type: u32,
    device: i32,
    device_pointer: u64,
    host_pointer: u64,
    base: u64,
    bytes: u64,
    id: u64,
}

fn facts(driver: &Driver, pointer: u64) -> Option<Facts> {
    const HOST: u32 = 1;
    const DEVICE: u32 = 2;
    if let Some((base, found)) = driver.memory.find(pointer) {
        return Some(Facts {
            context: found.context,
            memory_type: DEVICE,
            device: found.device as i32,
            device_pointer: pointer,
            base,
            bytes: found.bytes,
            id: found.id,
            ..Facts::default()
        });
    }
    let (base, found) = driver.host.find(pointer as usize)?;
    let device = driver
        .contexts
        .get(&found.context)
        .map_or(0, |context| context.device as i32);
    Some(Facts {
        context: found.context,
        memory_type: HOST,
        device,
        host_pointer: pointer,
        base: base as u64,
        bytes: found.bytes as u64,
        ..Facts::default()
    })
}

impl Facts {
    /// The attribute's bytes, as wide as `cuda.h` says.
    fn attribute(&self, attribute: u32) -> Result<Vec<u8>, Code> {
        Ok(match attribute {
            1 => self.context.to_ne_bytes().to_vec(),
            2 => self.memory_type.to_ne_bytes().to_vec(),
            3 => self.device_pointer.to_ne_bytes().to_vec(),
            4 => self.host_pointer.to_ne_bytes().to_vec(),
            // Synchronous memory operations, managed memory.
            6 | 8 => 0u32.to_ne_bytes().to_vec(),
            7 => self.id.to_ne_bytes().to_vec(),
            9 => self.device.to_ne_bytes().to_vec(),
            11 => self.base.to_ne_bytes().to_vec(),
            12 => self.bytes.to_ne_bytes().to_vec(),
            13 => u32::from(self.memory_type != 0).to_ne_bytes().to_vec(),
            _ => return Err(Code::NotSupported),
        })
    }
}
