//! Layers that come one by one, and problems that run together.

use attention_rollout::cuda::cudarc::driver::{CudaSlice, sys};
use attention_rollout::cuda::{GroupItem, GroupPlan, StreamingPlan};
use attention_rollout::{DType, Error, Problem, RolloutConfig, Shape};

use crate::machine::{Buffer, download, machine, upload};
use crate::problems::{assert_right, buffers, cases};

#[test]
fn pushed_layers_give_what_all_layers_give() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    for (what, case) in cases() {
        let generated = case.generate();
        let mut plan =
            StreamingPlan::new(&machine.context, &generated.problem, &machine.options).unwrap();
        let stream = machine.context.default_stream();
        let len = generated.problem.output_len();
        let mut out = stream.clone_htod(&vec![f32::NAN; len]).unwrap();
        let layers = generated.layers();
        // Twice: a pass leaves nothing behind.
        for _ in 0..2 {
            let mut pass = plan.begin(&stream, &mut out).unwrap();
            for maps in &layers {
                // The maps are gone as soon as the layer has been pushed.
                pass.push_layer(upload(&stream, maps).layer()).unwrap();
            }
            let extra = upload(&stream, &layers[0]);
            assert!(matches!(
                pass.push_layer(extra.layer()),
                Err(Error::StreamedLayers {
                    expected: 3,
                    got: 4
                })
            ));
            pass.finish().unwrap();
            assert_right(what, &generated, &download(&stream, &out));
        }
        let pass = plan.begin(&stream, &mut out).unwrap();
        assert!(matches!(
            pass.finish(),
            Err(Error::StreamedLayers {
                expected: 3,
                got: 0
            })
        ));
    }
}

#[test]
fn groups_of_different_problems_run_together_and_as_one_graph() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    if let Some(vcuda) = &machine.vcuda {
        vcuda.set_ordering(vcuda::client::Ordering::Shuffled(5));
    }
    let generated: Vec<_> = cases().iter().map(|(_, case)| case.generate()).collect();
    let problems: Vec<_> = generated.iter().map(|g| g.problem.clone()).collect();
    let mut group = GroupPlan::new(&machine.context, &problems, &machine.options).unwrap();
    let stream = machine.context.new_stream().unwrap();
    let buffers: Vec<_> = generated.iter().map(|g| buffers(&machine, g)).collect();
    let layers: Vec<Vec<_>> = buffers
        .iter()
        .map(|buffers| buffers.iter().map(Buffer::layer).collect())
        .collect();
    let poison = |problem: &Problem| vec![f32::NAN; problem.output_len()];
    let mut outs: Vec<_> = problems
        .iter()
        .map(|problem| stream.clone_htod(&poison(problem)).unwrap())
        .collect();
    machine.context.synchronize().unwrap();
    let mut submit = |outs: &mut [CudaSlice<f32>], captured: bool| {
        let mut items: Vec<GroupItem<'_>> = layers
            .iter()
            .zip(outs)
            .map(|(layers, out)| GroupItem {
                layers,
                out: out.into(),
            })
            .collect();
        if captured {
            let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            stream.begin_capture(mode).unwrap();
        }
        group.run(&stream, &mut items).unwrap();
    };
    submit(&mut outs, false);
    let check = |outs: &[CudaSlice<f32>]| {
        for (generated, out) in generated.iter().zip(outs) {
            assert_right("group", generated, &download(&stream, out));
        }
    };
    check(&outs);
    for (problem, out) in problems.iter().zip(&mut outs) {
        stream.memcpy_htod(&poison(problem), out).unwrap();
    }
    machine.context.synchronize().unwrap();
    submit(&mut outs, true);
    let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0));
    graph.unwrap().unwrap().launch().unwrap();
    check(&outs);
}

#[test]
fn the_features_of_a_batch_take_one_launch_each() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    // What a dict of features looks like: a batch of 32 patients, sequences of different lengths and depths.
    let features: Vec<Problem> = (0..12)
        .map(|feature| {
            let shape = Shape {
                layers: 1 + feature % 3,
                batch: 32,
                heads: 1 + feature % 4,
                tokens: 5 + 7 * feature,
            };
            Problem::new(shape, DType::F32, RolloutConfig::default()).unwrap()
        })
        .collect();
    let group = GroupPlan::new(&machine.context, &features, &machine.options).unwrap();
    for (problem, schedule) in group.problems().zip(group.schedules()) {
        assert_eq!(schedule.launches(), 1, "{}: {schedule}", problem.shape());
    }
}
