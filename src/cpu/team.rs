//! The threads of a plan and what they share: a team with a barrier, and buffers that members write in parts.
//!
//! One rule makes every use of [`Shared`] sound: between two barriers an element is written by one member and touched by
//! no other, or only read. Who writes what follows from [`Member::part`] of rows or panels, from tiles, from blocks, or from
//! an item that was handed to one member alone; each `SAFETY` names which, and the barrier that ends it.

use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::cpu::memory::Parts;
use crate::error::{Error, Result};

/// Turns of spinning before a waiting member yields its core.
const SPINS: u32 = 4096;

/// A persistent team of threads; the calling thread is member 0.
pub(crate) struct Team {
    /// The other members; `None` where the caller is alone.
    pool: Option<rayon::ThreadPool>,
    members: usize,
}

impl Team {
    /// Starts a team of `threads`, or of one per available core.
    pub fn new(threads: Option<NonZeroUsize>) -> Result<Self> {
        let members = match threads {
            Some(threads) => threads.get(),
            None => std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
        };
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
        Ok(Team { pool, members })
    }

    /// Number of members, the caller included.
    pub fn members(&self) -> usize {
        self.members
    }

    /// Runs `work` once on every member and returns when all are done.
    pub fn run(&self, work: impl Fn(Member<'_>) + Sync) {
        let barrier = Barrier::new(self.members);
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

/// A barrier that spins before it yields: the waits are short and many.
struct Barrier {
    members: usize,
    arrived: AtomicUsize,
    generation: AtomicUsize,
    poisoned: AtomicBool,
}

impl Barrier {
    fn new(members: usize) -> Self {
        Barrier {
            members,
            arrived: AtomicUsize::new(0),
            generation: AtomicUsize::new(0),
            poisoned: AtomicBool::new(false),
        }
    }

    fn wait(&self) {
        let generation = self.generation.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.members {
            self.arrived.store(0, Ordering::Relaxed);
            self.generation.store(generation + 1, Ordering::Release);
            return;
        }
        let mut spins = 0;
        while self.generation.load(Ordering::Acquire) == generation {
            assert!(
                !self.poisoned.load(Ordering::Relaxed),
                "another member of the team panicked"
            );
            if spins < SPINS {
                spins += 1;
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }
}

/// Frees the members that wait when one of them panics.
struct PoisonOnPanic<'a>(&'a Barrier);

impl Drop for PoisonOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.poisoned.store(true, Ordering::Relaxed);
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
