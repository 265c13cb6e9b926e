//! What runs are given: addresses, views, lengths, devices; and what is refused.

use attention_rollout::cuda::{self, DeviceLayer, DeviceOutput};
use attention_rollout::{DType, Error, HostLayer, Problem, RolloutConfig, Shape};

use crate::generate::{Case, maps_of};
use crate::machine::{download, machine};
use crate::problems::{assert_right, buffers};

#[test]
fn raw_addresses_work_and_what_does_not_fit_is_refused() {
    let Some(machine) = machine("sm_90,sm_80") else {
        return;
    };
    let case = Case::new(
        Shape {
            layers: 2,
            batch: 2,
            heads: 2,
            tokens: 9,
        },
        4,
    );
    let generated = case.generate();
    let mut plan = machine.plan(&generated.problem, |_| {});
    let stream = machine.context.default_stream();
    let buffers = buffers(&machine, &generated);
    let mut out = stream
        .alloc_zeros::<f32>(generated.problem.output_len())
        .unwrap();
    let (len, dtype) = (2 * 2 * 81, DType::F32);
    let address = |index: usize| maps_of(&buffers[index].layer()).address();
    let out_address = DeviceOutput::from(&mut out).address();
    // SAFETY: the buffers live to the end of the test, and everything is on one stream.
    let raw = |address, len| unsafe { DeviceLayer::from_raw(address, len, dtype) };
    // SAFETY: as above.
    let raw_out = |address| unsafe { DeviceOutput::from_raw(address, 18) };
    let good = || vec![raw(address(0), len), raw(address(1), len)];
    plan.run(&stream, &good(), raw_out(out_address)).unwrap();
    assert_right("raw addresses", &generated, &download(&stream, &out));

    let mut refused =
        |layers: Vec<DeviceLayer<'_>>, out| plan.run(&stream, &layers, out).unwrap_err();
    assert!(matches!(
        refused(vec![raw(address(0), len)], raw_out(out_address)),
        Error::Count {
            expected: 2,
            got: 1,
            ..
        }
    ));
    assert!(matches!(
        refused(
            vec![raw(address(0), len), raw(address(1), len - 1)],
            raw_out(out_address)
        ),
        Error::LayerLen {
            layer: 1,
            operand: "maps",
            expected: 324,
            got: 323
        }
    ));
    // SAFETY: never read.
    let half = unsafe { DeviceLayer::from_raw(address(0), len, DType::F16) };
    assert!(matches!(
        refused(vec![half, raw(address(1), len)], raw_out(out_address)),
        Error::LayerDType { layer: 0, .. }
    ));
    assert!(matches!(
        refused(
            vec![raw(address(0) + 2, len), raw(address(1), len)],
            raw_out(out_address)
        ),
        Error::Misaligned { required: 4, .. }
    ));
    assert!(matches!(
        refused(good(), raw_out(address(1) + 4 * 320)),
        Error::Overlap {
            layer: 1,
            bytes: 16
        }
    ));
    // SAFETY: never written.
    let short = unsafe { DeviceOutput::from_raw(out_address, 17) };
    assert!(matches!(
        refused(good(), short),
        Error::Len {
            expected: 18,
            got: 17,
            ..
        }
    ));
    if machine.vcuda.is_some() {
        let other = cuda::context(1).unwrap();
        let error = plan
            .run(&other.default_stream(), &good(), raw_out(out_address))
            .unwrap_err();
        assert!(matches!(
            error,
            Error::WrongDevice {
                expected: 0,
                got: 1,
                ..
            }
        ));
        let foreign = other.default_stream().alloc_zeros::<f32>(len).unwrap();
        let layers = vec![raw(address(0), len), DeviceLayer::from(&foreign)];
        let error = plan
            .run(&stream, &layers, raw_out(out_address))
            .unwrap_err();
        assert!(error.to_string().contains("layer 1"), "{error}");
    }
}

#[test]
fn a_misaligned_view_is_read_as_it_is() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    let shape = Shape {
        layers: 2,
        batch: 2,
        heads: 3,
        tokens: 16,
    };
    let mut case = Case::new(shape, 9);
    case.dtype = DType::F16;
    let generated = case.generate();
    let mut plan = machine.plan(&generated.problem, |_| {});
    let stream = machine.context.default_stream();
    let shifted: Vec<_> = generated
        .layers()
        .iter()
        .map(|maps| {
            let maps = maps_of(maps);
            let maps: &[half::f16] = maps.as_slice().expect("the case is f16");
            let values: Vec<_> = [&maps[..1], maps].concat();
            stream.clone_htod(&values).unwrap()
        })
        .collect();
    let views: Vec<_> = shifted.iter().map(|buffer| buffer.slice(1..)).collect();
    let layers: Vec<_> = views.iter().map(DeviceLayer::from).collect();
    let mut out = stream
        .alloc_zeros::<f32>(generated.problem.output_len())
        .unwrap();
    plan.run(&stream, &layers, &mut out).unwrap();
    assert_right(
        "shifted by one element",
        &generated,
        &download(&stream, &out),
    );
}

#[test]
fn an_empty_batch_is_an_empty_result() {
    let Some(machine) = machine("sm_90") else {
        return;
    };
    let shape = Shape {
        layers: 2,
        batch: 0,
        heads: 2,
        tokens: 5,
    };
    let problem = Problem::new(shape, DType::F32, RolloutConfig::default()).unwrap();
    let mut plan = machine.plan(&problem, |_| {});
    assert!(
        machine
            .run(&mut plan, &[HostLayer::from(&[0.0f32; 0][..]); 2])
            .is_empty()
    );
    assert_eq!(plan.workspace_bytes(), 0);
}
