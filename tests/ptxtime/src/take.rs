//! Takes the traces of a run: the crate's own host code on the stand-in driver, with maps that nobody wrote.

use crate::Line;
use attention_rollout::cuda::cudarc::driver::{
    CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DriverError, LaunchConfig, PushKernelArg,
};
use attention_rollout::cuda::cudarc::nvrtc::Ptx;
use attention_rollout::cuda::kernel;
use attention_rollout::cuda::nvrtc::{self, Cache, Image, Nvrtc, Source, Target};
use attention_rollout::cuda::variant::Entry;
use attention_rollout::cuda::{
    self, Compiler, DeviceLayer, DeviceOutput, DeviceTensor, GroupItem, GroupPlan, ImageKind,
    Options, Plan, Runtime,
};
use attention_rollout::{DType, Layer, Problem};
use ptxemu::trace::LaunchTrace;
use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write;
use std::sync::Arc;
use vcuda::client::Vcuda;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The architecture of the devices that are known.
const ARCH: u32 = 90;
const MODEL: &str = "sm_90";
/// Blocks of a launch that are traced; blocks of a launch that several problems share differ.
const SAMPLE: u32 = 3;
const GROUP_SAMPLE: u32 = 12;

/// The compiler to take traces with: that of `ROLLOUT_NVRTC_13`, or the one that is found. `None`, said aloud, where there
/// is none.
///
/// # Panics
/// Where there is none and `ROLLOUT_REQUIRE_NVRTC=1`.
pub fn compiler() -> Option<Nvrtc> {
    let found = match std::env::var_os("ROLLOUT_NVRTC_13") {
        Some(file) => Nvrtc::open(file),
        None => Nvrtc::load(),
    };
    match found {
        Ok(nvrtc) => Some(nvrtc),
        Err(error) => {
            let required =
                std::env::var_os("ROLLOUT_REQUIRE_NVRTC").is_some_and(|value| value == "1");
            assert!(!required, "{error}");
            // Not through `eprintln`, which the test harness keeps to itself when a test passes.
            let _ = writeln!(std::io::stderr(), "SKIPPED: traces need NVRTC: {error}");
            None
        }
    }
}

/// What traces are taken with.
pub struct Taker {
    nvrtc: Nvrtc,
    cache: Cache,
}

impl Taker {
    /// Compiles with `nvrtc`, and keeps what it compiled in `cache`.
    pub fn new(nvrtc: Nvrtc, cache: Cache) -> Self {
        Taker { nvrtc, cache }
    }

    /// Takes the traces of one run of `problems`, as a group where there are several, by the kernel `variant` where one
    /// is named.
    ///
    /// # Errors
    /// Those of plans, of the compiler and of the stand-in driver.
    pub fn take(&self, problems: &[Problem], variant: Option<&str>) -> Result<Line> {
        let vcuda = vcuda::client::install(MODEL)?;
        vcuda.trace(match problems.len() {
            1 => SAMPLE,
            _ => GROUP_SAMPLE,
        });
        let line = self.run(&vcuda, problems, variant);
        line.map_err(|error| format!("{error} {}", vcuda.message()).into())
    }

    fn run(&self, vcuda: &Vcuda, problems: &[Problem], variant: Option<&str>) -> Result<Line> {
        let options = Options {
            variant: variant.map(str::to_owned),
            ..Options::default()
        };
        let compiler = Compiler {
            image: ImageKind::Ptx,
            nvrtc: Some(self.nvrtc.clone()),
            cache: Some(self.cache.clone()),
        };
        let context = cuda::context(0)?;
        let runtime = Runtime::new(&context, &compiler)?;
        let stream = context.default_stream();
        let maps = problems.iter().map(|problem| Maps::new(&stream, problem));
        let maps = maps.collect::<Result<Vec<Maps>>>()?;
        let mut cold: Vec<(u64, u64)> = maps.iter().flat_map(|maps| maps.ranges(&stream)).collect();
        cold.sort_unstable();
        let layers: Vec<Vec<DeviceLayer<'_>>> =
            maps.iter().map(|maps| maps.layers(&stream)).collect();
        let mut outputs = Vec::new();
        for problem in problems {
            // SAFETY: nobody reads what nobody wrote; the stand-in's memory holds numbers anyway.
            outputs.push(unsafe { stream.alloc::<f32>(problem.output_len().max(1)) }?);
        }
        let outputs: Vec<DeviceOutput<'_>> = outputs
            .iter_mut()
            .map(|output| {
                let len = output.len();
                // SAFETY: the address and the length of an allocation that lives until the run is over.
                unsafe { DeviceOutput::from_raw(output.device_ptr_mut(&stream).0, len) }
            })
            .collect();
        if let [problem] = problems {
            let mut plan = Plan::on(&runtime, problem, &options)?;
            for output in outputs {
                plan.run(&stream, &layers[0], output)?;
            }
        } else {
            let mut plan = GroupPlan::on(&runtime, problems, &options)?;
            let mut items: Vec<GroupItem<'_>> = layers
                .iter()
                .zip(outputs)
                .map(|(layers, out)| GroupItem::new(layers, out))
                .collect();
            plan.run(&stream, &mut items)?;
        }
        let launches = vcuda.traces();
        Ok(Line {
            cold,
            registers: self.registers(&launches)?,
            launches,
        })
    }

    /// Takes `read_floor` over `bytes` of memory with the grids that the benchmark tries; the fastest counts.
    ///
    /// # Errors
    /// Those of the compiler and of the stand-in driver.
    pub fn take_floor(&self, bytes: usize) -> Result<Line> {
        let vcuda = vcuda::client::install(MODEL)?;
        vcuda.trace(SAMPLE);
        let context = cuda::context(0)?;
        let stream = context.default_stream();
        let Image::Ptx(text) = self
            .compile("read_floor", Target::Ptx(ARCH.into()), &[])?
            .image
        else {
            return Err("PTX was asked for".into());
        };
        let function = context
            .load_module(Ptx::from_src(text))?
            .load_function("read_floor")?;
        // SAFETY: as above.
        let maps = unsafe { stream.alloc::<u8>(bytes) }?;
        let out = stream.alloc_zeros::<u32>(1)?;
        let (address, out) = (maps.device_ptr(&stream).0, out.device_ptr(&stream).0);
        let granules = (bytes / 16) as u64;
        let tiles = granules.div_ceil(256 * 8) as u32;
        for multiple in [2, 4, 8, u32::MAX / 132] {
            let config = LaunchConfig {
                grid_dim: (tiles.clamp(1, 132 * multiple), 1, 1),
                block_dim: (256, 1, 1),
                shared_mem_bytes: 0,
            };
            let mut launch = stream.launch_builder(&function);
            launch.arg(&address).arg(&granules).arg(&7u32).arg(&out);
            // SAFETY: these are the kernel's arguments: an allocation, its granules, and a word to write.
            unsafe { launch.launch(config) }?;
        }
        let launches = vcuda.traces();
        Ok(Line {
            cold: vec![(address, bytes as u64)],
            registers: self.registers(&launches)?,
            launches,
        })
    }

    /// Registers per thread of the kernels that were launched, as the assembler in NVRTC gives them.
    fn registers(&self, launches: &[LaunchTrace]) -> Result<BTreeMap<String, u32>> {
        let mut registers = BTreeMap::new();
        for LaunchTrace { kernel, .. } in launches {
            if registers.contains_key(kernel) {
                continue;
            }
            let (symbol, entry) = match kernel.strip_suffix("_group") {
                Some(symbol) => (symbol, Entry::Grouped),
                None => (kernel.as_str(), Entry::Alone),
            };
            let variant = kernel::find(symbol).map(|found| found.variant());
            let (stem, defines) = match &variant {
                Some(variant) => (variant.stem, entry.defines(variant)),
                None => (symbol, Vec::new()),
            };
            let compiled = self.compile(stem, Target::Cubin(ARCH.into()), &defines)?;
            let resources = compiled
                .kernel(kernel)
                .ok_or_else(|| format!("no resources of {kernel} in {}", compiled.log))?;
            registers.insert(kernel.clone(), resources.registers);
        }
        Ok(registers)
    }

    fn compile(
        &self,
        stem: &str,
        target: Target,
        defines: &[(&'static str, String)],
    ) -> Result<nvrtc::Compiled> {
        let file = format!("{stem}.cu");
        let source =
            Source::embedded(&file).ok_or_else(|| format!("there is no kernels/{file}"))?;
        let mut options = nvrtc::Options::new(target).label(stem);
        for (name, value) in defines {
            options = options.define(name, value);
        }
        Ok(self.cache.compile(&self.nvrtc, &source, &options)?)
    }
}

/// The layers of a problem in device memory, each tensor an allocation.
struct Maps {
    layers: Vec<Layer<(DType, CudaSlice<u8>)>>,
}

impl Maps {
    fn new(stream: &Arc<CudaStream>, problem: &Problem) -> Result<Maps> {
        let shape = problem.shape();
        let dtype = problem.dtype();
        let tensor = |dtype: DType, planes: usize, width: usize| {
            let bytes = shape.batch * planes * shape.tokens * width * dtype.size_bytes();
            // SAFETY: as above.
            Ok((dtype, unsafe { stream.alloc::<u8>(bytes) }?))
        };
        let maps = || tensor(dtype, shape.heads, shape.tokens);
        let layer = |_| -> std::result::Result<_, DriverError> {
            if let Some(source) = problem.queries_keys() {
                return Ok(Layer::QueriesKeys {
                    queries: tensor(dtype, shape.heads, source.head_dim)?,
                    keys: tensor(dtype, source.key_heads, source.head_dim)?,
                    lse: match source.has_lse() {
                        true => Some(tensor(DType::F32, shape.heads, 1)?),
                        false => None,
                    },
                });
            }
            Ok(match problem.config().gradients {
                None => Layer::Maps(maps()?),
                Some(_) => Layer::Gradients {
                    maps: maps()?,
                    gradients: maps()?,
                },
            })
        };
        let layers = (0..shape.layers).map(layer);
        Ok(Maps {
            layers: layers.collect::<std::result::Result<_, DriverError>>()?,
        })
    }

    fn ranges(&self, stream: &Arc<CudaStream>) -> Vec<(u64, u64)> {
        let tensors = self.layers.iter().flat_map(Layer::operands);
        let range = |(_, tensor): &(DType, CudaSlice<u8>)| {
            (tensor.device_ptr(stream).0, tensor.len() as u64)
        };
        tensors.map(range).collect()
    }

    fn layers(&self, stream: &Arc<CudaStream>) -> Vec<DeviceLayer<'_>> {
        let tensor = |(dtype, tensor): &(DType, CudaSlice<u8>)| {
            let len = tensor.len() / dtype.size_bytes();
            // SAFETY: the address and the length of an allocation that `self` owns.
            unsafe { DeviceTensor::from_raw(tensor.device_ptr(stream).0, len, *dtype) }
        };
        let layers = self.layers.iter();
        layers.map(|layer| layer.map(tensor)).collect()
    }
}
