//! Stream capture and graphs.

use crate::{
    codes::Code,
    driver::{Driver, Handle},
    schedule::{EventState, Ordering},
    work::Op,
};
use std::{
    collections::BTreeMap,
    sync::Arc,
    thread::{self, ThreadId},
};

/// Work and what it depends on. A node only depends on nodes before it.
#[derive(Default)]
pub struct Graph {
    pub nodes: Vec<Node>,
}

/// One node.
pub struct Node {
    pub op: Op,
    pub after: Vec<usize>,
}

/// Which other calls a capture forbids while it lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaptureMode {
    /// Unsafe calls of every thread.
    Global,
    /// Unsafe calls of the capturing thread.
    ThreadLocal,
    /// None.
    Relaxed,
}

/// A capture under way.
pub struct Capture {
    pub context: Handle,
    pub id: u64,
    origin: Handle,
    thread: ThreadId,
    mode: CaptureMode,
    graph: Graph,
    /// For every stream that takes part, the nodes its next one follows.
    tips: BTreeMap<Handle, Vec<usize>>,
    broken: bool,
}

/// What `cuStreamIsCapturing` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaptureStatus {
    None = 0,
    Active = 1,
    Invalidated = 2,
}

impl Driver {
    /// Starts to capture a stream.
    pub fn begin_capture(&mut self, stream: Handle, mode: CaptureMode) -> Result<(), Code> {
        let entry = self.stream(stream)?;
        let context = entry.context;
        if entry.capture.is_some() {
            return self.refuse(Code::InvalidValue, "the stream is capturing already");
        }
        if self
            .contexts
            .get(&context)
            .is_some_and(|entry| entry.legacy == stream)
        {
            return self.refuse(
                Code::StreamCaptureUnsupported,
                "the legacy stream cannot be captured",
            );
        }
        let handle = self.new_handle();
        let capture = Capture {
            context,
            id: handle,
            origin: stream,
            thread: thread::current().id(),
            mode,
            graph: Graph::default(),
            tips: BTreeMap::from([(stream, Vec::new())]),
            broken: false,
        };
        self.captures.insert(handle, capture);
        if let Some(stream) = self.schedule.streams.get_mut(&stream) {
            stream.capture = Some(handle);
        }
        Ok(())
    }

    /// Ends the capture that began on the stream and keeps its graph.
    pub fn end_capture(&mut self, stream: Handle) -> Result<Handle, Code> {
        let Some(handle) = self.stream(stream)?.capture else {
            return self.refuse(Code::InvalidValue, "the stream is not capturing");
        };
        let Some(capture) = self.captures.get(&handle) else {
            return Err(Code::StreamCaptureInvalidated);
        };
        if capture.origin != stream {
            return self.refuse(
                Code::StreamCaptureUnmatched,
                "the capture has to end on the stream it began on",
            );
        }
        if capture.mode != CaptureMode::Relaxed && capture.thread != thread::current().id() {
            return self.refuse(
                Code::StreamCaptureWrongThread,
                "the capture has to end on the thread it began on",
            );
        }
        let Some(capture) = self.captures.remove(&handle) else {
            return Err(Code::StreamCaptureInvalidated);
        };
        for stream in self.schedule.streams.values_mut() {
            if stream.capture == Some(handle) {
                stream.capture = None;
            }
        }
        if capture.broken {
            return Err(Code::StreamCaptureInvalidated);
        }
        if !capture.is_joined() {
            return self.refuse(
                Code::StreamCaptureUnjoined,
                "a stream that joined the capture was not joined back",
            );
        }
        let graph = self.new_handle();
        self.graphs
            .insert(graph, (capture.context, Arc::new(capture.graph)));
        Ok(graph)
    }

    /// Makes a node of work submitted to a capturing stream.
    pub fn capture_op(&mut self, capture: Handle, stream: Handle, op: Op) -> Result<(), Code> {
        let capture = self.live_capture(capture)?;
        let after = capture.tips.get(&stream).cloned().unwrap_or_default();
        capture.graph.nodes.push(Node { op, after });
        capture
            .tips
            .insert(stream, vec![capture.graph.nodes.len() - 1]);
        Ok(())
    }

    /// `cuEventRecord`.
    pub fn record_event(&mut self, event: Handle, stream: Handle) -> Result<(), Code> {
        let own = self.event(event)?.context;
        let entry = self.stream(stream)?;
        if entry.context != own {
            return self.refuse(
                Code::InvalidHandle,
                "an event is recorded on streams of its own context only",
            );
        }
        let Some(capture) = entry.capture else {
            return self.submit(stream, Op::Record(event));
        };
        let nodes = self.live_capture(capture)?.tips.get(&stream).cloned();
        if let Some(event) = self.schedule.events.get_mut(&event) {
            event.state = EventState::Captured {
                capture,
                nodes: nodes.unwrap_or_default(),
            };
        }
        Ok(())
    }

    /// `cuStreamWaitEvent`.
    pub fn wait_event(&mut self, stream: Handle, event: Handle) -> Result<(), Code> {
        let state = self.event(event)?.state.clone();
        let capture = self.stream(stream)?.capture;
        match (capture, state) {
            (_, EventState::Unrecorded) => Ok(()),
            (
                None,
                EventState::Recorded {
                    stream: other,
                    ticket,
                    ..
                },
            ) => self.submit_after(stream, vec![(other, ticket)], Op::Wait),
            (Some(capture), EventState::Recorded { .. }) => {
                self.live_capture(capture)?.broken = true;
                self.refuse(
                    Code::StreamCaptureIsolation,
                    "a capturing stream waits for an event recorded outside the capture",
                )
            }
            (None, EventState::Captured { capture, nodes }) => {
                if !self.captures.contains_key(&capture) {
                    return self.refuse(
                        Code::CapturedEvent,
                        "the event was last recorded in a capture that has ended",
                    );
                }
                if self
                    .contexts
                    .values()
                    .any(|context| context.legacy == stream)
                {
                    self.break_capture(capture);
                    return self.refuse(
                        Code::StreamCaptureImplicit,
                        "the legacy stream cannot join a capture",
                    );
                }
                self.live_capture(capture)?.tips.insert(stream, nodes);
                if let Some(stream) = self.schedule.streams.get_mut(&stream) {
                    stream.capture = Some(capture);
                }
                Ok(())
            }
            (Some(own), EventState::Captured { capture, .. }) if own != capture => {
                self.break_capture(own);
                if !self.captures.contains_key(&capture) {
                    return self.refuse(
                        Code::StreamCaptureIsolation,
                        "a capturing stream waits for an event of a capture that has ended",
                    );
                }
                self.break_capture(capture);
                self.refuse(
                    Code::StreamCaptureMerge,
                    "a capturing stream waits for an event of another capture",
                )
            }
            (Some(capture), EventState::Captured { nodes, .. }) => {
                let tips = self.live_capture(capture)?.tips.entry(stream).or_default();
                tips.extend(nodes);
                tips.sort_unstable();
                tips.dedup();
                Ok(())
            }
        }
    }

    fn live_capture(&mut self, capture: Handle) -> Result<&mut Capture, Code> {
        let capture = self.captures.get_mut(&capture);
        capture
            .filter(|capture| !capture.broken)
            .ok_or(Code::StreamCaptureInvalidated)
    }

    /// The capture can only be ended from now on, and yields nothing.
    pub fn break_capture(&mut self, capture: Handle) {
        if let Some(capture) = self.captures.get_mut(&capture) {
            capture.broken = true;
        }
    }

    /// What a stream's capture is doing, and its id.
    pub fn capture_status(&self, stream: Handle) -> Result<(CaptureStatus, u64), Code> {
        Ok(match self.stream(stream)?.capture {
            None => (CaptureStatus::None, 0),
            Some(capture) => match self.captures.get(&capture) {
                Some(capture) if !capture.broken => (CaptureStatus::Active, capture.id),
                _ => (CaptureStatus::Invalidated, capture),
            },
        })
    }

    /// Fails, and breaks the captures concerned, if the calling thread may not make the unsafe call
    /// `what` now: one that allocates, frees, or waits for more than one stream.
    pub fn forbid_while_capturing(&mut self, what: &str) -> Result<(), Code> {
        let this = thread::current().id();
        let mut forbidden = false;
        for capture in self.captures.values_mut() {
            let concerned = match capture.mode {
                CaptureMode::Global => true,
                CaptureMode::ThreadLocal => capture.thread == this,
                CaptureMode::Relaxed => false,
            };
            capture.broken |= concerned;
            forbidden |= concerned;
        }
        if forbidden {
            return self.refuse(
                Code::StreamCaptureUnsupported,
                format!("{what} is not permitted while a stream is capturing"),
            );
        }
        Ok(())
    }

    /// Fails, and breaks its capture, if the stream is capturing: the host cannot wait for it.
    pub fn forbid_on_capturing(&mut self, stream: Handle, what: &str) -> Result<(), Code> {
        match self.stream(stream)?.capture {
            None => Ok(()),
            Some(capture) => {
                self.break_capture(capture);
                self.refuse(
                    Code::StreamCaptureUnsupported,
                    format!("{what} is not permitted on a capturing stream"),
                )
            }
        }
    }

    /// The same for every stream of a context.
    pub fn forbid_in_capturing_context(&mut self, context: Handle, what: &str) -> Result<(), Code> {
        let captures = self
            .captures
            .iter()
            .filter(|(_, capture)| capture.context == context);
        let captures: Vec<Handle> = captures.map(|(&capture, _)| capture).collect();
        if captures.is_empty() {
            return Ok(());
        }
        captures
            .into_iter()
            .for_each(|capture| self.break_capture(capture));
        self.refuse(
            Code::StreamCaptureUnsupported,
            format!("{what} is not permitted while a stream of the context is capturing"),
        )
    }

    /// Executes the nodes of a graph in an order their dependencies allow: as captured when eager, the
    /// last captured of the ready ones first when lazy, any of them when shuffled.
    pub fn replay(&mut self, context: Handle, graph: &Graph) -> Result<(), Code> {
        let mut pending: Vec<usize> = (0..graph.nodes.len()).collect();
        while !pending.is_empty() {
            let ready = |&index: &usize| {
                let after = &graph.nodes[index].after;
                after
                    .iter()
                    .all(|node| pending.binary_search(node).is_err())
            };
            let ready: Vec<usize> = pending.iter().copied().filter(ready).collect();
            let chosen = match self.schedule.ordering {
                Ordering::Eager => 0,
                Ordering::Lazy => ready.len() - 1,
                Ordering::Shuffled(_) => self.schedule.random(ready.len()),
            };
            let node = ready[chosen];
            pending.retain(|&other| other != node);
            self.execute_node(context, &graph.nodes[node].op, true)?;
        }
        Ok(())
    }
}

impl Capture {
    /// Whether every stream's work leads into the origin's.
    fn is_joined(&self) -> bool {
        let mut reached = vec![false; self.graph.nodes.len()];
        let mut next = self.tips.get(&self.origin).cloned().unwrap_or_default();
        while let Some(node) = next.pop() {
            if !std::mem::replace(&mut reached[node], true) {
                next.extend(&self.graph.nodes[node].after);
            }
        }
        reached.into_iter().all(|reached| reached)
    }
}
