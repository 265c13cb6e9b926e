//! The threads of a plan and what they share: a team with a barrier, and buffers that members write in parts.
//!
//! One rule makes every use of [`Shared`] sound: between two barriers an element is written by one member and touched by
//! no other, or only read. Who writes what follows from [`Member::part`] of rows or panels, from tiles, from blocks, or from
//! an item that was handed to one member alone; each `SAFETY` names which, and the barrier that ends it.

use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use crate::cpu::memory::Parts;
use crate::error::{Error, Result};

/// Turns of spinning before a waiting member sleeps, where every member has a core: some tens of microseconds, in which
/// most waits end.
const SPINS: u32 = 4096;

/// A persistent team of threads; the calling thread is member 0.
pub(crate) struct Team {
    /// The other members; `None` where the caller is alone.
    pool: Option<rayon::ThreadPool>,
    members: usize,
    /// Turns of spinning before a waiting member sleeps.
    spins: u32,
}

impl Team {
    /// Starts a team of `threads`, or of one per available core.
    pub fn new(threads: Option<NonZeroUsize>) -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let members = threads.map_or(cores, NonZeroUsize::get);
        let most = rayon::max_num_threads();
        let pool = match members {
            1 => None,
            _ if members > most => {
                return Err(Error::Threads {
                    threads: members,
                    reason: format!("no more than {most} are supported"),
                });
            }
            _ => Some(
                rayon::ThreadPoolBuilder::new()
                    .num_threads(members - 1)
                    .thread_name(|i| format!("rollout-{}", i + 1))
                    .build()
                    .map_err(|error| Error::Threads {
                        threads: members,
                        reason: error.to_string(),
                    })?,
            ),
        };
        // Of more members than cores, who spins keeps from its core whom it waits for.
        let spins = if members > cores { 0 } else { SPINS };
        Ok(Team {
            pool,
            members,
            spins,
        })
    }

    /// Number of members, the caller included.
    pub fn members(&self) -> usize {
        self.members
    }

    /// Runs `work` once on every member and returns when all are done.
    pub fn run(&self, work: impl Fn(Member<'_>) + Sync) {
        let barrier = Barrier::new(self.members, self.spins);
        let work = |index| {
            let _guard = PoisonOnPanic(&barrier);
            work(Member {
                index,
                barrier: Some(&barrier),
            });
        };
        match &self.pool {
            None => work(0),
            Some(pool) => pool.in_place_scope(|scope| {
                let work = &work;
                scope.spawn_broadcast(move |_, context| work(context.index() + 1));
                work(0);
            }),
        }
    }
}

/// One member of a running team.
#[derive(Clone, Copy)]
pub(crate) struct Member<'a> {
    /// 0 for the calling thread.
    pub index: usize,
    /// `None` for a member that works alone.
    barrier: Option<&'a Barrier>,
}

impl Member<'_> {
    /// A member that works alone: it waits for nobody, and its part is everything.
    pub const ALONE: Self = Member {
        index: 0,
        barrier: None,
    };

    /// Waits until every member has come here. What members wrote before is visible to all of them after.
    pub fn wait(&self) {
        if let Some(barrier) = self.barrier {
            barrier.wait();
        }
    }

    /// How many compute together.
    pub fn members(&self) -> usize {
        self.barrier.map_or(1, |barrier| barrier.members)
    }

    /// This member's part of `0..count`, cut into ranges of as equal length as can be.
    pub fn part(&self, count: usize) -> Range<usize> {
        let members = self.members();
        count * self.index / members..count * (self.index + 1) / members
    }
}

/// A barrier that spins before it sleeps: the waits are short and many.
struct Barrier {
    members: usize,
    spins: u32,
    arrived: AtomicUsize,
    generation: AtomicUsize,
    poisoned: AtomicBool,
    /// Members that sleep or are about to.
    sleepers: AtomicUsize,
    bed: Mutex<()>,
    woken: Condvar,
}

impl Barrier {
    fn new(members: usize, spins: u32) -> Self {
        Barrier {
            members,
            spins,
            arrived: AtomicUsize::new(0),
            generation: AtomicUsize::new(0),
            poisoned: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            bed: Mutex::new(()),
            woken: Condvar::new(),
        }
    }

    fn wait(&self) {
        let generation = self.generation.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.members {
            self.arrived.store(0, Ordering::Relaxed);
            self.generation.store(generation + 1, Ordering::SeqCst);
            return self.wake();
        }
        for _ in 0..self.spins {
            if !self.is_waiting(generation) {
                return;
            }
            std::hint::spin_loop();
        }
        let mut bed = self.bed.lock().unwrap_or_else(PoisonError::into_inner);
        // Either the last member sees this sleeper, or this one sees the next generation: both orders are total.
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while self.is_waiting(generation) {
            bed = self.woken.wait(bed).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether `generation` is the last that all members have reached.
    fn is_waiting(&self, generation: usize) -> bool {
        assert!(
            !self.poisoned.load(Ordering::SeqCst),
            "another member of the team panicked"
        );
        self.generation.load(Ordering::SeqCst) == generation
    }

    /// Wakes who sleeps, after what it waits for has been stored.
    fn wake(&self) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            // Who is about to sleep holds the lock until it does.
            drop(self.bed.lock().unwrap_or_else(PoisonError::into_inner));
            self.woken.notify_all();
        }
    }
}

/// Frees the members that wait when one of them panics.
struct PoisonOnPanic<'a>(&'a Barrier);

impl Drop for PoisonOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.poisoned.store(true, Ordering::SeqCst);
            self.0.wake();
        }
    }
}

/// A slice that several members write, each in parts of its own.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a> {
    data: *mut f32,
    len: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: the slice is only reached through the unsafe methods, whose callers keep writers apart.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub fn new(slice: &'a mut [f32]) -> Self {
        Shared {
            data: slice.as_mut_ptr(),
            len: slice.len(),
            lifetime: PhantomData,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The part `range`, still shared.
    ///
    /// # Panics
    /// Where `range` leaves the slice.
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len);
        Shared {
            // SAFETY: in bounds.
            data: unsafe { self.data.add(range.start) },
            len: range.len(),
            lifetime: PhantomData,
        }
    }

    /// The parts that it was measured out for, still shared.
    ///
    /// # Panics
    /// Where it is shorter.
    pub fn carve<const N: usize>(self, parts: Parts<N>) -> [Self; N] {
        parts.ranges().map(|range| self.slice(range))
    }

    /// The elements `range`, to read.
    ///
    /// # Safety
    /// No member writes them until the slice returned is gone or a barrier has been passed.
    ///
    /// # Panics
    /// Where `range` leaves the slice.
    pub unsafe fn get(&self, range: Range<usize>) -> &'a [f32] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: in bounds; the caller vouches that nobody writes.
        unsafe { std::slice::from_raw_parts(self.data.add(range.start), range.len()) }
    }

    /// The elements `range`, to write.
    ///
    /// # Safety
    /// No other member reads or writes them until the slice returned is gone and a barrier has been passed.
    ///
    /// # Panics
    /// Where `range` leaves the slice.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn get_mut(&self, range: Range<usize>) -> &'a mut [f32] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: in bounds; the caller vouches that nobody else reads or writes.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    fn team(members: usize, spins: u32) -> Team {
        let team = Team::new(NonZeroUsize::new(members)).unwrap();
        Team { spins, ..team }
    }

    #[test]
    fn all_come_before_any_goes_on() {
        for (members, spins) in [(2, 0), (2, SPINS), (7, 0), (7, 1)] {
            let rounds = 500;
            let come = AtomicUsize::new(0);
            team(members, spins).run(|member| {
                for round in 1..=rounds {
                    come.fetch_add(1, Ordering::Relaxed);
                    member.wait();
                    assert_eq!(come.load(Ordering::Relaxed), round * members);
                    member.wait();
                }
            });
        }
    }

    #[test]
    fn a_panic_wakes_who_sleeps() {
        let failed = catch_unwind(AssertUnwindSafe(|| {
            team(3, 0).run(|member| {
                if member.index == 0 {
                    // Long enough for the others to be asleep.
                    std::thread::sleep(std::time::Duration::from_millis(50));
                    panic!("on purpose");
                }
                member.wait();
            });
        }));
        assert!(failed.is_err());
    }
}
