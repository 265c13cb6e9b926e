//! Stream capture and graphs.

use super::{Out, exports};
use crate::{capture::CaptureMode, codes::Code, work::Op};
use std::sync::Arc;

exports! {
    /// Starts to capture a stream.
    fn cuStreamBeginCapture_v2(driver, stream: u64, mode: u32) {
        let mode = match mode {
            0 => CaptureMode::Global,
            1 => CaptureMode::ThreadLocal,
            2 => CaptureMode::Relaxed,
            _ => return Err(Code::InvalidValue),
        };
        let stream = driver.stream_of(stream)?;
        driver.begin_capture(stream, mode)
    }

    /// Ends a capture; null if it failed.
    fn cuStreamEndCapture(driver, stream: u64, graph: Out<u64>) {
        graph.set_if_wanted(0);
        let stream = driver.stream_of(stream)?;
        let handle = driver.end_capture(stream)?;
        graph.set(handle)
    }

    /// Whether the stream is capturing.
    fn cuStreamIsCapturing(driver, stream: u64, status: Out<u32>) {
        let stream = driver.stream_of(stream)?;
        let (found, _) = driver.capture_status(stream)?;
        status.set(found as u32)
    }

    /// Whether the stream is capturing, and which capture. The graph so far is not shown.
    fn cuStreamGetCaptureInfo_v2(
        driver,
        stream: u64,
        status: Out<u32>,
        id: Out<u64>,
        graph: Out<u64>,
        dependencies: Out<u64>,
        count: Out<usize>,
    ) {
        let stream = driver.stream_of(stream)?;
        let (found, capture) = driver.capture_status(stream)?;
        id.set_if_wanted(capture);
        graph.set_if_wanted(0);
        dependencies.set_if_wanted(0);
        count.set_if_wanted(0);
        status.set(found as u32)
    }

    /// Makes a graph ready to launch.
    fn cuGraphInstantiateWithFlags(driver, executable: Out<u64>, graph: u64, flags: u64) {
        const AUTO_FREE_ON_LAUNCH: u64 = 1;
        const DEVICE_LAUNCH: u64 = 4;
        const USE_NODE_PRIORITY: u64 = 8;
        if flags == DEVICE_LAUNCH {
            return Err(Code::NotSupported);
        }
        if flags & !(AUTO_FREE_ON_LAUNCH | USE_NODE_PRIORITY) != 0 {
            return driver.refuse(Code::InvalidValue, format!("instantiation flags {flags:#x}"));
        }
        let (context, nodes) = driver.graphs.get(&graph).cloned().ok_or(Code::InvalidValue)?;
        driver.usable(context)?;
        let handle = driver.new_handle();
        driver.executables.insert(handle, (context, nodes));
        executable.set(handle)
    }

    /// Replays a graph in stream order. Into a capturing stream it becomes one node.
    fn cuGraphLaunch(driver, executable: u64, stream: u64) {
        let stream = driver.stream_of(stream)?;
        let (_, nodes) = driver.executables.get(&executable).ok_or(Code::InvalidValue)?;
        let nodes = Arc::clone(nodes);
        driver.counters.graph_launches += 1;
        driver.submit(stream, Op::Graph(nodes))
    }

    /// Checks its arguments; there is nothing to upload.
    fn cuGraphUpload(driver, executable: u64, stream: u64) {
        driver.stream_of(stream)?;
        driver.executables.get(&executable).map(drop).ok_or(Code::InvalidValue)
    }

    /// Destroys a graph; what was instantiated from it lives on.
    fn cuGraphDestroy(driver, graph: u64) {
        driver.graphs.remove(&graph).map(drop).ok_or(Code::InvalidValue)
    }

    /// Destroys an instantiated graph; launches of it that are queued still run.
    fn cuGraphExecDestroy(driver, executable: u64) {
        driver.executables.remove(&executable).map(drop).ok_or(Code::InvalidValue)
    }

    /// The number of nodes. Nodes themselves have no handles here.
    fn cuGraphGetNodes(driver, graph: u64, nodes: *const u64, count: Out<usize>) {
        let (_, found) = driver.graphs.get(&graph).ok_or(Code::InvalidValue)?;
        let number = found.nodes.len();
        if !nodes.is_null() {
            return Err(Code::NotSupported);
        }
        count.set(number)
    }
}
