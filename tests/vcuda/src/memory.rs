//! Device allocations and pinned host ranges.

use crate::{
    codes::Code,
    driver::{Driver, Handle},
};
use ptxemu::Memory;
use std::{
    alloc::{Layout, alloc, dealloc},
    collections::BTreeMap,
};

/// Bytes that may be alive on all devices together: they lie in this machine's memory.
const CEILING: u64 = 8 << 30;
/// What fresh pinned memory holds: NaN in every floating-point format.
const POISON: u8 = 0xff;
const PAGE: usize = 4096;

/// The memory of all devices: one address space, as on a real machine.
#[derive(Default)]
pub struct DeviceMemory {
    pub memory: Memory,
    live: BTreeMap<u64, Allocation>,
    total: u64,
    peak: u64,
}

/// One device allocation.
#[derive(Clone, Copy, Debug)]
pub struct Allocation {
    pub context: Handle,
    pub device: usize,
    pub bytes: u64,
    /// Counts allocations from 1; what `CU_POINTER_ATTRIBUTE_BUFFER_ID` answers. 0 is a module's variable.
    pub id: u64,
    /// Whether the stream it was allocated on got there.
    pub ready: bool,
}

impl DeviceMemory {
    /// The allocation that contains the address, and its base.
    pub fn find(&self, address: u64) -> Option<(u64, &Allocation)> {
        let (&base, allocation) = self.live.range(..=address).next_back()?;
        (address - base < allocation.bytes).then_some((base, allocation))
    }

    /// Whether the range lies in one live allocation.
    pub fn contains(&self, address: u64, bytes: u64) -> bool {
        self.find(address)
            .is_some_and(|(base, allocation)| bytes <= allocation.bytes - (address - base))
    }

    /// The same, of one whose allocation has been executed.
    pub fn contains_ready(&self, address: u64, bytes: u64) -> bool {
        self.contains(address, bytes) && self.find(address).is_some_and(|(_, found)| found.ready)
    }

    /// The allocation that starts there may be used from now on.
    pub fn make_ready(&mut self, base: u64) {
        if let Some(allocation) = self.live.get_mut(&base) {
            allocation.ready = true;
        }
    }

    /// Bytes alive on a device.
    pub fn device_bytes(&self, device: usize) -> u64 {
        let own = self
            .live
            .values()
            .filter(|allocation| allocation.device == device);
        own.map(|allocation| allocation.bytes).sum()
    }

    /// Allocations alive, variables of modules not counted.
    pub fn count(&self) -> usize {
        self.live
            .values()
            .filter(|allocation| allocation.id > 0)
            .count()
    }

    /// Bytes alive.
    pub fn total_bytes(&self) -> u64 {
        self.total
    }

    /// Most bytes ever alive at once.
    pub fn peak_bytes(&self) -> u64 {
        self.peak
    }

    /// Frees what the context left behind; says how many allocations that were.
    pub fn forget_context(&mut self, context: Handle) -> usize {
        let before = self.count();
        let left = self
            .live
            .iter()
            .filter(|(_, allocation)| allocation.context == context);
        let left: Vec<u64> = left.map(|(&base, _)| base).collect();
        for base in left {
            self.free(base);
        }
        before - self.count()
    }

    /// Takes a range into the books, given out by the interpreter's memory.
    pub fn adopt(&mut self, base: u64, allocation: Allocation) {
        self.total += allocation.bytes;
        self.peak = self.peak.max(self.total);
        self.live.insert(base, allocation);
    }

    /// Frees the allocation that starts there; false if there is none.
    pub fn free(&mut self, base: u64) -> bool {
        let Some(allocation) = self.live.remove(&base) else {
            return false;
        };
        self.total -= allocation.bytes;
        self.memory.free(base).is_ok()
    }
}

impl Driver {
    /// Allocates device memory for a context, ready or to be made so.
    pub fn allocate(&mut self, context: Handle, bytes: usize, ready: bool) -> Result<u64, Code> {
        self.counters.device_allocations += 1;
        if self.orders.take_allocation() {
            return self.refuse(Code::OutOfMemory, "the allocation fails by order");
        }
        let device = self
            .contexts
            .get(&context)
            .ok_or(Code::InvalidContext)?
            .device;
        if !self.has_room(device, bytes as u64) {
            // Stream-ordered frees may still be queued: a real driver would wait for them.
            self.run_everything(context)?;
        }
        if !self.has_room(device, bytes as u64) {
            let used = self.memory.device_bytes(device);
            let limit = self.devices[device].limit;
            return self.refuse(
                Code::OutOfMemory,
                format!(
                    "{bytes} bytes on top of {used} exceed the {limit} of device {device} \
                     or the stand-in's own ceiling of {CEILING}"
                ),
            );
        }
        let base = self.memory.memory.alloc(bytes);
        let id = self.counters.device_allocations;
        self.memory.memory.label(base, &format!("#{id}"));
        self.memory.adopt(
            base,
            Allocation {
                context,
                device,
                bytes: bytes as u64,
                id,
                ready,
            },
        );
        Ok(base)
    }

    fn has_room(&self, device: usize, bytes: u64) -> bool {
        let fits = |used: u64, limit: u64| used.checked_add(bytes).is_some_and(|sum| sum <= limit);
        fits(self.memory.device_bytes(device), self.devices[device].limit)
            && fits(self.memory.total_bytes(), CEILING)
    }
}

/// Pinned host ranges, allocated here or registered by their owner.
#[derive(Default)]
pub struct HostMemory {
    ranges: BTreeMap<usize, HostRange>,
}

/// One pinned range.
#[derive(Clone, Copy, Debug)]
pub struct HostRange {
    pub context: Handle,
    pub bytes: usize,
    /// Allocated here, rather than registered.
    owned: bool,
}

impl HostMemory {
    /// Allocates pinned memory, page-aligned and poisoned.
    pub fn allocate(&mut self, context: Handle, bytes: usize) -> Result<usize, Code> {
        let layout = layout(bytes).ok_or(Code::OutOfMemory)?;
        // SAFETY: the layout has at least one page.
        let pointer = unsafe { alloc(layout) };
        if pointer.is_null() {
            return Err(Code::OutOfMemory);
        }
        // SAFETY: freshly allocated with that size.
        unsafe { pointer.write_bytes(POISON, layout.size()) };
        let base = pointer.expose_provenance();
        self.ranges.insert(
            base,
            HostRange {
                context,
                bytes,
                owned: true,
            },
        );
        Ok(base)
    }

    /// Frees what [`Self::allocate`] returned; false if it is something else.
    pub fn free(&mut self, base: usize) -> bool {
        match self.ranges.get(&base) {
            Some(&HostRange {
                bytes, owned: true, ..
            }) => {
                self.ranges.remove(&base);
                release(base, bytes);
                true
            }
            _ => false,
        }
    }

    /// Pins memory that belongs to the caller.
    pub fn register(&mut self, context: Handle, base: usize, bytes: usize) -> Result<(), Code> {
        let end = base.checked_add(bytes).ok_or(Code::InvalidValue)?;
        let before = self.ranges.range(..end).next_back();
        if before.is_some_and(|(&start, range)| start + range.bytes > base) {
            return Err(Code::HostMemoryAlreadyRegistered);
        }
        self.ranges.insert(
            base,
            HostRange {
                context,
                bytes,
                owned: false,
            },
        );
        Ok(())
    }

    /// Undoes [`Self::register`]; false if the range was not registered.
    pub fn unregister(&mut self, base: usize) -> bool {
        match self.ranges.get(&base) {
            Some(HostRange { owned: false, .. }) => self.ranges.remove(&base).is_some(),
            _ => false,
        }
    }

    /// The pinned range that contains the address, and its base.
    pub fn find(&self, address: usize) -> Option<(usize, &HostRange)> {
        let (&base, range) = self.ranges.range(..=address).next_back()?;
        (address - base < range.bytes).then_some((base, range))
    }

    /// Whether the whole range is pinned.
    pub fn contains(&self, address: usize, bytes: usize) -> bool {
        self.find(address)
            .is_some_and(|(base, range)| bytes <= range.bytes - (address - base))
    }

    /// Ranges alive.
    pub fn count(&self) -> usize {
        self.ranges.len()
    }

    /// Forgets the context's ranges; says how many there were. Memory allocated here stays mapped: the
    /// process may still hold the pointer.
    pub fn forget_context(&mut self, context: Handle) -> usize {
        let before = self.ranges.len();
        self.ranges.retain(|_, range| range.context != context);
        before - self.ranges.len()
    }
}

fn layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes.max(1).checked_next_multiple_of(PAGE)?, PAGE).ok()
}

fn release(base: usize, bytes: usize) {
    if let Some(layout) = layout(bytes) {
        // SAFETY: `HostMemory::allocate` got the pointer from `alloc` with this layout, and the range
        // was just taken off the books, so this happens once.
        unsafe { dealloc(std::ptr::with_exposed_provenance_mut(base), layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pinned_ranges_are_found_by_any_address_inside() {
        let mut host = HostMemory::default();
        let base = host.allocate(1, 100).unwrap();
        assert_eq!(base % PAGE, 0);
        assert!(host.contains(base, 100) && host.contains(base + 99, 1));
        assert!(!host.contains(base, 101) && !host.contains(base + 100, 1));
        assert!(!host.unregister(base), "allocated, not registered");
        assert!(host.free(base) && !host.free(base));

        let own = [0u8; 64];
        let address = own.as_ptr().addr();
        host.register(1, address, 64).unwrap();
        assert_eq!(
            host.register(1, address + 63, 10),
            Err(Code::HostMemoryAlreadyRegistered)
        );
        assert!(!host.free(address), "registered, not allocated");
        assert_eq!(host.forget_context(2), 0);
        assert_eq!(host.forget_context(1), 1);
        assert_eq!(host.count(), 0);
    }

    #[test]
    fn device_ranges_are_exact_and_freed_once() {
        let mut device = DeviceMemory::default();
        let base = device.memory.alloc(10);
        device.adopt(
            base,
            Allocation {
                context: 7,
                device: 1,
                bytes: 10,
                id: 1,
                ready: true,
            },
        );
        assert!(device.contains(base + 4, 6) && !device.contains(base + 4, 7));
        assert!(!device.contains(base + 10, 1));
        assert_eq!((device.device_bytes(1), device.device_bytes(0)), (10, 0));
        assert!(device.free(base) && !device.free(base));
        assert_eq!((device.total_bytes(), device.peak_bytes()), (0, 10));
    }
}
