//! Choosing by the clock.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use attention_rollout::cuda::nvrtc::Cache;
use attention_rollout::cuda::pipeline::Pipeline;
use attention_rollout::cuda::{self, Compiler, HostPlan, Options, Plan, PlanCache, Runtime, Timed};
use attention_rollout::{Error, Problem, Shape};
use vcuda::Code;

use crate::generate::{Case, Generated};
use crate::machine::{Machine, directed, machine};
use crate::problems::assert_right;

/// A problem that can be computed in several ways; on sm_75, for what newer devices do takes long in the interpreter.
fn case() -> Generated {
    let shape = Shape {
        layers: 2,
        batch: 3,
        heads: 2,
        tokens: 24,
    };
    Case::new(shape, 7).generate()
}

/// The directory of kernels, with nothing noted in it: only these tests note anything, one after the other.
fn without_notes(machine: &Machine) -> PathBuf {
    let directory = machine.compiler.cache.as_ref().and_then(Cache::directory);
    let directory = directory.unwrap().to_owned();
    for note in notes(&directory) {
        fs::remove_file(note).unwrap();
    }
    directory
}

fn runtime(machine: &Machine, cache: Cache) -> Runtime {
    let compiler = Compiler {
        cache: Some(cache),
        ..machine.compiler.clone()
    };
    Runtime::new(&machine.context, &compiler).unwrap()
}

fn tuning() -> Options {
    Options {
        tune: true,
        ..Options::default()
    }
}

fn plan(runtime: &Runtime, problem: &Problem) -> Plan {
    Plan::on(runtime, problem, &tuning()).unwrap()
}

/// Launches of the stand-in until now; on a GPU nobody counts them.
fn launches(machine: &Machine) -> usize {
    machine
        .vcuda
        .as_ref()
        .map_or(0, |vcuda| vcuda.launches().len())
}

fn notes(directory: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(directory).unwrap();
    let files = files.map(|entry| entry.unwrap().path());
    files
        .filter(|file| file.extension().is_some_and(|extension| extension == "txt"))
        .collect()
}

/// The only note of a directory.
fn note(directory: &Path) -> PathBuf {
    let [note] = <[PathBuf; 1]>::try_from(notes(directory)).unwrap();
    note
}

fn pipelines(timed: &[Timed]) -> Vec<Pipeline> {
    let timed = timed.iter();
    timed
        .map(|timed| timed.candidate.schedule.pipeline())
        .collect()
}

#[test]
fn the_fastest_way_is_taken_and_remembered() {
    let Some(machine) = machine("sm_75") else {
        return;
    };
    let generated = case();
    let problem = &generated.problem;
    let directory = without_notes(&machine);
    let cache = || Cache::at(&directory);
    let first = runtime(&machine, cache());

    let timed = cuda::tune(&first, problem, &Options::default()).unwrap();
    let all = cuda::candidates(problem, first.limits(), &Options::default()).unwrap();
    assert!(all.len() > 2, "{all:?}");
    assert_eq!(timed.len(), all.len());
    assert!(timed.iter().all(|timed| timed.measured_us > 0.0));
    assert!(timed.is_sorted_by_key(|timed| timed.measured_us));
    let timed = pipelines(&timed);
    for candidate in all {
        assert!(timed.contains(&candidate.schedule.pipeline()));
    }

    // By this runtime, by another that asks the disk, and by every kind of plan of one problem: without a launch.
    for runtime in [first.clone(), runtime(&machine, cache())] {
        let before = launches(&machine);
        let mut plan = plan(&runtime, problem);
        assert_eq!(plan.schedule().pipeline(), timed[0]);
        assert_eq!(launches(&machine), before);
        let got = machine.run(&mut plan, &generated.layers());
        assert_right("tuned", &generated, &got);
    }
    let mut plans = PlanCache::new(&first, &tuning(), NonZeroUsize::MIN);
    assert_eq!(plans.get(problem).unwrap().schedule().pipeline(), timed[0]);
    let host = HostPlan::on(
        std::slice::from_ref(&first),
        problem,
        &tuning(),
        NonZeroUsize::new(3),
    );
    assert_eq!(host.unwrap().schedule().pipeline(), timed[0]);

    // What is forced is not a matter of time, and without being asked nobody looks.
    let slowest = timed[timed.len() - 1];
    let forced = Options {
        pipeline: Some(slowest),
        ..tuning()
    };
    let forced = Plan::on(&first, problem, &forced).unwrap();
    assert_eq!(forced.schedule().pipeline(), slowest);
    fs::write(note(&directory), format!("{slowest:?}")).unwrap();
    let untold = Plan::on(&runtime(&machine, cache()), problem, &Options::default());
    let chosen = cuda::choose(problem, first.limits(), &Options::default()).unwrap();
    assert_eq!(*untold.unwrap().schedule(), chosen);
    // But who asks goes by the note.
    let told = plan(&runtime(&machine, cache()), problem);
    assert_eq!(told.schedule().pipeline(), slowest);
}

#[test]
fn what_is_no_note_is_found_out_again() {
    let Some(machine) = directed("sm_75") else {
        return;
    };
    let generated = case();
    let directory = without_notes(&machine);
    let cache = || Cache::at(&directory);
    let before = launches(&machine);
    let first = plan(&runtime(&machine, cache()), &generated.problem);
    assert!(launches(&machine) > before);
    let note = note(&directory);
    let text = fs::read_to_string(&note).unwrap();
    assert_eq!(text, format!("{:?}", first.schedule().pipeline()));
    for bad in [&b""[..], b"a way that was given up", &[0xff; 9]] {
        fs::write(&note, bad).unwrap();
        let before = launches(&machine);
        let plan = plan(&runtime(&machine, cache()), &generated.problem);
        assert!(launches(&machine) > before, "{bad:?}");
        let text = fs::read_to_string(&note).unwrap();
        assert_eq!(text, format!("{:?}", plan.schedule().pipeline()));
    }
    // Other items, another driver: other notes. And without a directory a runtime remembers by itself.
    let before = launches(&machine);
    machine.vcuda().set_driver_version(99_000);
    plan(&runtime(&machine, cache()), &generated.problem);
    assert!(launches(&machine) > before);
    let forgetful = runtime(&machine, Cache::disabled());
    plan(&forgetful, &generated.problem);
    let before = launches(&machine);
    plan(&forgetful, &generated.problem);
    assert_eq!(launches(&machine), before);
}

#[test]
fn runs_of_fewer_items_are_timed_as_such() {
    let Some(machine) = directed("sm_75") else {
        return;
    };
    let generated = case();
    let directory = without_notes(&machine);
    let runtime = runtime(&machine, Cache::at(&directory));
    let before = launches(&machine);
    let two = NonZeroUsize::new(2);
    let mut host = HostPlan::on(&[runtime], &generated.problem, &tuning(), two).unwrap();
    assert!(launches(&machine) > before);
    let mut out = vec![f32::NAN; generated.problem.output_len()];
    host.run(&generated.layers(), &mut out, &mut |_| {})
        .unwrap();
    assert_right("tuned, in chunks", &generated, &out);
}

#[test]
fn what_fails_leaves_nothing_behind() {
    let Some(machine) = directed("sm_75") else {
        return;
    };
    let generated = case();
    let problem = &generated.problem;
    let vcuda = machine.vcuda();
    let directory = without_notes(&machine);
    let before = vcuda.usage();
    let is_clean = |what: &str| {
        let after = vcuda.usage();
        assert_eq!(after.bytes, before.bytes, "{what}");
        assert_eq!(after.objects, before.objects, "{what}");
    };
    for call in [
        "cuDeviceGetName",
        "cuMemGetInfo_v2",
        "cuMemAlloc_v2",
        "cuMemsetD8Async",
        "cuStreamCreate",
        "cuEventCreate",
        "cuEventRecord",
        "cuEventSynchronize",
        "cuModuleLoadData",
    ] {
        let runtime = runtime(&machine, Cache::at(&directory));
        vcuda.fail_call(call, 1, Code::NotPermitted);
        let error = Plan::on(&runtime, problem, &tuning()).err().unwrap();
        drop(runtime);
        assert!(
            error.to_string().contains("NOT_PERMITTED"),
            "{call}: {error}"
        );
        is_clean(call);
    }
    let runtime = runtime(&machine, Cache::at(&directory));
    vcuda.set_memory_limit(0, before.bytes + 1000);
    let error = cuda::tune(&runtime, problem, &tuning()).err().unwrap();
    assert!(
        matches!(error, Error::OutOfDeviceMemory { .. }),
        "{error:?}"
    );
    vcuda.set_memory_limit(0, u64::MAX);
    let mut plan = plan(&runtime, problem);
    let got = machine.run(&mut plan, &generated.layers());
    assert_right("tuned after failures", &generated, &got);
}
