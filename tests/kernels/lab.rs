//! Compiles kernel variants with NVRTC and launches them in the PTX interpreter.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use attention_rollout::cuda::launch::Geometry;
use attention_rollout::cuda::nvrtc::{Cache, Image, Nvrtc, Options, Source, Target};
use attention_rollout::cuda::variant::{Entry, Variant};
use ptxemu::{Dim3, Launch, Memory, Module, Report};

/// What a launch runs on, and how.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Architecture, if the kernel does not need a newer one.
    pub arch: u32,
    /// Says in what order warps take turns.
    pub seed: u64,
    /// Instructions after which a launch is cut off.
    pub max_steps: u64,
}

impl Machine {
    /// The oldest device that can.
    pub const OLDEST: Machine = Machine {
        arch: 0,
        seed: 0,
        max_steps: 200_000_000,
    };
}

/// Kernel sources, a compiler for them, and the modules compiled so far.
pub struct Lab {
    nvrtc: Nvrtc,
    sources: Vec<(String, String)>,
    cache: Cache,
    modules: Mutex<HashMap<String, Arc<Module>>>,
    compile_error: Mutex<Option<String>>,
}

impl Lab {
    /// A lab for `sources`, (file name, text).
    pub fn new(nvrtc: Nvrtc, sources: Vec<(String, String)>, cache: Cache) -> Self {
        Lab {
            nvrtc,
            sources,
            cache,
            modules: Mutex::default(),
            compile_error: Mutex::default(),
        }
    }

    /// Compiles `text` with the kernels' headers to PTX, and parses it.
    pub fn compile(
        &self,
        name: &str,
        text: &str,
        defines: &[(&str, String)],
        arch: u32,
    ) -> Result<Module, String> {
        let headers: Vec<(&str, &str)> = self
            .sources
            .iter()
            .filter(|(name, _)| name.ends_with(".cuh"))
            .map(|(name, text)| (name.as_str(), text.as_str()))
            .collect();
        let source = Source {
            name,
            text,
            headers: &headers,
        };
        let mut options = Options::new(Target::Ptx(arch.into())).lineinfo();
        for (name, value) in defines {
            options = options.define(name, value);
        }
        let compiled = self
            .cache
            .compile(&self.nvrtc, &source, &options)
            .map_err(|error| {
                let error = error.to_string();
                self.compile_error
                    .lock()
                    .unwrap()
                    .get_or_insert_with(|| error.clone());
                error
            })?;
        let Image::Ptx(ptx) = compiled.image else {
            unreachable!("asked for PTX");
        };
        Module::parse(&ptx).map_err(|error| error.to_string())
    }

    /// Runs one thread of the kernel `probe` of `text`, which writes `count` words to where its parameter says.
    pub fn probe(
        &self,
        text: &str,
        defines: &[(&str, String)],
        count: usize,
    ) -> Result<Vec<u32>, String> {
        let module = self.compile("probe.cu", text, defines, 75)?;
        let kernel = module.kernel("probe").ok_or("probe is missing")?;
        let memory = Memory::new();
        let out = memory.alloc(4 * count);
        let globals = module.allocate_globals(&memory);
        let params = out.to_le_bytes();
        let mut launch = Launch::new(1, 1, &params);
        launch.globals = &globals;
        let options = ptxemu::Options::default();
        ptxemu::launch(&module, kernel, &launch, &memory, &options)
            .map_err(|fault| fault.to_string())?;
        let mut words = vec![0u32; count];
        memory
            .read(out, bytemuck::cast_slice_mut(&mut words))
            .map_err(|error| error.to_string())?;
        Ok(words)
    }

    /// What NVRTC first said against a kernel of this lab.
    pub fn compile_error(&self) -> Option<String> {
        self.compile_error.lock().unwrap().clone()
    }

    /// The kernel for an architecture.
    fn module(&self, entry: Entry, variant: &Variant, arch: u32) -> Result<Arc<Module>, String> {
        let key = format!("{} sm_{arch}", entry.symbol(variant));
        if let Some(module) = self.modules.lock().unwrap().get(&key) {
            return Ok(module.clone());
        }
        let file = format!("{}.cu", variant.stem);
        let (_, text) = self
            .sources
            .iter()
            .find(|(name, _)| *name == file)
            .ok_or_else(|| format!("{file} is missing"))?;
        let defines = entry.defines(variant);
        let module = Arc::new(self.compile(&file, text, &defines, arch)?);
        self.modules.lock().unwrap().insert(key, module.clone());
        Ok(module)
    }

    /// Runs one launch to its end, on the oldest device that can: clusters take sm_90.
    pub fn launch(
        &self,
        memory: &Memory,
        kernel: (Entry, &Variant),
        geometry: Geometry,
        params: &[u8],
    ) -> Result<Report, String> {
        self.launch_on(Machine::OLDEST, memory, kernel, geometry, params)
    }

    /// The same on `machine`.
    pub fn launch_on(
        &self,
        machine: Machine,
        memory: &Memory,
        (entry, variant): (Entry, &Variant),
        geometry: Geometry,
        params: &[u8],
    ) -> Result<Report, String> {
        let cluster_arch = if geometry.cluster > 1 { 90 } else { 0 };
        let arch = machine.arch.max(variant.arch).max(cluster_arch);
        let module = self.module(entry, variant, arch)?;
        let symbol = entry.symbol(variant);
        let kernel = module
            .kernel(&symbol)
            .ok_or_else(|| format!("{symbol} is not in its module"))?;
        let [x, y, z] = geometry.grid;
        if x == 0 || y == 0 || z == 0 {
            return Err(format!("{symbol}: empty grid: {geometry}"));
        }
        let mut launch = Launch::new(Dim3::new(x, y, z), geometry.block, params);
        launch.dynamic_shared_bytes = geometry.shared_bytes;
        launch.cooperative = geometry.cooperative;
        if geometry.cluster > 1 {
            launch.cluster = Dim3::new(1, geometry.cluster, 1);
        }
        // Line information is kept in variables of the module.
        let globals = module.allocate_globals(memory);
        launch.globals = &globals;
        let options = ptxemu::Options {
            threads: 1,
            max_steps: machine.max_steps,
            seed: machine.seed,
            ..Default::default()
        };
        ptxemu::launch(&module, kernel, &launch, memory, &options)
            .map_err(|fault| format!("{symbol} ({geometry}): {fault}"))
    }
}
