//! What is refused, with nothing launched.

use attention_rollout::cuda::{self, DeviceIndices, RunInputs};
use attention_rollout::{Error, Output, Problem, StartRows};

use super::{OnDevice, cases, open, tell, turn, window};
use crate::machine::{Buffer, directed};
use crate::problems::{assert_right, buffers};

#[test]
fn what_is_not_taken_or_does_not_fit_is_refused() {
    let Some(machine) = directed("sm_90,sm_80") else {
        return;
    };
    let vcuda = machine.vcuda();
    let (_, case) = cases().swap_remove(2);
    let turn = turn(&case, 0);
    let mut fixed = case.clone();
    fixed.config.output = Output::Rows(StartRows::Last);
    let fixed = fixed.generate();
    let stream = machine.context.default_stream();
    let buffers = buffers(&machine, &fixed);
    let layers: Vec<_> = buffers.iter().map(Buffer::layer).collect();
    let len = fixed.problem.output_len();
    let mut out = stream.alloc_zeros::<f32>(len).unwrap();
    let on_device = OnDevice::new(&machine, &turn);
    let launched = vcuda.counters().launches;
    let full = Problem::new(
        *fixed.problem.shape(),
        fixed.problem.dtype(),
        fixed.problem.config().clone(),
    );
    let mut plan = machine.plan(&full.unwrap(), |_| {});
    let windows = turn.problem.windows();
    assert!(matches!(
        plan.set_windows(windows),
        Err(Error::FixedInput {
            what: "windows",
            ..
        })
    ));
    assert!(matches!(
        plan.set_rows(&[0; 3]),
        Err(Error::FixedInput {
            what: "start rows",
            ..
        })
    ));
    let refused = plan.run_with(&stream, &layers, &mut out, on_device.inputs());
    assert!(matches!(refused, Err(Error::FixedInput { .. })));
    let mut plan = machine.plan(&open(&turn), |_| {});
    let mut with = |inputs| {
        plan.run_with(&stream, &layers, &mut out, inputs)
            .unwrap_err()
    };
    let short = on_device.windows.slice(..5);
    let short = RunInputs {
        windows: Some((&short).into()),
        ..RunInputs::default()
    };
    assert!(matches!(
        with(short),
        Error::Len {
            expected: 6,
            got: 5,
            ..
        }
    ));
    let odd = RunInputs {
        // SAFETY: never read.
        rows: Some(unsafe { DeviceIndices::from_raw(0x1002, 3) }),
        ..RunInputs::default()
    };
    assert!(matches!(with(odd), Error::Misaligned { required: 4, .. }));
    let other = cuda::context(1).unwrap().default_stream();
    let foreign = other.alloc_zeros::<i32>(3).unwrap();
    let foreign = RunInputs {
        rows: Some((&foreign).into()),
        ..RunInputs::default()
    };
    assert!(matches!(
        with(foreign),
        Error::WrongDevice {
            expected: 0,
            got: 1,
            ..
        }
    ));
    plan.set_windows(&[window(0, 2); 3]).unwrap();
    plan.set_rows(&[0, 2, 0]).unwrap();
    let outside = plan.run(&stream, &layers, &mut out).unwrap_err();
    assert!(matches!(
        outside,
        Error::StartRow {
            item: 1,
            row: 2,
            len: 2
        }
    ));
    assert_eq!(vcuda.counters().launches, launched);
    // A copy that fails is made again.
    tell(&mut plan, &turn);
    vcuda.fail_call("cuMemcpyHtoDAsync_v2", 1, vcuda::Code::NotPermitted);
    assert!(plan.run(&stream, &layers, &mut out).is_err());
    vcuda.fail_launch(1, vcuda::Code::NotPermitted);
    assert!(plan.run(&stream, &layers, &mut out).is_err());
    let got = machine.run(&mut plan, &turn.layers());
    assert_right("after failures", &turn, &got);
}
