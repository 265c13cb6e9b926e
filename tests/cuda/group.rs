//! Problems that run together: as many launches as one of them needs, and the bits that each gives alone.

use std::sync::Arc;

use attention_rollout::cuda::cudarc::driver::{CudaSlice, CudaStream, sys};
use attention_rollout::cuda::{DeviceLayer, GroupItem, GroupPlan};
use attention_rollout::{
    DType, Discard, DiscardScope, Error, Output, Problem, RolloutConfig, Shape, StartRows, Window,
};
use vcuda::Code;
use vcuda::client::Ordering;

use crate::generate::{Case, Generated};
use crate::machine::{Buffer, Machine, directed, download, machine};
use crate::problems::{assert_right, bits, buffers, cases};

/// A group with its maps and outputs in device memory.
struct Features {
    plan: GroupPlan,
    generated: Vec<Generated>,
    buffers: Vec<Vec<Buffer>>,
    outs: Vec<CudaSlice<f32>>,
}

impl Features {
    fn new(machine: &Machine, cases: &[Case]) -> Self {
        let generated: Vec<Generated> = cases.iter().map(Case::generate).collect();
        let problems: Vec<Problem> = generated.iter().map(|g| g.problem.clone()).collect();
        let plan = GroupPlan::new(&machine.context, &problems, &machine.options).unwrap();
        let stream = machine.context.default_stream();
        let poison = |problem: &Problem| vec![f32::NAN; problem.output_len().max(1)];
        let outs = problems
            .iter()
            .map(|problem| stream.clone_htod(&poison(problem)).unwrap());
        Features {
            plan,
            buffers: generated.iter().map(|g| buffers(machine, g)).collect(),
            outs: outs.collect(),
            generated,
        }
    }

    /// Submits the group; `begin` is called when everything is ready.
    fn submit(&mut self, stream: &Arc<CudaStream>, begin: impl FnOnce()) {
        let layers: Vec<Vec<_>> = self
            .buffers
            .iter()
            .map(|buffers| buffers.iter().map(Buffer::layer).collect())
            .collect();
        let mut views: Vec<_> = self
            .generated
            .iter()
            .zip(&mut self.outs)
            .map(|(generated, out)| out.slice_mut(..generated.problem.output_len()))
            .collect();
        let mut items: Vec<GroupItem<'_>> = layers
            .iter()
            .zip(&mut views)
            .map(|(layers, out)| GroupItem {
                layers,
                out: out.into(),
            })
            .collect();
        begin();
        self.plan.run(stream, &mut items).unwrap();
    }

    fn results(&self, stream: &Arc<CudaStream>) -> Vec<Vec<f32>> {
        let outs = self.generated.iter().zip(&self.outs);
        outs.map(|(generated, out)| {
            let mut values = download(stream, out);
            values.truncate(generated.problem.output_len());
            values
        })
        .collect()
    }

    /// Every result is right. Those of problems that are computed as they are alone have the bits that they have alone;
    /// others are divided among fewer blocks, because the group keeps the device busy.
    fn assert_results(&self, machine: &Machine, stream: &Arc<CudaStream>) {
        let schedules: Vec<String> = self.plan.schedules().map(ToString::to_string).collect();
        let mut same = 0;
        for (index, (got, generated)) in
            self.results(stream).iter().zip(&self.generated).enumerate()
        {
            let what = format!("{index} of {}", self.plan);
            assert_right(&what, generated, got);
            let mut alone = machine.plan(&generated.problem, |_| {});
            if alone.to_string() == schedules[index] {
                let alone = machine.run(&mut alone, &generated.layers());
                assert_eq!(bits(got), bits(&alone), "{what}");
                same += 1;
            }
        }
        assert!(same > 0 || schedules.is_empty(), "{}", self.plan);
    }

    /// Runs the group, checks it, and returns how often it launched. A run launches and nothing else.
    fn check(&mut self, machine: &Machine) -> usize {
        let stream = machine.context.default_stream();
        let before = machine.vcuda.as_ref().map(|v| (v.counters(), v.usage()));
        self.submit(&stream, || ());
        if let (Some(vcuda), Some((counters, usage))) = (&machine.vcuda, before) {
            let after = vcuda.counters();
            let counted = |of: fn(&vcuda::report::Counters) -> u64| of(&after) - of(&counters);
            assert_eq!(counted(|c| c.launches) as usize, self.plan.launches());
            assert_eq!(counted(|c| c.device_allocations + c.device_frees), 0);
            assert_eq!(counted(|c| c.host_allocations + c.host_waits), 0);
            assert_eq!(counted(|c| c.copies_to_device + c.copies_to_host), 0);
            assert_eq!(counted(|c| c.fills + c.modules_loaded), 0);
            assert_eq!(vcuda.usage().objects, usage.objects);
        }
        self.assert_results(machine, &stream);
        self.plan.launches()
    }
}

/// Problems as the features of a clinical model have them: few heads, sequences of different lengths and depths.
fn features(count: usize, change: impl Fn(usize, &mut Case)) -> Vec<Case> {
    let feature = |index: usize| {
        let shape = Shape {
            layers: 4 - index % 3,
            batch: 3,
            heads: 1 + index % 4,
            tokens: 5 + 4 * (index % 7),
        };
        let mut case = Case::new(shape, index as u64);
        change(index, &mut case);
        case
    };
    (0..count).map(feature).collect()
}

fn discard(case: &mut Case) {
    let scope = DiscardScope::Map;
    case.config.discard = Some(Discard { ratio: 0.4, scope });
}

#[test]
fn launches_do_not_grow_with_the_number_of_problems() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    type Change = fn(usize, &mut Case);
    let forms: [(&str, usize, Change); 5] = [
        ("rows", 1, |_, _| ()),
        ("rows with discard", 3, |_, case| discard(case)),
        ("matrix", 1, |_, case| case.config.output = Output::Matrix),
        ("matrix with discard", 3, |_, case| {
            case.config.output = Output::Matrix;
            discard(case);
        }),
        // Of four layers: fill, fusion, first step, copy, and three products with two copies between them.
        ("cumulative windows", 9, |_, case| {
            case.config.output = Output::Cumulative;
            case.windows[1] = Window { start: 2, len: 3 };
        }),
    ];
    for (what, launches, change) in forms {
        for count in [2, 12] {
            let mut group = Features::new(&machine, &features(count, change));
            let got = group.check(&machine);
            assert_eq!(got, launches, "{what} of {count}: {}", group.plan);
        }
    }
}

#[test]
fn a_clinical_model_takes_one_launch_with_discard_three() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    // Layers and tokens of each feature; batch 256, 4 heads.
    let features = [(3, 100), (2, 60), (3, 40), (2, 24), (1, 48), (1, 3)];
    let launches = |output: Output, discard| {
        let problems = features.map(|(layers, tokens)| {
            let shape = Shape {
                layers,
                batch: 256,
                heads: 4,
                tokens,
            };
            let config = RolloutConfig {
                output: output.clone(),
                discard,
                ..RolloutConfig::default()
            };
            Problem::new(shape, DType::F32, config).unwrap()
        });
        let group = GroupPlan::new(&machine.context, &problems, &machine.options).unwrap();
        assert!(group.to_string().contains("_group: grid "), "{group}");
        group.launches()
    };
    let scope = DiscardScope::Map;
    let nine_tenths = Some(Discard { ratio: 0.9, scope });
    assert_eq!(launches(Output::default(), None), 1);
    assert_eq!(launches(Output::default(), nine_tenths), 3);
    // Windows of up to 64 tokens have a kernel of their own.
    assert_eq!(launches(Output::Matrix, None), 2);
}

#[test]
fn problems_of_every_kind_run_together() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    for ordering in [Ordering::Eager, Ordering::Shuffled(5)] {
        if let Some(vcuda) = &machine.vcuda {
            vcuda.set_ordering(ordering);
        }
        let cases: Vec<Case> = cases().into_iter().map(|(_, case)| case).collect();
        let mut group = Features::new(&machine, &cases);
        let stream = machine.context.default_stream();
        group.submit(&stream, || ());
        group.assert_results(&machine, &stream);
    }
}

#[test]
fn different_kernels_take_launches_of_their_own() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    // Three element types, and one of them normalised: four kernels.
    let mut group = Features::new(
        &machine,
        &features(8, |index, case| {
            case.dtype = DType::ALL[index % 3];
            case.config.normalize_rows = index == 4;
            case.config.causal = index % 2 == 1;
            case.config.output = Output::Rows(StartRows::Last);
            case.windows[2] = Window { start: 1, len: 4 };
        }),
    );
    assert_eq!(group.check(&machine), 4, "{}", group.plan);
}

#[test]
fn more_layers_or_addresses_than_one_launch_has_room_for() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    // 66 layers take two launches, the second of which the short ones join.
    let deep = |index: usize, case: &mut Case| {
        (case.shape.batch, case.shape.tokens) = (1, 3 + index);
        case.windows = vec![Window::full(3 + index)];
        case.shape.layers = [66, 2][index % 2];
    };
    let mut group = Features::new(&machine, &features(3, deep));
    assert_eq!(group.check(&machine), 2, "{}", group.plan);
    // 12 layers and an output each: 39 fit 508 addresses, 40 do not.
    for (count, launches) in [(39, 1), (40, 2)] {
        let mut group = Features::new(
            &machine,
            &features(count, |_, case| {
                case.shape = Shape {
                    layers: 12,
                    batch: 1,
                    heads: 1,
                    tokens: 4,
                };
                case.windows = vec![Window::full(4)];
            }),
        );
        assert_eq!(group.check(&machine), launches, "{}", group.plan);
    }
}

#[test]
fn groups_of_nothing_and_problems_without_items() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    assert_eq!(Features::new(&machine, &[]).check(&machine), 0);
    let without_items = |index: usize, case: &mut Case| {
        case.config.output = Output::Matrix;
        match index {
            1 => {
                case.shape.batch = 0;
                case.windows.clear();
            }
            2 => case.windows.fill(Window { start: 0, len: 0 }),
            _ => {}
        }
    };
    // Matrices, and a fill where no window has a token.
    let mut group = Features::new(&machine, &features(4, without_items));
    assert_eq!(group.check(&machine), 2, "{}", group.plan);
    let mut group = Features::new(&machine, &features(2, |_, case| without_items(1, case)));
    assert_eq!(group.check(&machine), 0, "{}", group.plan);
}

#[test]
fn layers_may_begin_anywhere() {
    let Some(machine) = machine("sm_90") else {
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
            let slices = layers.iter().filter_map(|maps| maps.as_slice().map(shift));
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
    let mut items: Vec<GroupItem<'_>> = layers
        .iter()
        .zip(&mut group.outs)
        .map(|(layers, out)| GroupItem {
            layers,
            out: out.into(),
        })
        .collect();
    group.plan.run(&stream, &mut items).unwrap();
    drop(items);
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
    group.submit(&stream, || {
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
            for (buffer, maps) in buffers.iter_mut().zip(generated.layers()) {
                let Buffer::F32(buffer) = buffer else {
                    unreachable!("all are f32")
                };
                stream
                    .memcpy_htod(maps.as_slice::<f32>().unwrap(), buffer)
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
    group.submit(&streams[0], || ());
    let first = std::mem::take(&mut group.outs);
    let poison = |out: &CudaSlice<f32>| vec![f32::NAN; out.len()];
    group.outs = first
        .iter()
        .map(|out| streams[1].clone_htod(&poison(out)).unwrap())
        .collect();
    group.submit(&streams[1], || ());
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
    let launches = {
        let schedules: Vec<_> = group.plan.schedules().collect();
        schedules[1].launches()
    };
    assert!(
        group
            .plan
            .to_string()
            .contains("by itself: 3 layers of [4, 1, 300, 300]")
    );
    assert_eq!(group.plan.launches(), 1 + launches, "{}", group.plan);
    let stream = machine.context.default_stream();
    group.submit(&stream, || ());
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
    let layers: Vec<Vec<_>> = group
        .buffers
        .iter()
        .map(|buffers| buffers.iter().map(Buffer::layer).collect())
        .collect();
    let mut items: Vec<GroupItem<'_>> = layers
        .iter()
        .zip(&mut group.outs)
        .map(|(layers, out)| GroupItem {
            layers,
            out: out.into(),
        })
        .collect();
    items[1].layers = &layers[0];
    let before = machine
        .vcuda
        .as_ref()
        .map(|vcuda| vcuda.counters().launches);
    assert!(group.plan.run(&stream, &mut items).is_err());
    let after = machine
        .vcuda
        .as_ref()
        .map(|vcuda| vcuda.counters().launches);
    assert_eq!(before, after);
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
        let error = GroupPlan::new(&machine.context, &problems, &machine.options).err();
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
    let plan = GroupPlan::new(&machine.context, &problems, &machine.options).unwrap();
    let held = (vcuda.usage().bytes - before.bytes) as usize;
    // The stand-in counts the constants of loaded modules too, some bytes each.
    let range = plan.workspace_bytes()..plan.workspace_bytes() + 3 * 256;
    assert!(range.contains(&held), "{held} of {range:?}");
    drop(plan);
    assert_eq!(vcuda.usage().bytes, before.bytes);
    vcuda.fail_launch(2, Code::LaunchOutOfResources);
    let stream = machine.context.default_stream();
    let layers: Vec<Vec<_>> = group
        .buffers
        .iter()
        .map(|buffers| buffers.iter().map(Buffer::layer).collect())
        .collect();
    let mut items: Vec<GroupItem<'_>> = layers
        .iter()
        .zip(&mut group.outs)
        .map(|(layers, out)| GroupItem {
            layers,
            out: out.into(),
        })
        .collect();
    let error = group.plan.run(&stream, &mut items).unwrap_err();
    assert!(
        matches!(&error, Error::Launch { variant, code: 701, .. } if variant == "discard_f32_group"),
        "{error:?}"
    );
    drop(items);
    drop(layers);
    group.check(&machine);
}
