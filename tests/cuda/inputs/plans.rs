//! Every other kind of plan, and the cache of plans.

use std::num::NonZeroUsize;

use attention_rollout::Problem;
use attention_rollout::cuda::cudarc::driver::CudaSlice;
use attention_rollout::cuda::{
    DeviceLayer, GroupItem, GroupPlan, HostPlan, Options, PlanCache, RunInputs, StreamingPlan,
};

use super::{OnDevice, cases, open, rows, turn};
use crate::generate::Generated;
use crate::machine::{Buffer, Machine, download, machine, upload};
use crate::problems::{assert_right, buffers};

/// Runs `group` with the maps of `turns`, and with what a member is `given` for this run alone; checks all outputs.
fn run_group<'a>(
    machine: &Machine,
    group: &mut GroupPlan,
    turns: &[Generated],
    given: impl Fn(usize) -> Option<RunInputs<'a>>,
) {
    let stream = machine.context.default_stream();
    let maps: Vec<Vec<Buffer>> = turns.iter().map(|turn| buffers(machine, turn)).collect();
    let layers: Vec<Vec<DeviceLayer<'_>>> = maps
        .iter()
        .map(|maps| maps.iter().map(Buffer::layer).collect())
        .collect();
    let mut outs: Vec<CudaSlice<f32>> = turns
        .iter()
        .map(|turn| {
            let poison = vec![f32::NAN; turn.problem.output_len()];
            stream.clone_htod(&poison).unwrap()
        })
        .collect();
    let items = layers.iter().zip(&mut outs).enumerate();
    let mut items: Vec<_> = items
        .map(|(member, (layers, out))| {
            GroupItem::new(layers, out).with(given(member).unwrap_or_default())
        })
        .collect();
    group.run(&stream, &mut items).unwrap();
    drop(items);
    for (turn, out) in turns.iter().zip(&outs) {
        assert_right("grouped", turn, &download(&stream, out));
    }
}

#[test]
fn streams_groups_and_hosts_take_windows_too() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    let stream = machine.context.default_stream();
    let mut problems = Vec::new();
    for (what, case) in cases() {
        let turns: Vec<Generated> = (0..3).map(|index| turn(&case, index)).collect();
        let problem = open(&turns[0]);
        let mut streaming =
            StreamingPlan::on(&machine.runtime(), &problem, &Options::default()).unwrap();
        let two = NonZeroUsize::new(2);
        let runtimes = [machine.runtime()];
        let mut host = HostPlan::on(&runtimes, &problem, &Options::default(), two).unwrap();
        for turn in [&turns[1], &turns[2], &turns[0]] {
            streaming.set_windows(turn.problem.windows()).unwrap();
            host.set_windows(turn.problem.windows()).unwrap();
            if let Some(rows) = rows(&turn.problem) {
                streaming.set_rows(rows).unwrap();
                host.set_rows(rows).unwrap();
            }
            let len = problem.output_len();
            let mut out = stream.clone_htod(&vec![f32::NAN; len]).unwrap();
            let mut pass = streaming.begin(&stream, &mut out).unwrap();
            for maps in &turn.layers() {
                pass.push_layer(upload(&stream, maps).layer()).unwrap();
            }
            pass.finish().unwrap();
            assert_right(what, turn, &download(&stream, &out));
            let mut out = vec![f32::NAN; len];
            host.run(&turn.layers(), &mut out, &mut |_| {}).unwrap();
            assert_right(what, turn, &out);
            let on_device = OnDevice::new(&machine, turn);
            let mut out = stream.clone_htod(&vec![f32::NAN; len]).unwrap();
            let mut pass = streaming
                .begin_with(&stream, &mut out, on_device.inputs())
                .unwrap();
            for maps in &turn.layers() {
                pass.push_layer(upload(&stream, maps).layer()).unwrap();
            }
            pass.finish().unwrap();
            assert_right(what, turn, &download(&stream, &out));
        }
        problems.push((case, problem));
    }
    let opened: Vec<Problem> = problems
        .iter()
        .map(|(_, problem)| problem.clone())
        .collect();
    let mut group = GroupPlan::on(&machine.runtime(), &opened, &Options::default()).unwrap();
    for index in 1..3 {
        let turns: Vec<Generated> = problems.iter().map(|(case, _)| turn(case, index)).collect();
        for (member, turn) in turns.iter().enumerate() {
            group.set_windows(member, turn.problem.windows()).unwrap();
            if let Some(rows) = rows(&turn.problem) {
                group.set_rows(member, rows).unwrap();
            }
        }
        run_group(&machine, &mut group, &turns, |_| None);
    }
}

#[test]
fn members_of_a_group_are_given_windows_in_device_memory() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    let cases = [0, 2, 3, 6].map(|number| cases().swap_remove(number).1);
    let opened = cases.each_ref().map(|case| open(&turn(case, 0)));
    let mut group = GroupPlan::on(&machine.runtime(), &opened, &Options::default()).unwrap();
    // For one run alone, of all but the last; the next has again what the host said.
    for index in [1, 2, 0] {
        let turns: Vec<Generated> = (cases.iter().enumerate())
            .map(|(member, case)| turn(case, if member < 3 { index } else { 0 }))
            .collect();
        let on_device: Vec<_> = turns
            .iter()
            .map(|turn| OnDevice::new(&machine, turn))
            .collect();
        run_group(&machine, &mut group, &turns, |member| {
            (index > 0 && member < 3).then(|| on_device[member].inputs())
        });
    }
}

#[test]
fn a_cache_has_one_plan_for_all_windows() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    let mut plans = PlanCache::new(&machine.runtime(), &Options::default(), NonZeroUsize::MIN);
    let (what, case) = cases().swap_remove(2);
    for index in 0..3 {
        let turn = turn(&case, index);
        let plan = plans.get(&open(&turn)).unwrap();
        let got = machine.run(plan, &turn.layers());
        assert_right(what, &turn, &got);
    }
    assert_eq!(plans.len(), 1);
}
