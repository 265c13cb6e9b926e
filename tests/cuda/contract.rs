//! What a run promises besides its result: launches only, capturable, repeatable, ordered, exact in what it touches.

use attention_rollout::cuda::DeviceOutput;
use attention_rollout::cuda::cudarc::driver::sys;
use attention_rollout::{Output, Shape, StartRows};

use crate::generate::{Case, maps_of};
use crate::machine::{Buffer, directed, download, machine};
use crate::problems::{assert_right, bits, buffers, cases};

#[test]
fn a_run_launches_and_nothing_else() {
    let Some(machine) = directed("sm_90") else {
        return;
    };
    let vcuda = machine.vcuda();
    for (what, case) in cases() {
        let generated = case.generate();
        let mut plan = machine.plan(&generated.problem, |_| {});
        let stream = machine.context.default_stream();
        let buffers = buffers(&machine, &generated);
        let layers: Vec<_> = buffers.iter().map(Buffer::layer).collect();
        let mut out = stream
            .alloc_zeros::<f32>(generated.problem.output_len())
            .unwrap();
        let before = (vcuda.counters(), vcuda.usage());
        plan.run(&stream, &layers, &mut out).unwrap();
        let after = (vcuda.counters(), vcuda.usage());
        let counted = |of: fn(&vcuda::report::Counters) -> u64| of(&after.0) - of(&before.0);
        assert_eq!(counted(|c| c.device_allocations), 0, "{what}");
        assert_eq!(counted(|c| c.host_allocations), 0, "{what}");
        assert_eq!(counted(|c| c.device_frees), 0, "{what}");
        assert_eq!(counted(|c| c.fills), 0, "{what}");
        assert_eq!(counted(|c| c.host_waits), 0, "{what}");
        assert_eq!(counted(|c| c.modules_loaded), 0, "{what}");
        assert_eq!(
            counted(|c| c.copies_to_device + c.copies_to_host),
            0,
            "{what}"
        );
        assert_eq!(
            counted(|c| c.launches) as usize,
            plan.schedule().launches(),
            "{what}: {plan}"
        );
        assert_eq!(after.1.objects, before.1.objects, "{what}");
        // What was launched is what the plan says.
        let ran = vcuda.launches();
        for variant in plan.schedule().variants() {
            let symbol = &variant.symbol;
            assert!(
                ran.iter().any(|launch| launch.kernel == *symbol),
                "{what}: {symbol}"
            );
        }
    }
}

#[test]
fn plans_hold_exactly_what_they_say_and_give_it_back() {
    let Some(machine) = directed("sm_90") else {
        return;
    };
    let vcuda = machine.vcuda();
    let before = vcuda.usage();
    for (what, case) in cases() {
        let generated = case.generate();
        let plan = machine.plan(&generated.problem, |_| {});
        // The stand-in counts the constants of loaded modules too, some bytes each.
        let held = (vcuda.usage().bytes - before.bytes) as usize;
        let modules = 256 * plan.schedule().variants().len();
        let stated = plan.workspace_bytes() + plan.owned_bytes();
        let range = stated..stated + modules;
        assert!(range.contains(&held), "{what}: {held} of {range:?}: {plan}");
        drop(plan);
        let after = vcuda.usage();
        assert_eq!(
            (after.bytes, &after.objects),
            (before.bytes, &before.objects),
            "{what}"
        );
    }
}

#[test]
fn captured_runs_replay_to_the_same_result() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    for (what, case) in cases() {
        let generated = case.generate();
        let mut plan = machine.plan(&generated.problem, |_| {});
        let direct = machine.run(&mut plan, &generated.layers());
        assert_right(what, &generated, &direct);
        let stream = machine.context.new_stream().unwrap();
        let buffers = buffers(&machine, &generated);
        let layers: Vec<_> = buffers.iter().map(Buffer::layer).collect();
        let poison = vec![f32::NAN; generated.problem.output_len()];
        let mut out = stream.clone_htod(&poison).unwrap();
        machine.context.synchronize().unwrap();
        let output = DeviceOutput::from(&mut out);
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).unwrap();
        plan.run(&stream, &layers, output).unwrap();
        let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0));
        let graph = graph.unwrap().unwrap();
        for _ in 0..2 {
            stream.memcpy_htod(&poison, &mut out).unwrap();
            graph.launch().unwrap();
            let replayed = download(&stream, &out);
            assert_eq!(bits(&replayed), bits(&direct), "{what}");
        }
    }
}

#[test]
fn runs_repeat_to_the_bit_in_any_order_of_execution() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    for (what, case) in cases() {
        let generated = case.generate();
        let mut plan = machine.plan(&generated.problem, |_| {});
        let first = machine.run(&mut plan, &generated.layers());
        let mut orders = vec![vcuda::client::Ordering::Eager];
        if machine.vcuda.is_some() {
            orders.extend([
                vcuda::client::Ordering::Lazy,
                vcuda::client::Ordering::Shuffled(3),
            ]);
        }
        for order in orders {
            if let Some(vcuda) = &machine.vcuda {
                vcuda.set_ordering(order);
            }
            let again = machine.run(&mut plan, &generated.layers());
            assert_eq!(bits(&again), bits(&first), "{what}, {order:?}");
        }
        if let Some(vcuda) = &machine.vcuda {
            vcuda.set_ordering(vcuda::client::Ordering::Eager);
        }
    }
}

/// A device with so little L2 that the product pipeline works in chunks on two streams.
#[test]
fn overlapped_chunks_agree_in_any_order_of_execution() {
    let Some(machine) = machine("sm_75") else {
        return;
    };
    let mut case = Case::new(
        Shape {
            layers: 3,
            batch: 3,
            heads: 1,
            tokens: 300,
        },
        3,
    );
    case.config.normalize_rows = true;
    case.config.output = Output::Rows(StartRows::Rows((0..10).collect()));
    let generated = case.generate();
    let mut plan = machine.plan(&generated.problem, |_| {});
    let mut results = Vec::new();
    for order in [
        vcuda::client::Ordering::Lazy,
        vcuda::client::Ordering::Shuffled(1),
        vcuda::client::Ordering::Shuffled(2),
    ] {
        if let Some(vcuda) = &machine.vcuda {
            vcuda.set_ordering(order);
            // Checked once elsewhere; here the order of launches matters.
            vcuda.set_race_checks(false);
        }
        results.push(machine.run(&mut plan, &generated.layers()));
    }
    assert_right("overlapped", &generated, &results[0]);
    assert!(
        results
            .iter()
            .all(|result| bits(result) == bits(&results[0]))
    );
}

#[test]
fn runs_on_different_streams_follow_each_other() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    if let Some(vcuda) = &machine.vcuda {
        vcuda.set_ordering(vcuda::client::Ordering::Lazy);
    }
    let (_, case) = cases().swap_remove(2);
    let generated = case.generate();
    let mut plan = machine.plan(&generated.problem, |_| {});
    let buffers = buffers(&machine, &generated);
    machine.context.synchronize().unwrap();
    let layers: Vec<_> = buffers.iter().map(Buffer::layer).collect();
    let streams = [(); 2].map(|()| machine.context.new_stream().unwrap());
    let len = generated.problem.output_len();
    let mut outs = streams
        .each_ref()
        .map(|stream| stream.alloc_zeros::<f32>(len).unwrap());
    for (stream, out) in streams.iter().zip(&mut outs) {
        plan.run(stream, &layers, out).unwrap();
    }
    let results = [1, 0].map(|index| download(&streams[index], &outs[index]));
    assert_right("second stream", &generated, &results[0]);
    assert_eq!(bits(&results[0]), bits(&results[1]));
}

#[test]
fn maps_are_read_once() {
    let Some(machine) = directed("sm_90") else {
        return;
    };
    let vcuda = machine.vcuda();
    for (what, case) in cases() {
        let generated = case.generate();
        let problem = &generated.problem;
        let mut plan = machine.plan(problem, |_| {});
        let stream = machine.context.default_stream();
        let buffers = buffers(&machine, &generated);
        let layers: Vec<_> = buffers.iter().map(Buffer::layer).collect();
        let mut out = stream.alloc_zeros::<f32>(problem.output_len()).unwrap();
        let before = vcuda.launches().len();
        plan.run(&stream, &layers, &mut out).unwrap();
        let launches = &vcuda.launches()[before..];
        let read: u64 = launches
            .iter()
            .flat_map(|launch| {
                layers
                    .iter()
                    .map(|layer| launch.traffic_at(maps_of(layer).address()))
            })
            .map(|traffic| traffic.read.bytes)
            .sum();
        // A row of a head is read as the 16-byte granules that cover it, up to two more than fill it, and by
        // matrix_stream in parts of 256 bytes.
        let floor = problem.map_bytes() as u64;
        let window_bytes = |len: usize| len * problem.dtype().size_bytes();
        let shortest = problem
            .windows()
            .iter()
            .map(|w| w.len)
            .filter(|&len| len > 0)
            .min();
        let most = 1.0 + 32.0 / window_bytes(shortest.unwrap()).min(256) as f64;
        let ratio = read as f64 / floor as f64;
        assert!(
            (1.0..=most).contains(&ratio),
            "{what}: {read} of {floor}: {plan}"
        );
    }
}
