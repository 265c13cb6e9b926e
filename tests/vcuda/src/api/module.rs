//! Modules.

use super::{Out, Text, exports};
use crate::{codes::Code, driver::Driver};
use std::{ffi::c_void, fs};

exports! {
    /// Loads a module from PTX text. Machine code is refused: there is nothing here to run it.
    fn cuModuleLoadData(driver, module: Out<u64>, image: Text) {
        let handle = load(driver, image)?;
        module.set(handle)
    }

    /// The same with options, of which the error log is honoured.
    fn cuModuleLoadDataEx(
        driver,
        module: Out<u64>,
        image: Text,
        count: u32,
        options: *const u32,
        values: *const *mut c_void,
    ) {
        let result = load(driver, image);
        if result.is_err() {
            let log = driver.message.clone().unwrap_or_default();
            // SAFETY: the caller promises `count` options and values.
            unsafe { write_log(&log, count as usize, options, values) };
        }
        module.set(result?)
    }

    /// Machine code for several architectures: refused like any machine code.
    fn cuModuleLoadFatBinary(driver, _module: Out<u64>, _image: *const c_void) {
        driver.current()?;
        Err(Code::NoBinaryForGpu)
    }

    /// Loads a module from a file.
    fn cuModuleLoad(driver, module: Out<u64>, path: Text) {
        let context = driver.current()?;
        driver.forbid_while_capturing("cuModuleLoad")?;
        driver.counters.modules_loaded += 1;
        let bytes = fs::read(path.read_utf8()?).map_err(|_| Code::FileNotFound)?;
        let handle = load_bytes(driver, context, &bytes)?;
        module.set(handle)
    }

    /// Unloads a module, after the work that may use it.
    fn cuModuleUnload(driver, module: u64) {
        driver.forbid_while_capturing("cuModuleUnload")?;
        driver.unload_module(module)
    }

    /// The function of that name.
    fn cuModuleGetFunction(driver, function: Out<u64>, module: u64, name: Text) {
        let handle = driver.function_of(module, name.read_utf8()?)?;
        function.set(handle)
    }

    /// Address and size of a variable.
    fn cuModuleGetGlobal_v2(driver, address: Out<u64>, bytes: Out<usize>, module: u64, name: Text) {
        let (base, size) = driver.global_of(module, name.read_utf8()?)?;
        address.set_if_wanted(base);
        bytes.set_if_wanted(size);
        Ok(())
    }
}

/// First bytes of an ELF file (a cubin) and of a fat binary.
const MACHINE_CODE: [[u8; 4]; 2] = [*b"\x7fELF", [0x50, 0xed, 0x55, 0xba]];

fn load(driver: &mut Driver, image: Text) -> Result<u64, Code> {
    let context = driver.current()?;
    driver.forbid_while_capturing("cuModuleLoadData")?;
    driver.counters.modules_loaded += 1;
    // Machine code holds zero bytes early on, so reading it as a string stays inside it.
    let text = image.read()?;
    load_bytes(driver, context, text.to_bytes())
}

fn load_bytes(driver: &mut Driver, context: u64, bytes: &[u8]) -> Result<u64, Code> {
    if MACHINE_CODE.iter().any(|magic| bytes.starts_with(magic)) {
        return driver.refuse(
            Code::NoBinaryForGpu,
            "machine code cannot be interpreted: load the PTX instead",
        );
    }
    let text = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    match std::str::from_utf8(text) {
        Ok(ptx) => driver.load_module(context, ptx),
        Err(_) => driver.refuse(
            Code::InvalidImage,
            "the image is neither text nor machine code",
        ),
    }
}

/// Copies the message to the buffer named by the options, if one is.
///
/// # Safety
/// `options` and `values` hold `count` entries, as `cuModuleLoadDataEx` asks.
unsafe fn write_log(log: &str, count: usize, options: *const u32, values: *const *mut c_void) {
    const ERROR_LOG_BUFFER: u32 = 5;
    const ERROR_LOG_BUFFER_SIZE_BYTES: u32 = 6;
    if count == 0 || options.is_null() || values.is_null() {
        return;
    }
    // SAFETY: the caller's promise.
    let (options, values) = unsafe {
        (
            std::slice::from_raw_parts(options, count),
            std::slice::from_raw_parts(values, count),
        )
    };
    let value = |wanted: u32| {
        options
            .iter()
            .position(|&option| option == wanted)
            .map(|at| values[at])
    };
    if let (Some(buffer), Some(room)) =
        (value(ERROR_LOG_BUFFER), value(ERROR_LOG_BUFFER_SIZE_BYTES))
    {
        let room = room.addr();
        if room > 0 {
            let mut text = log.as_bytes()[..log.len().min(room - 1)].to_vec();
            text.push(0);
            // A null buffer is nothing to write to and no reason to fail otherwise.
            let _ = Out(buffer.cast::<u8>()).set_bytes(&text);
        }
    }
}
