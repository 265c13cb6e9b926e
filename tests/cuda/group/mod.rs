//! Problems that run together: as many launches as one of them needs, and the bits that each gives alone.

mod contract;
mod launches;

use std::sync::Arc;

use attention_rollout::cuda::cudarc::driver::{CudaSlice, CudaStream};
use attention_rollout::cuda::{DeviceLayer, GroupItem, GroupPlan, Options};
use attention_rollout::{Discard, DiscardScope, Problem, Result, Shape};

use crate::generate::{Case, Generated};
use crate::machine::{Buffer, Machine, download};
use crate::problems::{assert_right, bits, buffers};

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
        let plan = GroupPlan::on(&machine.runtime(), &problems, &Options::default()).unwrap();
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

    /// Submits the group.
    fn submit(&mut self, stream: &Arc<CudaStream>) {
        self.submit_after(stream, || ());
    }

    /// Submits the group; `begin` is called when everything is ready.
    fn submit_after(&mut self, stream: &Arc<CudaStream>, begin: impl FnOnce()) {
        let layers = layers(&self.buffers);
        run_after(&mut self.plan, stream, &layers, &mut self.outs, begin).unwrap();
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
    /// others are divided among fewer blocks, or none, because the group keeps the device busy.
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
        // Rows of an item are divided among blocks alone, and never in a group, where short matrices stay on chip.
        let plan = self.plan.to_string();
        let divided = plan.contains("rows_stream") || plan.contains("matrix_stream");
        assert!(same > 0 || divided || schedules.is_empty(), "{}", self.plan);
    }

    /// Runs the group, checks it, and returns how often it launched. A run launches and nothing else.
    fn check(&mut self, machine: &Machine) -> usize {
        let stream = machine.context.default_stream();
        let before = machine.vcuda.as_ref().map(|v| (v.counters(), v.usage()));
        self.submit(&stream);
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

/// The layers of each problem.
fn layers(buffers: &[Vec<Buffer>]) -> Vec<Vec<DeviceLayer<'_>>> {
    buffers
        .iter()
        .map(|buffers| buffers.iter().map(Buffer::layer).collect())
        .collect()
}

/// Runs `plan` on each problem's layers and output, of which only what the problem needs is given away.
fn run(
    plan: &mut GroupPlan,
    stream: &Arc<CudaStream>,
    layers: &[Vec<DeviceLayer<'_>>],
    outs: &mut [CudaSlice<f32>],
) -> Result<()> {
    run_after(plan, stream, layers, outs, || ())
}

/// The same; `begin` is called when everything is ready.
fn run_after(
    plan: &mut GroupPlan,
    stream: &Arc<CudaStream>,
    layers: &[Vec<DeviceLayer<'_>>],
    outs: &mut [CudaSlice<f32>],
    begin: impl FnOnce(),
) -> Result<()> {
    let mut views: Vec<_> = outs
        .iter_mut()
        .zip(plan.problems())
        .map(|(out, problem)| out.slice_mut(..problem.output_len()))
        .collect();
    let mut items: Vec<GroupItem<'_>> = layers
        .iter()
        .zip(&mut views)
        .map(|(layers, out)| GroupItem::new(layers, out))
        .collect();
    begin();
    plan.run(stream, &mut items)
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
