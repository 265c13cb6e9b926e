//! Streams, events, and the order in which queued work is executed.
//!
//! Every piece of work gets a ticket, rising over the whole process. "Stream `s` up to ticket `t`" is
//! done when `s` holds no older work, so a dependency is a pair of stream and ticket, and since tickets
//! only point backwards there are no cycles.

use crate::{
    codes::Code,
    driver::{Driver, Handle},
    work::Op,
};
use std::{
    collections::{BTreeMap, VecDeque},
    time::Instant,
};

/// When queued work is executed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ordering {
    /// At once, in submission order; a launch reports its own fault.
    #[default]
    Eager,
    /// As late as the API allows: only what a waiting host asked for, and only what that depends on.
    /// Where several streams are waited for, the newest goes first.
    Lazy,
    /// Whenever the host waits, pieces of all streams in an order drawn from the seed.
    Shuffled(u64),
}

/// Streams, events and the clock of tickets.
#[derive(Default)]
pub struct Schedule {
    pub ordering: Ordering,
    pub streams: BTreeMap<Handle, Stream>,
    pub events: BTreeMap<Handle, Event>,
    ticket: u64,
    random: u64,
}

/// One stream.
pub struct Stream {
    pub context: Handle,
    /// Takes part in the implicit ordering with the legacy stream.
    pub blocking: bool,
    pub priority: i32,
    /// False once destroyed: what is queued still runs, nothing new is accepted.
    pub open: bool,
    /// The capture it takes part in.
    pub capture: Option<Handle>,
    queue: VecDeque<Item>,
}

/// One event.
pub struct Event {
    pub context: Handle,
    pub timing: bool,
    pub state: EventState,
}

/// What an event stands for.
#[derive(Clone, Debug)]
pub enum EventState {
    /// Never recorded: counts as complete.
    Unrecorded,
    /// The work of a stream up to a ticket, and when that was done.
    Recorded {
        stream: Handle,
        ticket: u64,
        at: Option<Instant>,
    },
    /// Nodes of a capture.
    Captured { capture: Handle, nodes: Vec<usize> },
}

struct Item {
    ticket: u64,
    waits: Vec<(Handle, u64)>,
    op: Op,
}

impl Schedule {
    fn is_done(&self, stream: Handle, ticket: u64) -> bool {
        let queue = self.streams.get(&stream).map(|stream| &stream.queue);
        queue
            .and_then(VecDeque::front)
            .is_none_or(|item| item.ticket > ticket)
    }

    /// The first dependency of the stream's next item that is not met.
    fn obstacle(&self, stream: Handle) -> Option<(Handle, u64)> {
        let item = self.streams.get(&stream)?.queue.front()?;
        item.waits
            .iter()
            .copied()
            .find(|&(stream, ticket)| !self.is_done(stream, ticket))
    }

    fn pop(&mut self, stream: Handle) -> Option<Item> {
        let entry = self.streams.get_mut(&stream)?;
        let item = entry.queue.pop_front();
        if entry.queue.is_empty() && !entry.open {
            self.streams.remove(&stream);
        }
        item
    }

    /// The next stream to run on the way to `target`: the target itself or what it waits for.
    fn next_towards(&self, target: (Handle, u64)) -> Handle {
        let mut stream = target.0;
        while let Some((other, _)) = self.obstacle(stream) {
            stream = other;
        }
        stream
    }

    /// A runnable stream drawn at random.
    fn next_at_random(&mut self) -> Option<Handle> {
        let ready = self
            .streams
            .iter()
            .filter(|(_, stream)| !stream.queue.is_empty());
        let ready: Vec<Handle> = ready
            .map(|(&stream, _)| stream)
            .filter(|&stream| self.obstacle(stream).is_none())
            .collect();
        let draw = self.random(ready.len());
        ready.get(draw).copied()
    }

    /// A number below `bound` (xorshift64*).
    pub fn random(&mut self, bound: usize) -> usize {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let mixed = self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        mixed as usize % bound.max(1)
    }

    /// Chooses the ordering of what comes.
    pub fn set_ordering(&mut self, ordering: Ordering) {
        self.ordering = ordering;
        if let Ordering::Shuffled(seed) = ordering {
            self.random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        }
    }

    /// Streams not destroyed yet, default streams included.
    pub fn open_streams(&self) -> usize {
        self.streams.values().filter(|stream| stream.open).count()
    }

    /// Removes the context's streams; says how many were open, `own` not counted.
    pub fn forget_context(&mut self, context: Handle, own: &[Handle]) -> usize {
        let before = self.open_streams();
        self.streams.retain(|_, stream| stream.context != context);
        before - self.open_streams() - own.len()
    }

    /// Removes the context's events; says how many there were.
    pub fn forget_events(&mut self, context: Handle) -> usize {
        let before = self.events.len();
        self.events.retain(|_, event| event.context != context);
        before - self.events.len()
    }
}

impl Driver {
    /// Makes a stream.
    pub fn create_stream(&mut self, context: Handle, blocking: bool, priority: i32) -> Handle {
        let handle = self.new_handle();
        let stream = Stream {
            context,
            blocking,
            priority,
            open: true,
            capture: None,
            queue: VecDeque::new(),
        };
        self.schedule.streams.insert(handle, stream);
        handle
    }

    /// Destroys a stream; what it holds still runs.
    pub fn destroy_stream(&mut self, handle: Handle) -> Result<(), Code> {
        let stream = self.stream(handle)?;
        if let Some(capture) = stream.capture {
            self.break_capture(capture);
        }
        let Some(stream) = self.schedule.streams.get_mut(&handle) else {
            return Err(Code::InvalidHandle);
        };
        stream.open = false;
        if stream.queue.is_empty() {
            self.schedule.streams.remove(&handle);
        }
        Ok(())
    }

    /// A live stream whose context is fit for work.
    pub fn stream(&self, handle: Handle) -> Result<&Stream, Code> {
        let stream = self
            .schedule
            .streams
            .get(&handle)
            .filter(|stream| stream.open);
        let stream = stream.ok_or(Code::InvalidHandle)?;
        self.usable(stream.context)?;
        Ok(stream)
    }

    /// A live event whose context is fit for work.
    pub fn event(&self, handle: Handle) -> Result<&Event, Code> {
        let event = self
            .schedule
            .events
            .get(&handle)
            .ok_or(Code::InvalidHandle)?;
        self.usable(event.context)?;
        Ok(event)
    }

    /// Hands work to a stream: a capturing one makes it a node, any other queues it.
    pub fn submit(&mut self, stream: Handle, op: Op) -> Result<(), Code> {
        self.submit_after(stream, Vec::new(), op)
    }

    /// The same, to start once every pair of stream and ticket is done.
    pub fn submit_after(
        &mut self,
        stream: Handle,
        mut waits: Vec<(Handle, u64)>,
        op: Op,
    ) -> Result<(), Code> {
        if let Some(capture) = self.stream(stream)?.capture {
            return self.capture_op(capture, stream, op);
        }
        waits.extend(self.implicit_waits(stream)?);
        self.schedule.ticket += 1;
        let ticket = self.schedule.ticket;
        if let Op::Record(event) = op
            && let Some(event) = self.schedule.events.get_mut(&event)
        {
            event.state = EventState::Recorded {
                stream,
                ticket,
                at: None,
            };
        }
        if let Some(stream) = self.schedule.streams.get_mut(&stream) {
            stream.queue.push_back(Item { ticket, waits, op });
        }
        match self.schedule.ordering {
            Ordering::Eager => self.run_until(&[(stream, ticket)]),
            Ordering::Lazy | Ordering::Shuffled(_) => Ok(()),
        }
    }

    /// The legacy stream follows every blocking stream of its context, and they follow it.
    fn implicit_waits(&mut self, stream: Handle) -> Result<Vec<(Handle, u64)>, Code> {
        let own = self.stream(stream)?;
        let (context, blocking) = (own.context, own.blocking);
        let legacy = self
            .contexts
            .get(&context)
            .ok_or(Code::InvalidContext)?
            .legacy;
        if stream != legacy {
            let waits = blocking.then_some((legacy, self.schedule.ticket));
            return Ok(waits.into_iter().collect());
        }
        let others = self.schedule.streams.iter();
        let others = others.filter(|(other, entry)| {
            **other != legacy && entry.context == context && entry.blocking
        });
        let others: Vec<_> = others
            .map(|(&other, entry)| (other, entry.capture))
            .collect();
        if let Some(capture) = others.iter().find_map(|&(_, capture)| capture) {
            self.break_capture(capture);
            return self.refuse(
                Code::StreamCaptureImplicit,
                "the legacy stream was used while a blocking stream is capturing",
            );
        }
        let ticket = self.schedule.ticket;
        Ok(others
            .into_iter()
            .map(|(other, _)| (other, ticket))
            .collect())
    }

    /// The host waits for the stream.
    pub fn wait_for_stream(&mut self, stream: Handle) -> Result<(), Code> {
        let ticket = self.schedule.ticket;
        let waits = if self.is_legacy(stream) {
            self.implicit_waits(stream)?
        } else {
            Vec::new()
        };
        self.counters.host_waits += 1;
        self.run_until(&waits)?;
        self.run_until(&[(stream, ticket)])
    }

    fn is_legacy(&self, stream: Handle) -> bool {
        self.contexts
            .values()
            .any(|context| context.legacy == stream)
    }

    /// The host waits for all work of the context.
    pub fn wait_for_context(&mut self, context: Handle) -> Result<(), Code> {
        self.counters.host_waits += 1;
        self.run_everything(context)
    }

    /// Executes all work of the context.
    pub fn run_everything(&mut self, context: Handle) -> Result<(), Code> {
        let ticket = self.schedule.ticket;
        let streams = self.schedule.streams.iter().rev();
        let own = streams.filter(|(_, stream)| stream.context == context);
        let targets: Vec<_> = own.map(|(&stream, _)| (stream, ticket)).collect();
        self.run_until(&targets)
    }

    /// Executes until each target is done; fails with the first error that spoilt a target's context.
    pub fn run_until(&mut self, targets: &[(Handle, u64)]) -> Result<(), Code> {
        let contexts: Vec<Handle> = targets
            .iter()
            .filter_map(|(stream, _)| {
                self.schedule
                    .streams
                    .get(stream)
                    .map(|stream| stream.context)
            })
            .collect();
        for &target in targets {
            while !self.schedule.is_done(target.0, target.1) {
                self.run_one(target);
            }
        }
        contexts
            .into_iter()
            .try_for_each(|context| self.usable(context))
    }

    /// Whether the target is done. If it is not, one piece of work on the way to it is executed, so that
    /// a host that polls gets there.
    pub fn poll(&mut self, target: (Handle, u64)) -> bool {
        let done = self.schedule.is_done(target.0, target.1);
        if !done {
            self.run_one(target);
        }
        done
    }

    /// The same for all that the stream holds now.
    pub fn poll_stream(&mut self, stream: Handle) -> bool {
        self.poll((stream, self.schedule.ticket))
    }

    fn run_one(&mut self, target: (Handle, u64)) {
        let drawn = match self.schedule.ordering {
            Ordering::Shuffled(_) => self.schedule.next_at_random(),
            Ordering::Eager | Ordering::Lazy => None,
        };
        let stream = drawn.unwrap_or_else(|| self.schedule.next_towards(target));
        let context = self
            .schedule
            .streams
            .get(&stream)
            .map(|stream| stream.context);
        let (Some(context), Some(item)) = (context, self.schedule.pop(stream)) else {
            return;
        };
        if let Err(code) = self.execute(context, item.ticket, &item.op) {
            self.spoil(context, code);
        }
    }

    /// The context is unusable from now on; what is queued in it will never run.
    pub fn spoil(&mut self, context: Handle, code: Code) {
        if let Some(context) = self.contexts.get_mut(&context) {
            context.sticky.get_or_insert(code);
        }
        for stream in self.schedule.streams.values_mut() {
            if stream.context == context {
                stream.queue.clear();
            }
        }
        self.schedule
            .streams
            .retain(|_, stream| stream.open || !stream.queue.is_empty());
    }
}
