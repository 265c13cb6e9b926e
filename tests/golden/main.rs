//! Golden vectors: what a real GPU computes for each instruction form that the kernels use, replayed against the
//! interpreter. Without a recording the interpreter's instruction semantics rest on its own unit tests alone.
//!
//! Record on a machine with a GPU (no NVRTC needed; the driver compiles the PTX):
//! `cargo test --test golden -- --ignored record`, or the built test binary with the same arguments and
//! `ROLLOUT_GOLDEN_DIR` set to where the recording shall go.

mod forms;

use std::collections::BTreeMap;
use std::path::PathBuf;

use forms::{Compare, Form, forms};
use ptxemu::{Launch, Memory, Module, Options};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

fn golden_dir() -> PathBuf {
    std::env::var_os("ROLLOUT_GOLDEN_DIR").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden"),
        PathBuf::from,
    )
}

/// Runs `form` on the interpreter: `input` is `[inputs][32]`, the result `[outputs][32]`.
fn interpret(form: &Form, input: &[u32]) -> Vec<u32> {
    let module = Module::parse(&form.ptx()).unwrap_or_else(|e| panic!("{}: {e}", form.name));
    let kernel = module.kernel("form").expect("the module holds the kernel");
    let memory = Memory::new();
    let source = memory.alloc(4 * input.len());
    memory.write(source, bytemuck::cast_slice(input)).unwrap();
    let target = memory.alloc(128 * form.outputs);
    let params: Vec<u8> = [source, target]
        .iter()
        .flat_map(|p| p.to_le_bytes())
        .collect();
    ptxemu::launch(
        &module,
        kernel,
        &Launch::new(1, 32, &params),
        &memory,
        &Options::default(),
    )
    .unwrap_or_else(|fault| panic!("{}: {fault}", form.name));
    let mut output = vec![0u32; 32 * form.outputs];
    memory
        .read(target, bytemuck::cast_slice_mut(&mut output))
        .unwrap();
    output
}

/// Whether `got` may stand for the recorded word `want`.
fn agrees(compare: Compare, want: u32, got: u32) -> bool {
    let close = |want: f32, got: f32, tolerance: f32| {
        want.to_bits() == got.to_bits()
            || (want.is_nan() && got.is_nan())
            || (want - got).abs() <= tolerance
    };
    let halves =
        |word: u32| [word as u16, (word >> 16) as u16].map(|h| half::f16::from_bits(h).to_f32());
    match compare {
        Compare::Bits => want == got,
        Compare::F32Bits => close(f32::from_bits(want), f32::from_bits(got), -1.0),
        Compare::F16x2Bits => halves(want)
            .into_iter()
            .zip(halves(got))
            .all(|(want, got)| close(want, got, -1.0)),
        Compare::F32 { relative, floor } => {
            let (want, got) = (f32::from_bits(want), f32::from_bits(got));
            close(want, got, relative * want.abs().max(floor))
        }
        Compare::F16x2 { absolute } => halves(want)
            .into_iter()
            .zip(halves(got))
            .all(|(want, got)| close(want, got, absolute)),
    }
}

#[test]
fn every_form_runs_and_depends_on_its_input() {
    for form in forms() {
        let input = form.input();
        let output = interpret(form, &input);
        assert_eq!(
            output,
            interpret(form, &input),
            "{}: not repeatable",
            form.name
        );
        let mut other: Vec<u32> = input.iter().map(|word| word ^ 0x55).collect();
        other
            .chunks_exact_mut(32)
            .for_each(|operand| operand.rotate_right(1));
        assert_ne!(
            output,
            interpret(form, &other),
            "{}: does not see its input",
            form.name
        );
    }
}

#[test]
fn the_comparison_can_fail() {
    let one = 1f32.to_bits();
    assert!(!agrees(Compare::Bits, 1, 2));
    assert!(!agrees(Compare::F32Bits, one, one + 1));
    assert!(!agrees(
        Compare::F32 {
            relative: 1e-6,
            floor: 0.0
        },
        one,
        1.1f32.to_bits()
    ));
    assert!(!agrees(
        Compare::F32 {
            relative: 1e-6,
            floor: 0.0
        },
        one,
        f32::NAN.to_bits()
    ));
    assert!(!agrees(Compare::F16x2Bits, 0x3c00_3c00, 0x3c00_3c01));
    assert!(!agrees(
        Compare::F16x2 { absolute: 1e-3 },
        0x3c00_3c00,
        0x3c00_7e00
    ));
}

#[test]
fn recordings_replay() {
    let recordings: Vec<PathBuf> = std::fs::read_dir(golden_dir())
        .into_iter()
        .flatten()
        .map(|entry| entry.expect("the directory can be read").path())
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    if recordings.is_empty() {
        println!(
            "SKIPPED: tier 3: no golden vectors in {}; record them on a GPU with \
             `cargo test --test golden -- --ignored record`",
            golden_dir().display()
        );
    }
    for path in recordings {
        let bytes = std::fs::read(&path).unwrap();
        let recording = SafeTensors::deserialize(&bytes).unwrap();
        for form in forms() {
            // A device records the forms its architecture has.
            let Ok(input) = recording.tensor(&format!("{}/input", form.name)) else {
                continue;
            };
            let output = recording.tensor(&format!("{}/output", form.name)).unwrap();
            let words =
                |view: &TensorView<'_>| bytemuck::allocation::pod_collect_to_vec(view.data());
            let got = interpret(form, &words(&input));
            for (at, (&want, &got)) in words(&output).iter().zip(&got).enumerate() {
                assert!(
                    agrees(form.compare, want, got),
                    "{}: {}: output {} lane {}: the device gave {want:#010x}, the interpreter {got:#010x}",
                    path.display(),
                    form.name,
                    at / 32,
                    at % 32
                );
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU; writes <device>.safetensors into tests/data/golden"]
fn record() -> Result<(), Box<dyn std::error::Error>> {
    use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg, sys};
    // SAFETY: only asks whether the library can be opened.
    assert!(
        unsafe { sys::is_culib_present() },
        "no CUDA driver: golden vectors are recorded on a GPU"
    );
    let context = CudaContext::new(0)?;
    let (major, minor) = context.compute_capability()?;
    let device_sm = (10 * major + minor) as u32;
    let stream = context.default_stream();
    let mut tensors = BTreeMap::new();
    for form in forms().filter(|form| form.sm <= device_sm) {
        let input = form.input();
        let module = context.load_module(cudarc::nvrtc::Ptx::from_src(form.ptx()))?;
        let kernel = module.load_function("form")?;
        let source = stream.clone_htod(&input)?;
        let mut target = stream.alloc_zeros::<u32>(32 * form.outputs)?;
        let one_warp = LaunchConfig {
            grid_dim: (1, 1, 1),
            block_dim: (32, 1, 1),
            shared_mem_bytes: 0,
        };
        // SAFETY: the kernel takes two pointers, reads `[inputs][32]` and writes `[outputs][32]` words.
        unsafe {
            stream
                .launch_builder(&kernel)
                .arg(&source)
                .arg(&mut target)
                .launch(one_warp)
        }?;
        tensors.insert(format!("{}/input", form.name), input);
        tensors.insert(format!("{}/output", form.name), stream.clone_dtoh(&target)?);
    }
    let views = tensors
        .iter()
        .map(|(name, words)| {
            let shape = vec![words.len() / 32, 32];
            Ok((
                name,
                TensorView::new(Dtype::U32, shape, bytemuck::cast_slice(words))?,
            ))
        })
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    let device: String = context
        .name()?
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .collect();
    let path = golden_dir().join(format!("{device}.safetensors"));
    std::fs::create_dir_all(golden_dir())?;
    std::fs::write(&path, safetensors::serialize(views, None)?)?;
    println!(
        "recorded {} forms of sm_{device_sm} in {}",
        tensors.len() / 2,
        path.display()
    );
    Ok(())
}
