//! What a group may be given, streams and graphs, and failures.

use attention_rollout::cuda::cudarc::driver::{CudaSlice, sys};
use attention_rollout::cuda::{DeviceLayer, GroupPlan, Options};
use attention_rollout::{Error, Output, Problem, Shape, StartRows, Window};
use vcuda::Code;
use vcuda::client::Ordering;

use super::{Features, discard, features, layers, run};
use crate::generate::{Case, maps_of};
use crate::machine::{Buffer, directed, machine};
use crate::problems::assert_right;

#[test]
fn layers_may_begin_anywhere() {
    // Without clusters, which alone take what in a group is one block.
    let Some(machine) = machine("sm_80") else {
        return;
    };
    // Rows of 128 entries fit a warp only where they are aligned.
    let cases = features(3, |index, case| {
        (case.shape.heads, case.shape.tokens) = (1, [128, 9, 128][index]);
        case.windows = vec![Window::full(case.shape.tokens); 3];
    });
    let mut group = Features::new(&machine, &cases);
    group.check(&machine);
    let stream = machine.context.default_stream();
    let shifted: Vec<Vec<CudaSlice<f32>>> = group
        .generated
        .iter()
        .map(|generated| {
            let layers = generated.layers();
            let shift = |maps: &[f32]| stream.clone_htod(&[&[f32::NAN], maps].concat()).unwrap();
            let slices = layers
                .iter()
                .filter_map(|layer| maps_of(layer).as_slice().map(shift));
            slices.collect()
        })
        .collect();
    let views: Vec<Vec<_>> = shifted
        .iter()
        .map(|slices| slices.iter().map(|slice| slice.slice(1..)).collect())
        .collect();
    let layers: Vec<Vec<DeviceLayer<'_>>> = views
        .iter()
        .map(|views| views.iter().map(DeviceLayer::from).collect())
        .collect();
    for out in &mut group.outs {
        stream.memcpy_htod(&vec![f32::NAN; out.len()], out).unwrap();
    }
    run(&mut group.plan, &stream, &layers, &mut group.outs).unwrap();
    for (got, generated) in group.results(&stream).iter().zip(&group.generated) {
        assert_right("shifted", generated, got);
    }
}

#[test]
fn a_captured_group_replays_with_what_the_buffers_hold_then() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    let change = |index: usize, case: &mut Case| {
        if index % 2 == 1 {
            discard(case);
        }
    };
    let mut group = Features::new(&machine, &features(5, change));
    let stream = machine.context.new_stream().unwrap();
    machine.context.synchronize().unwrap();
    group.submit_after(&stream, || {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).unwrap();
    });
    let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0));
    let graph = graph.unwrap().unwrap();
    for seed in [0, 100] {
        let cases = features(5, |index, case| {
            change(index, case);
            case.seed += seed;
        });
        group.generated = cases.iter().map(Case::generate).collect();
        for (buffers, generated) in group.buffers.iter_mut().zip(&group.generated) {
            for (buffer, layer) in buffers.iter_mut().zip(generated.layers()) {
                let Buffer::F32(buffer) = buffer else {
                    unreachable!("all are f32")
                };
                stream
                    .memcpy_htod(maps_of(&layer).as_slice::<f32>().unwrap(), buffer)
                    .unwrap();
            }
        }
        graph.launch().unwrap();
        group.assert_results(&machine, &stream);
    }
}

#[test]
fn runs_on_different_streams_follow_each_other() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    if let Some(vcuda) = &machine.vcuda {
        vcuda.set_ordering(Ordering::Lazy);
    }
    // Discard goes through the workspace, which both runs use.
    let mut group = Features::new(&machine, &features(3, |_, case| discard(case)));
    machine.context.synchronize().unwrap();
    let streams = [(); 2].map(|()| machine.context.new_stream().unwrap());
    group.submit(&streams[0]);
    let first = std::mem::take(&mut group.outs);
    let poison = |out: &CudaSlice<f32>| vec![f32::NAN; out.len()];
    group.outs = first
        .iter()
        .map(|out| streams[1].clone_htod(&poison(out)).unwrap())
        .collect();
    group.submit(&streams[1]);
    group.assert_results(&machine, &streams[1]);
    group.outs = first;
    group.assert_results(&machine, &streams[0]);
}

#[test]
fn a_problem_that_takes_two_streams_runs_by_itself() {
    let Some(machine) = machine("sm_75") else {
        return;
    };
    if let Some(vcuda) = &machine.vcuda {
        vcuda.set_ordering(Ordering::Shuffled(2));
        // Checked once elsewhere; here the order of launches matters.
        vcuda.set_race_checks(false);
    }
    let mut cases = features(4, |_, _| ());
    let shape = Shape {
        layers: 3,
        batch: 4,
        heads: 1,
        tokens: 300,
    };
    let mut large = Case::new(shape, 3);
    large.config.output = Output::Rows(StartRows::Rows((0..10).collect()));
    cases.insert(1, large);
    let mut group = Features::new(&machine, &cases);
    // On a GPU of any size it may take one stream, and then it need not be by itself.
    if machine.vcuda.is_some() {
        let launches = group.plan.schedules().nth(1).unwrap().launches();
        let plan = group.plan.to_string();
        assert!(
            plan.contains("by itself: 3 layers of [4, 1, 300, 300]"),
            "{plan}"
        );
        assert_eq!(group.plan.launches(), 1 + launches, "{plan}");
    }
    let stream = machine.context.default_stream();
    group.submit(&stream);
    for (got, generated) in group.results(&stream).iter().zip(&group.generated) {
        assert_right("beside a large one", generated, got);
    }
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_submitted() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    let mut group = Features::new(&machine, &features(2, |_, _| ()));
    let stream = machine.context.default_stream();
    let error = group.plan.run(&stream, &mut []).unwrap_err();
    assert!(matches!(
        error,
        Error::Count {
            expected: 2,
            got: 0,
            ..
        }
    ));
    // The second problem's layers are what the first should have.
    let mut layers = layers(&group.buffers);
    layers.swap(0, 1);
    let launches = || machine.vcuda.as_ref().map(|v| v.counters().launches);
    let before = launches();
    assert!(run(&mut group.plan, &stream, &layers, &mut group.outs).is_err());
    assert_eq!(before, launches());
}

#[test]
fn failures_name_the_kernel_and_leave_nothing_behind() {
    let Some(machine) = directed("sm_90") else {
        return;
    };
    let vcuda = machine.vcuda();
    let mut group = Features::new(&machine, &features(3, |_, case| discard(case)));
    let problems: Vec<Problem> = group.plan.problems().cloned().collect();
    let before = vcuda.usage();
    // A workspace and constants each, and the tables.
    for allocation in 1..=7 {
        vcuda.fail_allocation(allocation);
        let error = GroupPlan::on(&machine.runtime(), &problems, &Options::default()).err();
        assert!(
            matches!(error, Some(Error::OutOfDeviceMemory { required, .. }) if required > 0),
            "{allocation}: {error:?}"
        );
        let after = vcuda.usage();
        assert_eq!(
            (after.bytes, &after.objects),
            (before.bytes, &before.objects),
            "{allocation}"
        );
    }
    let plan = GroupPlan::on(&machine.runtime(), &problems, &Options::default()).unwrap();
    let held = (vcuda.usage().bytes - before.bytes) as usize;
    // The stand-in counts the constants of loaded modules too, some bytes each.
    let stated = plan.workspace_bytes() + plan.owned_bytes();
    let range = stated..stated + 3 * 256;
    assert!(range.contains(&held), "{held} of {range:?}");
    drop(plan);
    assert_eq!(vcuda.usage().bytes, before.bytes);
    vcuda.fail_launch(2, Code::LaunchOutOfResources);
    let stream = machine.context.default_stream();
    let layers = layers(&group.buffers);
    let error = run(&mut group.plan, &stream, &layers, &mut group.outs).unwrap_err();
    assert!(
        matches!(&error, Error::Launch { variant, code: 701, .. } if variant == "discard_f32_group"),
        "{error:?}"
    );
    drop(layers);
    group.check(&machine);
}
