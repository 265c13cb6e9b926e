//! The machine that tests run on, and how they run a rollout on it.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::{env, fs};

use attention_rollout::cuda::cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, DevicePtr, DeviceRepr,
};
use attention_rollout::cuda::nvrtc::{Cache, Nvrtc};
use attention_rollout::cuda::{
    self, Compiler, DeviceLayer, DeviceTensor, ImageKind, Options, Plan, Runtime,
};
use attention_rollout::{DType, Element, HostLayer, HostTensor, Layer, Problem};
use half::{bf16, f16};
use vcuda::client::Vcuda;

/// A device to test on.
pub struct Machine {
    // Dropped in this order: nothing of the driver may outlive the stand-in.
    pub context: Arc<CudaContext>,
    pub compiler: Compiler,
    /// `None` on a real GPU.
    pub vcuda: Option<Vcuda>,
}

/// Whether a real driver is to be used.
pub fn real_gpu() -> bool {
    env::var_os("ROLLOUT_REQUIRE_GPU").is_some_and(|value| value == "1")
        || Path::new("/dev/nvidiactl").exists()
}

/// Says on stderr that this test did not run, past the harness, which keeps the output of tests that pass.
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {reason}");
}

/// The compiler to test with; `None`, said aloud, where there is none.
pub fn compiler() -> Option<Nvrtc> {
    crate::nvrtc::nvrtcs().into_iter().next()
}

/// A device like `model`, or the real one; `None`, said aloud, where there is no compiler.
pub fn machine(model: &str) -> Option<Machine> {
    let nvrtc = compiler()?;
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels");
    fs::create_dir_all(&cache).expect("the target directory is writable");
    let real = real_gpu();
    let vcuda = (!real).then(|| vcuda::client::install(model).unwrap_or_else(|e| panic!("{e}")));
    let compiler = Compiler {
        image: if real {
            ImageKind::Cubin
        } else {
            ImageKind::Ptx
        },
        nvrtc: Some(nvrtc),
        cache: Some(Cache::at(cache)),
    };
    let context = cuda::context(0).unwrap_or_else(|error| panic!("{error}"));
    Some(Machine {
        context,
        compiler,
        vcuda,
    })
}

/// A device like `model` whose driver the test directs; `None`, said aloud, on a real GPU or where there is no compiler.
pub fn directed(model: &str) -> Option<Machine> {
    let machine = machine(model)?;
    if machine.vcuda.is_none() {
        skip("it directs the stand-in driver, and this is a GPU");
        return None;
    }
    Some(machine)
}

/// A process of its own for a test of this program.
pub fn process_of(test: &str) -> Command {
    let mut process = Command::new(env::current_exe().unwrap());
    process.args(["--exact", test]);
    process
}

/// Runs a test in its own process.
pub fn assert_passes(process: &mut Command) {
    let output = process.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

/// A layer on the device.
pub enum Buffer {
    F32(CudaSlice<f32>),
    F16(CudaSlice<f16>),
    Bf16(CudaSlice<bf16>),
    /// A layer of several tensors.
    Tensors(Box<Layer<Buffer>>),
}

impl Buffer {
    pub fn layer(&self) -> DeviceLayer<'_> {
        match self {
            Buffer::Tensors(layer) => layer.map(Buffer::tensor),
            maps => maps.tensor().into(),
        }
    }

    fn tensor(&self) -> DeviceTensor<'_> {
        match self {
            Buffer::F32(elements) => elements.into(),
            Buffer::F16(elements) => elements.into(),
            Buffer::Bf16(elements) => elements.into(),
            Buffer::Tensors(_) => panic!("a layer, not a tensor"),
        }
    }
}

/// The elements, or one where there is none: nobody allocates nothing.
fn at_least_one<T: Element>(maps: &HostTensor<'_>) -> Vec<T> {
    match maps.as_slice().expect("elements of their type") {
        [] => vec![T::from_f32(0.0)],
        values => values.to_vec(),
    }
}

/// Copies the tensors of `layer` into buffers of exactly their size.
pub fn upload(stream: &Arc<CudaStream>, layer: &HostLayer<'_>) -> Buffer {
    match layer {
        Layer::Maps(maps) => upload_tensor(stream, maps),
        several => Buffer::Tensors(Box::new(
            several.map(|tensor| upload_tensor(stream, tensor)),
        )),
    }
}

fn upload_tensor(stream: &Arc<CudaStream>, tensor: &HostTensor<'_>) -> Buffer {
    match tensor.dtype() {
        DType::F32 => Buffer::F32(stream.clone_htod(&at_least_one(tensor)).unwrap()),
        DType::F16 => Buffer::F16(stream.clone_htod(&at_least_one(tensor)).unwrap()),
        DType::Bf16 => Buffer::Bf16(stream.clone_htod(&at_least_one(tensor)).unwrap()),
    }
}

/// Copies a buffer to the host and waits for it.
pub fn download<T: DeviceRepr + Clone, B: DevicePtr<T>>(
    stream: &Arc<CudaStream>,
    buffer: &B,
) -> Vec<T> {
    let values = stream.clone_dtoh(buffer).unwrap();
    stream.synchronize().unwrap();
    values
}

impl Machine {
    /// The device, with the machine's compiler and no kernel loaded.
    pub fn runtime(&self) -> Runtime {
        Runtime::new(&self.context, &self.compiler).unwrap_or_else(|error| panic!("{error}"))
    }

    /// A plan on a runtime of its own, with these options.
    pub fn plan(&self, problem: &Problem, change: impl FnOnce(&mut Options)) -> cuda::Plan {
        let mut options = Options::default();
        change(&mut options);
        Plan::on(&self.runtime(), problem, &options).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Runs `plan` once over host layers, into an output of NaN.
    pub fn run(&self, plan: &mut Plan, layers: &[HostLayer<'_>]) -> Vec<f32> {
        let stream = self.context.default_stream();
        let buffers: Vec<Buffer> = layers.iter().map(|maps| upload(&stream, maps)).collect();
        let layers: Vec<DeviceLayer<'_>> = buffers.iter().map(Buffer::layer).collect();
        let len = plan.problem().output_len();
        let mut out = stream.clone_htod(&vec![f32::NAN; len.max(1)]).unwrap();
        plan.run(&stream, &layers, &mut out.slice_mut(..len))
            .unwrap_or_else(|error| panic!("{error}: {}", self.message()));
        let mut values = download(&stream, &out);
        values.truncate(len);
        values
    }

    /// The stand-in driver of a [`directed`] machine.
    pub fn vcuda(&self) -> &Vcuda {
        self.vcuda.as_ref().expect("directed")
    }

    /// What the stand-in says about the last failure.
    pub fn message(&self) -> String {
        self.vcuda.as_ref().map(Vcuda::message).unwrap_or_default()
    }
}
