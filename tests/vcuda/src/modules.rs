//! Modules loaded from PTX, and their functions.

use crate::{
    codes::Code,
    driver::{Driver, Handle},
    memory::Allocation,
    models::{MAX_THREADS_PER_BLOCK, Model, SHARED_PER_BLOCK},
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering::Relaxed},
    },
};

/// A loaded module.
pub struct Module {
    pub context: Handle,
    program: Arc<Program>,
    functions: BTreeMap<String, Handle>,
}

/// What a module's functions share: the parsed text and the addresses of its variables.
pub struct Program {
    pub ptx: ptxemu::Module,
    pub globals: Vec<u64>,
    target: Target,
}

/// One function of a module.
pub struct Function {
    pub context: Handle,
    pub name: String,
    pub program: Arc<Program>,
    module: Handle,
    /// `MAX_DYNAMIC_SHARED_SIZE_BYTES` as set; 0 is "never set".
    dynamic_shared: AtomicU32,
    non_portable_clusters: AtomicBool,
    carveout: AtomicI32,
}

/// The first lines of a PTX text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Target {
    /// `.version 8.7` is (8, 7).
    version: (u32, u32),
    /// `.target sm_90a` is 90.
    sm: u32,
    /// Bound to that architecture alone (`sm_90a`) or to its family (`sm_100f`).
    suffix: Option<char>,
}

/// What `cuFuncGetAttribute` answers for the register count, which is ptxas's to know.
const REGISTERS_NOT_MODELLED: i32 = 32;

impl Target {
    fn read(ptx: &str) -> Option<Target> {
        let directive = |name: &str| {
            let line = ptx
                .lines()
                .map(str::trim)
                .find(|line| line.starts_with(name))?;
            line[name.len()..].split(['/', ',']).next().map(str::trim)
        };
        let (major, minor) = directive(".version")?.split_once('.')?;
        let arch = directive(".target")?.strip_prefix("sm_")?;
        let digits = arch.trim_end_matches(|letter: char| letter.is_ascii_lowercase());
        Some(Target {
            version: (major.parse().ok()?, minor.parse().ok()?),
            sm: digits.parse().ok()?,
            suffix: arch.chars().next_back().filter(char::is_ascii_lowercase),
        })
    }

    fn runs_on(&self, model: &Model) -> bool {
        match self.suffix {
            Some('a') => self.sm == model.sm(),
            Some(_) => self.sm / 10 == model.major && self.sm <= model.sm(),
            None => self.sm <= model.sm(),
        }
    }
}

/// The newest PTX that a driver of that version takes.
fn newest_ptx(driver: u32) -> (u32, u32) {
    let (major, minor) = (driver / 1000, driver % 1000 / 10);
    match (major, minor) {
        // PTX 8.5 served both 12.5 and 12.6, so the numbers lag by one from there on.
        (12, 6..) => (8, minor - 1),
        (12, _) => (8, minor),
        (13.., _) => (major - 4, minor),
        _ => (7, minor),
    }
}

impl Driver {
    /// Loads a module from the bytes an application hands over.
    pub fn load_module(&mut self, context: Handle, ptx: &str) -> Result<Handle, Code> {
        let model = self.model(context)?;
        let Some(target) = Target::read(ptx) else {
            return self.refuse(Code::InvalidPtx, "no .version and .target directives");
        };
        if target.version > newest_ptx(self.version) {
            let ((major, minor), driver) = (target.version, self.version);
            return self.refuse(
                Code::UnsupportedPtxVersion,
                format!("PTX {major}.{minor} is too new for driver {driver}"),
            );
        }
        if !target.runs_on(&model) {
            let suffix = target.suffix.map(String::from).unwrap_or_default();
            return self.refuse(
                Code::InvalidPtx,
                format!(
                    "PTX for sm_{}{suffix} does not run on {}",
                    target.sm, model.arch
                ),
            );
        }
        let ptx = match ptxemu::Module::parse(ptx) {
            Ok(ptx) => ptx,
            Err(error) => return self.refuse(Code::InvalidPtx, error.to_string()),
        };
        let device = self
            .contexts
            .get(&context)
            .ok_or(Code::InvalidContext)?
            .device;
        let globals = ptx.allocate_globals(&self.memory.memory);
        for (variable, &base) in ptx.globals().iter().zip(&globals) {
            let bytes = variable.size as u64;
            self.memory.adopt(
                base,
                Allocation {
                    context,
                    device,
                    bytes,
                    id: 0,
                    ready: true,
                },
            );
        }
        let handle = self.new_handle();
        let program = Arc::new(Program {
            ptx,
            globals,
            target,
        });
        let module = Module {
            context,
            program,
            functions: BTreeMap::new(),
        };
        self.modules.insert(handle, module);
        Ok(handle)
    }

    /// Unloads a module, after the work that may use it.
    pub fn unload_module(&mut self, handle: Handle) -> Result<(), Code> {
        let context = self
            .modules
            .get(&handle)
            .ok_or(Code::InvalidHandle)?
            .context;
        self.usable(context)?;
        self.run_everything(context)?;
        if let Some(module) = self.modules.remove(&handle) {
            for &base in &module.program.globals {
                self.memory.free(base);
            }
        }
        self.functions
            .retain(|_, function| function.module != handle);
        Ok(())
    }

    /// The function of that name; the same handle every time.
    pub fn function_of(&mut self, module: Handle, name: &str) -> Result<Handle, Code> {
        let entry = self.modules.get(&module).ok_or(Code::InvalidHandle)?;
        self.usable(entry.context)?;
        if let Some(&function) = entry.functions.get(name) {
            return Ok(function);
        }
        let function = Function {
            context: entry.context,
            name: name.to_owned(),
            program: Arc::clone(&entry.program),
            module,
            dynamic_shared: AtomicU32::new(0),
            non_portable_clusters: AtomicBool::new(false),
            carveout: AtomicI32::new(-1),
        };
        if function.program.ptx.kernel(name).is_none() {
            return self.refuse(Code::NotFound, format!("the module has no kernel `{name}`"));
        }
        let handle = self.new_handle();
        self.functions.insert(handle, Arc::new(function));
        if let Some(module) = self.modules.get_mut(&module) {
            module.functions.insert(name.to_owned(), handle);
        }
        Ok(handle)
    }

    /// Address and size of a module's variable.
    pub fn global_of(&mut self, module: Handle, name: &str) -> Result<(u64, usize), Code> {
        let program = &self
            .modules
            .get(&module)
            .ok_or(Code::InvalidHandle)?
            .program;
        let variables = program.ptx.globals().iter().zip(&program.globals);
        let found = variables
            .into_iter()
            .find(|(variable, _)| variable.name == name);
        match found {
            Some((variable, &base)) => Ok((base, variable.size)),
            None => self.refuse(
                Code::NotFound,
                format!("the module has no variable `{name}`"),
            ),
        }
    }

    /// A live function whose context is fit for work.
    pub fn function(&self, handle: Handle) -> Result<Arc<Function>, Code> {
        let function = self.functions.get(&handle).ok_or(Code::InvalidHandle)?;
        self.usable(function.context)?;
        Ok(Arc::clone(function))
    }
}

impl Function {
    /// The parsed kernel.
    pub fn kernel(&self) -> Result<&ptxemu::Kernel, Code> {
        self.program
            .ptx
            .kernel(&self.name)
            .ok_or(Code::InvalidHandle)
    }

    /// Most threads of a block.
    pub fn max_threads(&self) -> u32 {
        let declared = self.kernel().ok().and_then(|kernel| kernel.max_threads);
        declared
            .unwrap_or(MAX_THREADS_PER_BLOCK)
            .min(MAX_THREADS_PER_BLOCK)
    }

    /// Static shared memory of a block.
    pub fn static_shared(&self) -> u32 {
        self.kernel().map_or(0, |kernel| kernel.static_shared_bytes)
    }

    /// Most dynamic shared memory of a block, as things are set.
    pub fn max_dynamic_shared(&self) -> u32 {
        match self.dynamic_shared.load(Relaxed) {
            0 => SHARED_PER_BLOCK.saturating_sub(self.static_shared()),
            set => set,
        }
    }

    /// Largest cluster, as things are set.
    pub fn max_cluster(&self, model: &Model) -> u32 {
        match self.non_portable_clusters.load(Relaxed) {
            true => model.cluster_non_portable,
            false => model.cluster_portable,
        }
    }

    /// `cuFuncGetAttribute`; `None` if there is no such attribute.
    pub fn attribute(&self, attribute: u32, model: &Model) -> Option<i32> {
        let kernel = self.kernel().ok()?;
        let cluster = kernel
            .cluster
            .map_or([0; 3], |cluster| [cluster.x, cluster.y, cluster.z]);
        let value = match attribute {
            0 => self.max_threads() as i32,
            1 => kernel.static_shared_bytes as i32,
            3 => kernel.local_bytes as i32,
            4 => REGISTERS_NOT_MODELLED,
            5 => self.program.target.sm as i32,
            6 => model.sm() as i32,
            8 => self.max_dynamic_shared() as i32,
            9 => self.carveout.load(Relaxed),
            11..=13 => cluster[attribute as usize - 11] as i32,
            14 => i32::from(self.non_portable_clusters.load(Relaxed)),
            // Constant memory, cache mode, whether a cluster must be given, scheduling policy.
            2 | 7 | 10 | 15 => 0,
            _ => return None,
        };
        Some(value)
    }

    /// `cuFuncSetAttribute`.
    pub fn set_attribute(&self, attribute: u32, value: i32, model: &Model) -> Result<(), String> {
        match attribute {
            8 => {
                let limit = model
                    .shared_per_block_optin
                    .saturating_sub(self.static_shared());
                let value = u32::try_from(value).ok().filter(|&value| value <= limit);
                let value = value.ok_or_else(|| {
                    format!(
                        "`{}` can have at most {limit} bytes of dynamic shared memory on {}",
                        self.name, model.arch
                    )
                })?;
                self.dynamic_shared.store(value, Relaxed);
            }
            9 if (-1..=100).contains(&value) => self.carveout.store(value, Relaxed),
            14 if model.has_clusters() && (0..=1).contains(&value) => {
                self.non_portable_clusters.store(value == 1, Relaxed);
            }
            _ => return Err(format!("attribute {attribute} cannot be set to {value}")),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_read_past_comments() {
        let target =
            Target::read("//\n// Generated\n.version 8.7\n.target sm_90a, debug\n").unwrap();
        assert_eq!(
            target,
            Target {
                version: (8, 7),
                sm: 90,
                suffix: Some('a')
            }
        );
        assert_eq!(Target::read(".version 8.7\n"), None);
        assert_eq!(Target::read("nonsense"), None);
    }

    #[test]
    fn targets_run_where_the_suffix_lets_them() {
        let runs = |arch: &str, device: &str| {
            let target = Target::read(&format!(".version 8.0\n.target {arch}\n")).unwrap();
            target.runs_on(&Model::find(device).unwrap())
        };
        assert!(runs("sm_80", "sm_80") && runs("sm_80", "sm_120"));
        assert!(!runs("sm_90", "sm_89"));
        assert!(runs("sm_90a", "sm_90") && !runs("sm_90a", "sm_100"));
        assert!(runs("sm_100f", "sm_100") && !runs("sm_100f", "sm_120"));
    }

    #[test]
    fn ptx_versions_of_drivers() {
        assert_eq!(newest_ptx(12000), (8, 0));
        assert_eq!(newest_ptx(12050), (8, 5));
        assert_eq!(newest_ptx(12060), (8, 5));
        assert_eq!(newest_ptx(12080), (8, 7));
        assert_eq!(newest_ptx(12090), (8, 8));
        assert_eq!(newest_ptx(13050), (9, 5));
    }
}
