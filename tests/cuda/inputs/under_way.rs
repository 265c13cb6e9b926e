//! Runs that are queued, and runs that a graph replays.

use attention_rollout::cuda::DeviceOutput;
use attention_rollout::cuda::cudarc::driver::{CudaSlice, sys};
use attention_rollout::{Error, Window};
use vcuda::client::Ordering;

use super::{OnDevice, TOKENS, cases, open, tell, turn};
use crate::generate::Generated;
use crate::machine::{Buffer, directed, download, machine, upload};
use crate::problems::{assert_right, buffers};

#[test]
fn eight_runs_on_their_way_have_each_its_own() {
    let Some(machine) = directed("sm_90") else {
        return;
    };
    let vcuda = machine.vcuda();
    vcuda.set_ordering(Ordering::Lazy);
    let stream = machine.context.default_stream();
    for (what, case) in cases().into_iter().take(3) {
        let turns: Vec<Generated> = (0..8).map(|index| turn(&case, index)).collect();
        let mut plan = machine.plan(&open(&turns[7]), |_| {});
        let maps: Vec<Vec<Buffer>> = turns.iter().map(|t| buffers(&machine, t)).collect();
        let len = turns[0].problem.output_len();
        let mut outs: Vec<CudaSlice<f32>> = turns
            .iter()
            .map(|_| stream.alloc_zeros(len).unwrap())
            .collect();
        machine.context.synchronize().unwrap();
        let before = vcuda.counters();
        for ((turn, maps), out) in turns.iter().zip(&maps).zip(&mut outs) {
            let layers: Vec<_> = maps.iter().map(Buffer::layer).collect();
            tell(&mut plan, turn);
            plan.run(&stream, &layers, out).unwrap();
        }
        let after = vcuda.counters();
        assert_eq!(after.host_waits, before.host_waits, "{what}");
        assert_eq!(
            after.copies_to_device - before.copies_to_device,
            8,
            "{what}"
        );
        assert_eq!(
            after.device_allocations, before.device_allocations,
            "{what}"
        );
        assert_eq!(after.host_allocations, before.host_allocations, "{what}");
        let launched = (after.launches - before.launches) as usize;
        assert_eq!(launched, 8 * (plan.schedule().launches() + 1), "{what}");
        for (turn, out) in turns.iter().zip(&outs) {
            assert_right(what, turn, &download(&stream, out));
        }
        // The ninth finds its slot free, and one that changes nothing launches what the schedule says.
        let layers: Vec<_> = maps[7].iter().map(Buffer::layer).collect();
        tell(&mut plan, &turns[7]);
        plan.run(&stream, &layers, &mut outs[0]).unwrap();
        let before = vcuda.counters();
        plan.run(&stream, &layers, &mut outs[1]).unwrap();
        let after = vcuda.counters();
        let launched = (after.launches - before.launches) as usize;
        assert_eq!(launched, plan.schedule().launches(), "{what}");
        assert_eq!(after.copies_to_device, before.copies_to_device, "{what}");
        for out in &outs[..2] {
            assert_right(what, &turns[7], &download(&stream, out));
        }
    }
}

#[test]
fn a_full_ring_waits_for_its_oldest_copy() {
    let Some(machine) = directed("sm_90") else {
        return;
    };
    machine.vcuda().set_ordering(Ordering::Lazy);
    let stream = machine.context.default_stream();
    let (what, case) = cases().swap_remove(0);
    let turns: Vec<Generated> = (0..19).map(|index| turn(&case, index)).collect();
    let mut plan = machine.plan(&open(&turns[0]), |_| {});
    let maps: Vec<Vec<Buffer>> = turns.iter().map(|t| buffers(&machine, t)).collect();
    let len = turns[0].problem.output_len();
    let mut outs: Vec<CudaSlice<f32>> = turns
        .iter()
        .map(|_| stream.alloc_zeros(len).unwrap())
        .collect();
    for ((turn, maps), out) in turns.iter().zip(&maps).zip(&mut outs) {
        let layers: Vec<_> = maps.iter().map(Buffer::layer).collect();
        tell(&mut plan, turn);
        plan.run(&stream, &layers, out).unwrap();
    }
    for (turn, out) in turns.iter().zip(&outs) {
        assert_right(what, turn, &download(&stream, out));
    }
}

#[test]
fn a_captured_run_reads_windows_anew_whenever_it_is_replayed() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    let (what, case) = cases().swap_remove(2);
    let turns: Vec<Generated> = (0..3).map(|index| turn(&case, index)).collect();
    // The windows of any turn over maps that hold numbers everywhere.
    let over = |turn: &Generated| {
        let mut full = case.clone();
        full.windows = vec![Window::full(TOKENS); 3];
        Generated {
            problem: turn.problem.clone(),
            ..full.generate()
        }
    };
    let mut plan = machine.plan(&open(&turns[0]), |_| {});
    let stream = machine.context.new_stream().unwrap();
    let mut on_device = OnDevice::new(&machine, &turns[0]);
    let maps: Vec<Buffer> = over(&turns[0])
        .layers()
        .iter()
        .map(|maps| upload(&stream, maps))
        .collect();
    let layers: Vec<_> = maps.iter().map(Buffer::layer).collect();
    let len = turns[0].problem.output_len();
    let mut out = stream.alloc_zeros::<f32>(len).unwrap();
    machine.context.synchronize().unwrap();
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    let output = DeviceOutput::from(&mut out);
    let inputs = on_device.inputs();
    // What the host says has no place in a graph, and the error says what has.
    tell(&mut plan, &turns[1]);
    stream.begin_capture(mode).unwrap();
    // SAFETY: nothing is submitted.
    let nowhere = unsafe { DeviceOutput::from_raw(output.address(), len) };
    let refused = plan.run(&stream, &layers, nowhere).unwrap_err();
    assert!(matches!(refused, Error::Capturing { .. }));
    assert!(refused.to_string().contains("run_with"));
    plan.run_with(&stream, &layers, output, inputs).unwrap();
    let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0));
    let graph = graph.unwrap().unwrap();
    for turn in [&turns[0], &turns[2], &turns[1]] {
        let now = OnDevice::new(&machine, turn);
        machine.context.synchronize().unwrap();
        stream
            .memcpy_dtod(&now.windows, &mut on_device.windows)
            .unwrap();
        let rows = on_device.rows.as_mut().unwrap();
        stream
            .memcpy_dtod(now.rows.as_ref().unwrap(), rows)
            .unwrap();
        graph.launch().unwrap();
        assert_right(what, &over(turn), &download(&stream, &out));
        // A run between replays has what the host said, whatever the graph left in the tables.
        let told = machine.run(&mut plan, &turns[1].layers());
        assert_right(what, &turns[1], &told);
    }
}
