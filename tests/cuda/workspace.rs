//! The memory that runs work in: nothing stays in it, and it may be lent.

use attention_rollout::cuda::cudarc::driver::{CudaSlice, DevicePtr};
use attention_rollout::cuda::{
    GroupItem, GroupPlan, HostPlan, Options, Plan, StreamingPlan, Workspace,
};
use attention_rollout::{Error, Shape};
use vcuda::Code;

use crate::generate::{Case, Generated};
use crate::machine::{Buffer, Machine, directed, download, machine, upload};
use crate::problems::{assert_right, bits, buffers, cases};

/// Device memory to lend, aligned as allocations are.
struct Lent {
    memory: CudaSlice<u8>,
    bytes: usize,
}

impl Lent {
    fn new(machine: &Machine, bytes: usize) -> Self {
        let stream = machine.context.default_stream();
        let memory = stream.alloc_zeros(bytes.max(1)).unwrap();
        Lent { memory, bytes }
    }

    fn options(&self) -> Options {
        let address = self.memory.device_ptr(self.memory.stream()).0;
        Options {
            // SAFETY: every test keeps the memory until its plans are gone, and uses one stream.
            workspace: unsafe { Workspace::borrowed(address, self.bytes) },
            ..Options::default()
        }
    }

    /// Makes every f32 in it NaN.
    fn poison(&mut self) {
        let stream = self.memory.stream().clone();
        let poison = vec![0xff_u8; self.memory.len()];
        stream.memcpy_htod(&poison, &mut self.memory).unwrap();
    }
}

/// The cases, and one whose blocks tell each other words that last from run to run, with the kernel that does so.
fn all_cases() -> Vec<(&'static str, Case, Option<String>)> {
    let cases = cases().into_iter();
    let mut cases: Vec<_> = cases.map(|(what, case)| (what, case, None)).collect();
    let shape = Shape {
        layers: 3,
        batch: 1,
        heads: 2,
        tokens: 70,
    };
    let kernel = "rows_stream_f32_f32_m1_k1_mean".to_owned();
    cases.push(("exchanged words", Case::new(shape, 8), Some(kernel)));
    cases
}

#[test]
fn plans_share_a_workspace_in_which_nothing_stays() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    let runtime = machine.runtime();
    let required = |case: &Case, variant: &Option<String>| {
        let options = Options {
            variant: variant.clone(),
            ..Options::default()
        };
        let problem = case.generate().problem;
        Plan::required_workspace(&problem, runtime.limits(), &options).unwrap()
    };
    let most = all_cases()
        .iter()
        .map(|(_, case, variant)| required(case, variant))
        .max();
    let mut lent = Lent::new(&machine, most.unwrap());
    let mut plans: Vec<(&str, Generated, Plan, Vec<f32>)> = Vec::new();
    for (what, case, variant) in all_cases() {
        let generated = case.generate();
        let mut owning = machine.plan(&generated.problem, |options| {
            options.variant = variant.clone();
        });
        let want = machine.run(&mut owning, &generated.layers());
        assert_right(what, &generated, &want);
        let options = Options {
            variant: variant.clone(),
            ..lent.options()
        };
        let plan = Plan::on(&runtime, &generated.problem, &options).unwrap();
        assert_eq!(plan.workspace_bytes(), required(&case, &variant), "{what}");
        assert_eq!(plan.owned_bytes(), owning.owned_bytes(), "{what}");
        plans.push((what, generated, plan, want));
    }
    assert!(plans.iter().any(|(.., plan, _)| plan.workspace_bytes() > 0));
    // First over NaN, then over what other plans have left there.
    for round in 0..3 {
        for (what, generated, plan, want) in &mut plans {
            if round < 2 {
                lent.poison();
            }
            let got = machine.run(plan, &generated.layers());
            assert_eq!(bits(&got), bits(want), "{what}, round {round}");
        }
    }
}

#[test]
fn streams_and_groups_borrow_too() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    let runtime = machine.runtime();
    let stream = machine.context.default_stream();
    let generated: Vec<Generated> = cases().iter().map(|(_, case)| case.generate()).collect();
    for generated in &generated {
        let problem = &generated.problem;
        let options = Options::default();
        let required = StreamingPlan::required_workspace(problem, runtime.limits(), &options);
        let mut lent = Lent::new(&machine, required.unwrap());
        let mut plan = StreamingPlan::on(&runtime, problem, &lent.options()).unwrap();
        assert_eq!(plan.workspace_bytes(), lent.bytes);
        let mut out = stream.alloc_zeros::<f32>(problem.output_len()).unwrap();
        for _ in 0..2 {
            lent.poison();
            let mut pass = plan.begin(&stream, &mut out).unwrap();
            for maps in &generated.layers() {
                pass.push_layer(upload(&stream, maps).layer()).unwrap();
            }
            pass.finish().unwrap();
            assert_right("streamed", generated, &download(&stream, &out));
        }
    }
    let problems: Vec<_> = generated.iter().map(|g| g.problem.clone()).collect();
    let options = Options::default();
    let required = GroupPlan::required_workspace(&problems, runtime.limits(), &options).unwrap();
    let mut lent = Lent::new(&machine, required);
    let mut group = GroupPlan::on(&runtime, &problems, &lent.options()).unwrap();
    let buffers: Vec<Vec<Buffer>> = generated.iter().map(|g| buffers(&machine, g)).collect();
    let layers: Vec<Vec<_>> = buffers
        .iter()
        .map(|buffers| buffers.iter().map(Buffer::layer).collect())
        .collect();
    let mut outs: Vec<CudaSlice<f32>> = problems
        .iter()
        .map(|problem| stream.alloc_zeros(problem.output_len()).unwrap())
        .collect();
    for _ in 0..2 {
        lent.poison();
        let items = layers.iter().zip(&mut outs);
        let mut items: Vec<_> = items
            .map(|(layers, out)| GroupItem::new(layers, out))
            .collect();
        group.run(&stream, &mut items).unwrap();
        drop(items);
        for (generated, out) in generated.iter().zip(&outs) {
            assert_right("grouped", generated, &download(&stream, out));
        }
    }
    lent.bytes -= 1;
    let short = GroupPlan::on(&runtime, &problems, &lent.options()).err();
    assert!(
        matches!(short, Some(Error::WorkspaceLen { required: needed, got }) if needed == required && got == required - 1)
    );
}

#[test]
fn a_run_after_an_aborted_one_is_right() {
    let Some(machine) = directed("sm_90") else {
        return;
    };
    for (what, case, variant) in all_cases() {
        let generated = case.generate();
        let mut plan = machine.plan(&generated.problem, |options| options.variant = variant);
        let stream = machine.context.default_stream();
        let buffers = buffers(&machine, &generated);
        let layers: Vec<_> = buffers.iter().map(Buffer::layer).collect();
        // Cut off before the first launch, and before the last.
        for launch in [1, plan.schedule().launches()] {
            machine
                .vcuda()
                .fail_launch(launch as u64, Code::NotPermitted);
            let aborted = plan.run_alloc(&stream, &layers);
            assert!(matches!(aborted, Err(Error::Launch { .. })), "{what}");
            let out = plan.run_alloc(&stream, &layers).unwrap();
            assert_right(what, &generated, &download(&stream, &out));
        }
    }
}

#[test]
fn workspaces_that_cannot_be_used_are_refused() {
    let Some(machine) = directed("sm_90") else {
        return;
    };
    let vcuda = machine.vcuda();
    let (_, case) = cases().swap_remove(4);
    let problem = case.generate().problem;
    let runtime = machine.runtime();
    let options = Options::default();
    let required = Plan::required_workspace(&problem, runtime.limits(), &options).unwrap();
    let mut lent = Lent::new(&machine, required);
    let before = vcuda.usage().bytes;
    lent.bytes = required - 4;
    let short = Plan::on(&runtime, &problem, &lent.options()).err();
    assert!(
        matches!(short, Some(Error::WorkspaceLen { required: needed, got }) if needed == required && got == required - 4)
    );
    let address = lent.memory.device_ptr(lent.memory.stream()).0;
    let misaligned = Options {
        // SAFETY: never used.
        workspace: unsafe { Workspace::borrowed(address + 128, required) },
        ..Options::default()
    };
    assert!(matches!(
        Plan::on(&runtime, &problem, &misaligned).err(),
        Some(Error::Misaligned { required: 256, .. })
    ));
    assert!(matches!(
        HostPlan::on(&[runtime], &problem, &lent.options(), None).err(),
        Some(Error::BorrowedWorkspace)
    ));
    assert_eq!(vcuda.usage().bytes, before);
    assert_eq!(vcuda.counters().launches, 0);
}
