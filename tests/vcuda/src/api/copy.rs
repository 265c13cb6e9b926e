//! Copies and fills.

use super::exports;
use crate::{
    codes::Code,
    driver::Driver,
    schedule::Ordering,
    work::{HostBytes, HostRange, Op},
};

exports! {
    /// Host to device. The source may be reused when the call returns; from pageable memory, the bytes
    /// may be on their way still, which only other streams can notice.
    fn cuMemcpyHtoD_v2(driver, dst: u64, src: usize, bytes: usize) {
        driver.forbid_while_capturing("cuMemcpyHtoD")?;
        let stream = driver.stream_of(0)?;
        driver.wait_for_stream(stream)?;
        to_device(driver, dst, src, bytes, stream)?;
        if driver.host.contains(src, bytes) {
            driver.wait_for_stream(stream)?;
        }
        Ok(())
    }

    /// Host to device in stream order.
    fn cuMemcpyHtoDAsync_v2(driver, dst: u64, src: usize, bytes: usize, stream: u64) {
        let stream = driver.stream_of(stream)?;
        to_device(driver, dst, src, bytes, stream)
    }

    /// Device to host, done when the call returns.
    fn cuMemcpyDtoH_v2(driver, dst: usize, src: u64, bytes: usize) {
        driver.forbid_while_capturing("cuMemcpyDtoH")?;
        let stream = driver.stream_of(0)?;
        to_host(driver, dst, src, bytes, stream)?;
        driver.wait_for_stream(stream)
    }

    /// Device to host in stream order; into pageable memory, done when the call returns.
    fn cuMemcpyDtoHAsync_v2(driver, dst: usize, src: u64, bytes: usize, stream: u64) {
        let stream = driver.stream_of(stream)?;
        to_host(driver, dst, src, bytes, stream)?;
        if bytes > 0 && !driver.host.contains(dst, bytes) && driver.stream(stream)?.capture.is_none() {
            driver.wait_for_stream(stream)?;
        }
        Ok(())
    }

    /// Device to device. Not a wait for the host, as documented for this direction.
    fn cuMemcpyDtoD_v2(driver, dst: u64, src: u64, bytes: usize) {
        driver.forbid_while_capturing("cuMemcpyDtoD")?;
        let stream = driver.stream_of(0)?;
        within(driver, dst, src, bytes, stream)
    }

    /// Device to device in stream order.
    fn cuMemcpyDtoDAsync_v2(driver, dst: u64, src: u64, bytes: usize, stream: u64) {
        let stream = driver.stream_of(stream)?;
        within(driver, dst, src, bytes, stream)
    }

    /// Between devices, in stream order.
    fn cuMemcpyPeerAsync(
        driver,
        dst: u64,
        dst_context: u64,
        src: u64,
        src_context: u64,
        bytes: usize,
        stream: u64,
    ) {
        driver.usable(dst_context)?;
        driver.usable(src_context)?;
        let stream = driver.stream_of(stream)?;
        within(driver, dst, src, bytes, stream)
    }

    /// Any direction, told from the pointers; done when the call returns.
    fn cuMemcpy(driver, dst: u64, src: u64, bytes: usize) {
        driver.forbid_while_capturing("cuMemcpy")?;
        let stream = driver.stream_of(0)?;
        any_direction(driver, dst, src, bytes, stream)?;
        driver.wait_for_stream(stream)
    }

    /// Any direction, told from the pointers, in stream order.
    fn cuMemcpyAsync(driver, dst: u64, src: u64, bytes: usize, stream: u64) {
        let stream = driver.stream_of(stream)?;
        any_direction(driver, dst, src, bytes, stream)
    }

    /// Fills with a byte. Like every fill of device memory, asynchronous.
    fn cuMemsetD8_v2(driver, dst: u64, value: u8, count: usize) {
        driver.forbid_while_capturing("cuMemsetD8")?;
        fill(driver, dst, value.into(), 1, count, 0)
    }

    /// Fills with a 16-bit value.
    fn cuMemsetD16_v2(driver, dst: u64, value: u16, count: usize) {
        driver.forbid_while_capturing("cuMemsetD16")?;
        fill(driver, dst, value.into(), 2, count, 0)
    }

    /// Fills with a 32-bit value.
    fn cuMemsetD32_v2(driver, dst: u64, value: u32, count: usize) {
        driver.forbid_while_capturing("cuMemsetD32")?;
        fill(driver, dst, value, 4, count, 0)
    }

    /// Fills with a byte in stream order.
    fn cuMemsetD8Async(driver, dst: u64, value: u8, count: usize, stream: u64) {
        fill(driver, dst, value.into(), 1, count, stream)
    }

    /// Fills with a 16-bit value in stream order.
    fn cuMemsetD16Async(driver, dst: u64, value: u16, count: usize, stream: u64) {
        fill(driver, dst, value.into(), 2, count, stream)
    }

    /// Fills with a 32-bit value in stream order.
    fn cuMemsetD32Async(driver, dst: u64, value: u32, count: usize, stream: u64) {
        fill(driver, dst, value, 4, count, stream)
    }
}

fn to_device(
    driver: &mut Driver,
    dst: u64,
    src: usize,
    bytes: usize,
    stream: u64,
) -> Result<(), Code> {
    driver.counters.copies_to_device += 1;
    check_device(driver, dst, bytes, "copy to device")?;
    let range = host_range(driver, src, bytes)?;
    // A graph reads its source at every replay, pinned or not.
    let captured = driver.stream(stream)?.capture.is_some();
    let src = if range.pinned || captured {
        HostBytes::Late(range)
    } else {
        // SAFETY: the caller of the copy gave that many readable bytes.
        HostBytes::Staged(unsafe { range.as_slice() }.into())
    };
    driver.submit(stream, Op::ToDevice { dst, src })
}

fn to_host(
    driver: &mut Driver,
    dst: usize,
    src: u64,
    bytes: usize,
    stream: u64,
) -> Result<(), Code> {
    driver.counters.copies_to_host += 1;
    check_device(driver, src, bytes, "copy to host")?;
    let dst = host_range(driver, dst, bytes)?;
    driver.submit(stream, Op::ToHost { dst, src })
}

fn within(driver: &mut Driver, dst: u64, src: u64, bytes: usize, stream: u64) -> Result<(), Code> {
    driver.counters.copies_within_device += 1;
    check_device(driver, dst, bytes, "copy to device")?;
    check_device(driver, src, bytes, "copy from device")?;
    driver.submit(stream, Op::Within { dst, src, bytes })
}

fn any_direction(
    driver: &mut Driver,
    dst: u64,
    src: u64,
    bytes: usize,
    stream: u64,
) -> Result<(), Code> {
    match (
        driver.memory.find(dst).is_some(),
        driver.memory.find(src).is_some(),
    ) {
        (true, true) => within(driver, dst, src, bytes, stream),
        (true, false) => to_device(driver, dst, src as usize, bytes, stream),
        (false, true) => {
            to_host(driver, dst as usize, src, bytes, stream)?;
            match driver.schedule.ordering {
                Ordering::Eager => Ok(()),
                _ if driver.host.contains(dst as usize, bytes) => Ok(()),
                _ => driver.wait_for_stream(stream),
            }
        }
        (false, false) => driver.refuse(Code::InvalidValue, "a copy between host addresses"),
    }
}

fn fill(
    driver: &mut Driver,
    dst: u64,
    value: u32,
    width: usize,
    count: usize,
    stream: u64,
) -> Result<(), Code> {
    let stream = driver.stream_of(stream)?;
    driver.counters.fills += 1;
    if !dst.is_multiple_of(width as u64) {
        return driver.refuse(
            Code::InvalidValue,
            format!("fill: {dst:#x} is not a multiple of {width}"),
        );
    }
    let bytes = width.checked_mul(count).ok_or(Code::InvalidValue)?;
    check_device(driver, dst, bytes, "fill")?;
    driver.submit(
        stream,
        Op::Fill {
            dst,
            value,
            width,
            count,
        },
    )
}

fn check_device(driver: &mut Driver, address: u64, bytes: usize, what: &str) -> Result<(), Code> {
    if bytes == 0 || driver.memory.contains(address, bytes as u64) {
        return Ok(());
    }
    let why = match driver.memory.find(address) {
        Some((base, found)) => format!(
            "{what}: {bytes} bytes at {address:#x} overrun the {} bytes at {base:#x}",
            found.bytes
        ),
        None => format!("{what}: {address:#x} is not device memory"),
    };
    driver.refuse(Code::InvalidValue, why)
}

fn host_range(driver: &mut Driver, address: usize, bytes: usize) -> Result<HostRange, Code> {
    if bytes > 0 && (address == 0 || driver.memory.find(address as u64).is_some()) {
        return driver.refuse(
            Code::InvalidValue,
            format!("{address:#x} is not host memory"),
        );
    }
    let pinned = driver.host.contains(address, bytes);
    Ok(HostRange {
        address,
        bytes,
        pinned,
    })
}
