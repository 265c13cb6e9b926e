//! Device memory: separate, bounds-checked, poisoned allocations.

use std::cell::UnsafeCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use crate::fault::MemoryError;

/// Addresses start here, are never reused, and look nothing like a host pointer or a small integer.
pub(crate) const FIRST_ADDRESS: u64 = 0x7f00_0000_0000;
/// Every allocation is aligned to this, as `cuMemAlloc` promises.
const ALIGN: u64 = 256;
/// Unmapped bytes between allocations, so that a small overrun never lands in a neighbour.
const GUARD: u64 = 4096;
/// The poison of bytes that nothing has written: NaN in every floating-point format.
pub(crate) const POISON: u8 = 0xff;

/// Device memory.
///
/// Each allocation is separate: an access past its end is an error even if another allocation lies
/// behind. Fresh bytes are poisoned with 0xFF and known to be uninitialised until something writes
/// them. Addresses are virtual, the same in every run, and never reused, so that a use after free
/// is always seen. `Memory` may be shared between threads.
#[derive(Default)]
pub struct Memory {
    map: RwLock<Map>,
}

#[derive(Default)]
struct Map {
    live: BTreeMap<u64, Arc<Allocation>>,
    freed: BTreeMap<u64, u64>,
    next: u64,
    /// Fresh bytes are plausible numbers.
    plausible: bool,
}

/// One allocation: bytes, and one bit per byte that says whether it was ever written.
pub(crate) struct Allocation {
    pub(crate) base: u64,
    pub(crate) len: u64,
    label: RwLock<String>,
    words: Box<[UnsafeCell<u64>]>,
    initialised: Box<[AtomicU64]>,
}

// SAFETY: `words` is only accessed through the relaxed atomic accessors below.
unsafe impl Sync for Allocation {}

/// Numbers of a plausible allocation, which it repeats in an order of its own; and the most words that are filled.
const PLAUSIBLE_TABLE: usize = 4096;
const PLAUSIBLE_WORDS: usize = 32 << 20;

/// Pairs of f32 spread like entries of fused attention over 200 tokens: sums of four exponentials. Larger allocations
/// are zeros, which take no memory.
fn plausible_words(words: usize) -> Box<[UnsafeCell<u64>]> {
    let mut values = vec![0u64; words].into_boxed_slice();
    if words <= PLAUSIBLE_WORDS {
        let mut random = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = || {
            let mut sum = 0.0f32;
            for _ in 0..4 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                sum -= ((random >> 40) as f32 / 16_777_216.0 + 1e-9).ln();
            }
            u64::from((sum / 800.0).to_bits())
        };
        let table: Vec<u64> = (0..PLAUSIBLE_TABLE)
            .map(|_| next() | next() << 32)
            .collect();
        for (index, value) in values.iter_mut().enumerate() {
            *value = table[(index ^ ((index / PLAUSIBLE_TABLE) * 977)) % PLAUSIBLE_TABLE];
        }
    }
    // SAFETY: `UnsafeCell<u64>` has the layout of `u64`, and nobody else owns the words.
    unsafe { Box::from_raw(Box::into_raw(values) as *mut [UnsafeCell<u64>]) }
}

impl Allocation {
    fn new(base: u64, len: u64, plausible: bool) -> Self {
        let words = len.div_ceil(8) as usize;
        Self {
            base,
            len,
            label: RwLock::default(),
            words: match plausible {
                true => plausible_words(words),
                false => (0..words)
                    .map(|_| UnsafeCell::new(u64::from_ne_bytes([POISON; 8])))
                    .collect(),
            },
            initialised: (0..len.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    pub(crate) fn label(&self) -> String {
        self.label
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn pointer(&self, offset: u64) -> *mut u8 {
        self.words
            .as_ptr()
            .cast::<u8>()
            .cast_mut()
            .wrapping_add(offset as usize)
    }

    /// Reads `bytes` (1, 2, 4 or 8) at an offset that is inside and a multiple of `bytes`.
    #[inline(always)]
    pub(crate) fn load(&self, offset: u64, bytes: u32) -> u64 {
        debug_assert!(
            offset + u64::from(bytes) <= self.len && offset.is_multiple_of(u64::from(bytes))
        );
        let p = self.pointer(offset);
        // SAFETY: inside the allocation and aligned, as asserted; every access is atomic.
        unsafe {
            match bytes {
                1 => u64::from(AtomicU8::from_ptr(p).load(Relaxed)),
                2 => u64::from(AtomicU16::from_ptr(p.cast()).load(Relaxed)),
                4 => u64::from(AtomicU32::from_ptr(p.cast()).load(Relaxed)),
                _ => AtomicU64::from_ptr(p.cast()).load(Relaxed),
            }
        }
    }

    /// Writes the low `bytes` (1, 2, 4 or 8) of `value`; the offset is inside and a multiple.
    #[inline(always)]
    pub(crate) fn store(&self, offset: u64, bytes: u32, value: u64) {
        debug_assert!(
            offset + u64::from(bytes) <= self.len && offset.is_multiple_of(u64::from(bytes))
        );
        let p = self.pointer(offset);
        // SAFETY: inside the allocation and aligned, as asserted; every access is atomic.
        unsafe {
            match bytes {
                1 => AtomicU8::from_ptr(p).store(value as u8, Relaxed),
                2 => AtomicU16::from_ptr(p.cast()).store(value as u16, Relaxed),
                4 => AtomicU32::from_ptr(p.cast()).store(value as u32, Relaxed),
                _ => AtomicU64::from_ptr(p.cast()).store(value, Relaxed),
            }
        }
    }

    /// Offset of the first byte of a range of at most 64 bytes that nothing has written.
    #[inline(always)]
    pub(crate) fn first_uninitialised(&self, offset: u64, bytes: u64) -> Option<u64> {
        let mut at = offset;
        let end = offset + bytes;
        while at < end {
            let n = (end - at).min(64 - at % 64);
            let missing = !(self.initialised[(at / 64) as usize].load(Relaxed) >> (at % 64))
                & (u64::MAX >> (64 - n));
            if missing != 0 {
                return Some(at + u64::from(missing.trailing_zeros()));
            }
            at += n;
        }
        None
    }

    /// Notes that a range was written.
    #[inline(always)]
    pub(crate) fn mark_initialised(&self, offset: u64, bytes: u64) {
        let mut at = offset;
        let end = offset + bytes;
        while at < end {
            let n = (end - at).min(64 - at % 64);
            let bits = (u64::MAX >> (64 - n)) << (at % 64);
            let word = &self.initialised[(at / 64) as usize];
            if word.load(Relaxed) & bits != bits {
                word.fetch_or(bits, Relaxed);
            }
            at += n;
        }
    }

    fn read_bytes(&self, offset: u64, out: &mut [u8]) {
        for (i, byte) in out.iter_mut().enumerate() {
            *byte = self.load(offset + i as u64, 1) as u8;
        }
    }

    fn write_bytes(&self, offset: u64, data: &[u8]) {
        let head = data
            .len()
            .min((offset.next_multiple_of(8) - offset) as usize);
        let (head, body) = data.split_at(head);
        let mut at = offset;
        for &byte in head {
            self.store(at, 1, byte.into());
            at += 1;
        }
        let words = body.chunks_exact(8);
        let tail = words.remainder();
        for word in words {
            self.store(
                at,
                8,
                u64::from_le_bytes(word.try_into().unwrap_or_default()),
            );
            at += 8;
        }
        for &byte in tail {
            self.store(at, 1, byte.into());
            at += 1;
        }
        self.mark_initialised(offset, data.len() as u64);
    }

    /// A copy of contents and initialised bits, for [`Self::restore`].
    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot {
            words: (0..self.words.len() as u64)
                .map(|i| self.word(i).load(Relaxed))
                .collect(),
            initialised: self.initialised.iter().map(|w| w.load(Relaxed)).collect(),
        }
    }

    pub(crate) fn restore(&self, snapshot: &Snapshot) {
        for (i, &word) in snapshot.words.iter().enumerate() {
            self.word(i as u64).store(word, Relaxed);
        }
        for (to, &from) in self.initialised.iter().zip(&snapshot.initialised) {
            to.store(from, Relaxed);
        }
    }

    fn word(&self, index: u64) -> &AtomicU64 {
        // SAFETY: inside `words`, aligned, and every access is atomic.
        unsafe { AtomicU64::from_ptr(self.words[index as usize].get()) }
    }
}

/// Contents of an allocation at one moment.
pub(crate) struct Snapshot {
    words: Vec<u64>,
    initialised: Vec<u64>,
}

impl Memory {
    /// Empty device memory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Allocates `bytes` and returns the address, a multiple of 256. Zero bytes are fine: the
    /// address is then unique, and every access to it an error.
    pub fn alloc(&self, bytes: usize) -> u64 {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        let base = map.next.max(FIRST_ADDRESS);
        let plausible = map.plausible;
        map.next = (base + bytes as u64 + GUARD).next_multiple_of(ALIGN);
        map.live.insert(
            base,
            Arc::new(Allocation::new(base, bytes as u64, plausible)),
        );
        base
    }

    /// From now on fresh allocations hold plausible numbers, spread like entries of attention, instead of poison: what
    /// a sample of blocks may read where the others would have written. Allocations of more than 256 MiB hold zeros.
    pub fn set_plausible(&self, plausible: bool) {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        map.plausible = plausible;
    }

    /// Frees the allocation that starts at `addr`.
    pub fn free(&self, addr: u64) -> Result<(), MemoryError> {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        match map.live.remove(&addr) {
            Some(allocation) => {
                map.freed.insert(addr, allocation.len);
                Ok(())
            }
            None => Err(map.missing(addr)),
        }
    }

    /// Copies `data` to `addr`.
    pub fn write(&self, addr: u64, data: &[u8]) -> Result<(), MemoryError> {
        self.with(addr, data.len(), |a, offset| a.write_bytes(offset, data))
    }

    /// Copies from `addr` to `out`. Bytes that nothing has written read as 0xFF.
    pub fn read(&self, addr: u64, out: &mut [u8]) -> Result<(), MemoryError> {
        self.with(addr, out.len(), |a, offset| a.read_bytes(offset, out))
    }

    /// Copies `bytes` from one address to another; the ranges may overlap. Bytes that were
    /// uninitialised stay so at the destination.
    pub fn copy(&self, dst: u64, src: u64, bytes: usize) -> Result<(), MemoryError> {
        let mut data = vec![0; bytes];
        let mut unset = Vec::new();
        self.with(src, bytes, |a, offset| {
            a.read_bytes(offset, &mut data);
            unset.extend(
                (0..bytes as u64).filter(|i| a.first_uninitialised(offset + i, 1).is_some()),
            );
        })?;
        self.with(dst, bytes, |a, offset| {
            a.write_bytes(offset, &data);
            for i in unset {
                let at = offset + i;
                a.initialised[(at / 64) as usize].fetch_and(!(1 << (at % 64)), Relaxed);
            }
        })
    }

    /// Sets `bytes` at `addr` to `byte`.
    pub fn fill(&self, addr: u64, byte: u8, bytes: usize) -> Result<(), MemoryError> {
        self.write(addr, &vec![byte; bytes])
    }

    /// Base and length of the live allocation that contains `addr`.
    pub fn extent(&self, addr: u64) -> Option<(u64, u64)> {
        let map = self.lock();
        map.find(addr).map(|a| (a.base, a.len))
    }

    /// Gives the allocation that contains `addr` a name for faults and reports; an address that is
    /// not allocated is ignored.
    pub fn label(&self, addr: u64, label: &str) {
        if let Some(a) = self.lock().find(addr) {
            *a.label.write().unwrap_or_else(PoisonError::into_inner) = label.to_owned();
        }
    }

    /// All live allocations by address, and the base and length of the freed ones.
    pub(crate) fn snapshot_map(&self) -> (Vec<Arc<Allocation>>, Vec<(u64, u64)>) {
        let map = self.lock();
        (
            map.live.values().cloned().collect(),
            map.freed.iter().map(|(&b, &l)| (b, l)).collect(),
        )
    }

    fn lock(&self) -> RwLockReadGuard<'_, Map> {
        self.map.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn with(
        &self,
        addr: u64,
        bytes: usize,
        f: impl FnOnce(&Allocation, u64),
    ) -> Result<(), MemoryError> {
        let map = self.lock();
        let a = map.find(addr).ok_or_else(|| map.missing(addr))?;
        let offset = addr - a.base;
        if bytes as u64 > a.len - offset {
            return Err(MemoryError::OutOfBounds {
                addr,
                bytes,
                base: a.base,
                len: a.len,
            });
        }
        f(a, offset);
        Ok(())
    }
}

impl Map {
    fn find(&self, addr: u64) -> Option<&Arc<Allocation>> {
        let (_, a) = self.live.range(..=addr).next_back()?;
        (addr - a.base < a.len || addr == a.base).then_some(a)
    }

    fn missing(&self, addr: u64) -> MemoryError {
        let freed = self.freed.range(..=addr).next_back();
        let freed = freed
            .filter(|&(&base, &len)| addr - base < len.max(1))
            .map(|(&base, _)| base);
        MemoryError::NotAllocated { addr, freed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_aligned_distinct_and_never_reused() {
        let memory = Memory::new();
        let a = memory.alloc(1);
        let b = memory.alloc(0);
        assert_eq!((a % 256, b % 256), (0, 0));
        memory.free(a).unwrap();
        assert_ne!(memory.alloc(1), a);
        assert_eq!(
            memory.free(a),
            Err(MemoryError::NotAllocated {
                addr: a,
                freed: Some(a)
            })
        );
    }

    #[test]
    fn fresh_bytes_are_poisoned_and_bounds_are_exact() {
        let memory = Memory::new();
        let a = memory.alloc(11);
        let mut out = [0; 11];
        memory.read(a, &mut out).unwrap();
        assert_eq!(out, [0xff; 11]);
        memory.write(a + 3, &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
        memory.read(a, &mut out).unwrap();
        assert_eq!(out, [0xff, 0xff, 0xff, 1, 2, 3, 4, 5, 6, 7, 8]);
        let error = MemoryError::OutOfBounds {
            addr: a + 1,
            bytes: 11,
            base: a,
            len: 11,
        };
        assert_eq!(memory.read(a + 1, &mut out), Err(error));
        assert_eq!(memory.extent(a + 10), Some((a, 11)));
        assert_eq!(memory.extent(a + 11), None);
    }

    #[test]
    fn copies_carry_the_uninitialised_bits() {
        let memory = Memory::new();
        let (a, b) = (memory.alloc(4), memory.alloc(4));
        memory.fill(a, 7, 2).unwrap();
        memory.copy(b, a, 4).unwrap();
        let (live, _) = memory.snapshot_map();
        assert_eq!(live[1].first_uninitialised(0, 2), None);
        assert_eq!(live[1].first_uninitialised(0, 4), Some(2));
    }
}
