//! Launches: what a driver checks before it accepts one, and the run itself.

use crate::{
    codes::Code,
    driver::{Driver, Handle},
    models::{MAX_BLOCK, MAX_GRID, MAX_THREADS_PER_BLOCK, Model, SHARED_PER_BLOCK},
    modules::Function,
    occupancy::blocks_per_multiprocessor,
    report::LaunchReport,
    work::Op,
};
use ptxemu::{Dim3, Fault, FaultKind, Options};
use std::{ffi::c_void, fs::File, os::unix::fs::FileExt, sync::Arc};

/// What the launch call says.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// As the launch attribute gives it.
    pub cluster: Option<[u32; 3]>,
    pub cooperative: bool,
    pub dynamic_shared: u32,
}

/// An accepted launch.
pub struct Launch {
    function: Arc<Function>,
    shape: Shape,
    params: Vec<u8>,
    stream: Handle,
    /// The fault that a test ordered for it.
    ordered: Option<Code>,
}

impl Driver {
    /// Checks a launch and hands it to the stream.
    pub fn launch(
        &mut self,
        stream: Handle,
        function: Handle,
        shape: Shape,
        arguments: Arguments,
    ) -> Result<(), Code> {
        let function = self.function(function)?;
        let context = self.stream(stream)?.context;
        if function.context != context {
            return self.refuse(
                Code::InvalidHandle,
                "function and stream are of different contexts",
            );
        }
        let model = self.model(context)?;
        let params = check(&model, &function, &shape).and_then(|()| {
            arguments.gather(function.kernel().map_err(|code| (code, String::new()))?)
        });
        let params = match params {
            Ok(params) => params,
            Err((code, why)) => {
                return self.refuse(code, format!("launch of `{}`: {why}", function.name));
            }
        };
        let ordered = self.orders.take_launch();
        if let Some(code) = ordered.filter(|code| !code.is_sticky()) {
            return self.refuse(
                code,
                format!("launch of `{}` fails by order", function.name),
            );
        }
        self.counters.launches += 1;
        let launch = Launch {
            function,
            shape,
            params,
            stream,
            ordered,
        };
        self.submit(stream, Op::Kernel(Arc::new(launch)))
    }

    /// Runs an accepted launch in the interpreter.
    pub fn run_kernel(
        &mut self,
        context: Handle,
        launch: &Launch,
        from_graph: bool,
    ) -> Result<(), Code> {
        let Launch {
            function,
            shape,
            params,
            stream,
            ordered,
        } = launch;
        if let Some(code) = *ordered {
            return self.refuse(code, format!("`{}` faults by order", function.name));
        }
        let device = self
            .contexts
            .get(&context)
            .ok_or(Code::InvalidContext)?
            .device;
        let model = self.devices[device].model;
        let kernel = function.kernel()?;
        let cluster = shape
            .cluster
            .map_or(kernel.cluster, |cluster| Some(dim3(cluster)));
        let cluster = cluster.unwrap_or(Dim3::ONE);
        let mut options = Options {
            check_races: self.check_races,
            sm: model.sm(),
            ..Options::default()
        };
        if self.threads > 0 {
            options.threads = self.threads;
        }
        let run = ptxemu::Launch {
            grid: dim3(shape.grid),
            block: dim3(shape.block),
            cluster,
            cooperative: shape.cooperative,
            dynamic_shared_bytes: shape.dynamic_shared,
            params,
            globals: &function.program.globals,
        };
        let memory = &self.memory.memory;
        if self.traces.sample > 0 {
            let code = (&function.program.ptx, kernel);
            let multiprocessors = model.multiprocessors;
            let traced = self
                .traces
                .take(*stream, code, &run, memory, &options, multiprocessors);
            self.counters.kernels_run += 1;
            return traced.or_else(|fault| self.refuse(code_of(&fault), fault.to_string()));
        }
        let report = match ptxemu::launch(&function.program.ptx, kernel, &run, memory, &options) {
            Ok(report) => report,
            Err(fault) => return self.refuse(code_of(&fault), fault.to_string()),
        };
        self.counters.kernels_run += 1;
        self.reports.push(LaunchReport {
            kernel: function.name.clone(),
            device,
            arch: model.arch.to_owned(),
            grid: shape.grid,
            block: shape.block,
            cluster: [cluster.x, cluster.y, cluster.z],
            cooperative: shape.cooperative,
            from_graph,
            static_shared_bytes: function.static_shared(),
            dynamic_shared_bytes: shape.dynamic_shared,
            counts: (&report).into(),
        });
        let problem = |base: u64| match self.memory.find(base) {
            Some((_, found)) if found.device != device => Some("belongs to another device"),
            Some((_, found)) if !found.ready => Some("is not allocated yet in stream order"),
            _ => None,
        };
        let mut touched = report.traffic.iter();
        if let Some((base, what)) =
            touched.find_map(|touched| Some((touched.base, problem(touched.base)?)))
        {
            let message = format!(
                "`{}` touched the allocation at {base:#x}, which {what}",
                function.name
            );
            return self.refuse(Code::IllegalAddress, message);
        }
        Ok(())
    }
}

fn dim3([x, y, z]: [u32; 3]) -> Dim3 {
    Dim3::new(x, y, z)
}

/// The code a real driver reports for what went wrong. What hardware would not notice at all (a race,
/// a read of bytes never written, ...) is a launch failure here.
fn code_of(fault: &Fault) -> Code {
    match fault.kind {
        FaultKind::OutOfBounds | FaultKind::UseAfterFree => Code::IllegalAddress,
        FaultKind::Misaligned => Code::MisalignedAddress,
        FaultKind::Deadlock | FaultKind::StepLimit => Code::LaunchTimeout,
        FaultKind::IllegalOperand => Code::IllegalInstruction,
        _ => Code::LaunchFailed,
    }
}

/// What the driver checks of a launch's shape.
pub fn check(model: &Model, function: &Function, shape: &Shape) -> Result<(), (Code, String)> {
    let product = |extents: [u32; 3]| extents.into_iter().map(u64::from).product::<u64>();
    let fits = |extents: [u32; 3], limits: [u32; 3]| {
        extents
            .iter()
            .zip(limits)
            .all(|(&extent, limit)| 0 < extent && extent <= limit)
    };
    let invalid = |why: String| Err((Code::InvalidValue, why));

    if !fits(shape.grid, MAX_GRID) {
        return invalid(format!("grid {:?} outside 1..={MAX_GRID:?}", shape.grid));
    }
    if !fits(shape.block, MAX_BLOCK) {
        return invalid(format!("block {:?} outside 1..={MAX_BLOCK:?}", shape.block));
    }
    let threads = product(shape.block);
    if threads > u64::from(MAX_THREADS_PER_BLOCK.min(function.max_threads())) {
        let limit = function.max_threads();
        return invalid(format!(
            "{threads} threads in a block, at most {limit} fit the kernel"
        ));
    }
    let shared = (function.static_shared(), shape.dynamic_shared);
    if shared.1 > function.max_dynamic_shared() {
        return invalid(format!(
            "{} bytes of dynamic shared memory over {} (static: {}); more than {SHARED_PER_BLOCK} in all \
             need cuFuncSetAttribute(MAX_DYNAMIC_SHARED_SIZE_BYTES)",
            shared.1,
            function.max_dynamic_shared(),
            shared.0
        ));
    }
    check_cluster(model, function, shape)?;
    if shape.cooperative {
        let per_multiprocessor =
            blocks_per_multiprocessor(model, threads as u32, shared.0 + shared.1);
        let room = u64::from(per_multiprocessor) * u64::from(model.multiprocessors);
        if product(shape.grid) > room {
            let why = format!(
                "{} cooperative blocks, {room} fit the device",
                product(shape.grid)
            );
            return Err((Code::CooperativeLaunchTooLarge, why));
        }
    }
    Ok(())
}

fn check_cluster(model: &Model, function: &Function, shape: &Shape) -> Result<(), (Code, String)> {
    let compiled = function.kernel().ok().and_then(|kernel| kernel.cluster);
    let compiled = compiled.map(|cluster| [cluster.x, cluster.y, cluster.z]);
    let Some(cluster) = shape.cluster.or(compiled) else {
        return Ok(());
    };
    if cluster == [1; 3] {
        return Ok(());
    }
    if !model.has_clusters() {
        return Err((
            Code::InvalidValue,
            format!("{} has no clusters", model.arch),
        ));
    }
    let bad = |why: String| Err((Code::InvalidClusterSize, why));
    if compiled.is_some_and(|compiled| compiled != cluster) {
        return bad(format!(
            "cluster {cluster:?}, but the kernel was compiled for {compiled:?}"
        ));
    }
    let blocks = cluster
        .iter()
        .map(|&extent| u64::from(extent))
        .product::<u64>();
    let limit = function.max_cluster(model);
    if blocks == 0 || blocks > u64::from(limit) {
        return bad(format!(
            "cluster {cluster:?} has {blocks} blocks, 1 to {limit} are allowed"
        ));
    }
    if shape
        .grid
        .iter()
        .zip(cluster)
        .any(|(&grid, cluster)| grid % cluster != 0)
    {
        return bad(format!(
            "grid {:?} is not a multiple of cluster {cluster:?}",
            shape.grid
        ));
    }
    Ok(())
}

/// The argument pointers of a launch call.
#[derive(Clone, Copy)]
pub struct Arguments {
    params: *const *const c_void,
    extra: *const *const c_void,
}

/// Ends the list behind `extra`.
const PARAM_END: usize = 0;
const PARAM_BUFFER_POINTER: usize = 1;
const PARAM_BUFFER_SIZE: usize = 2;

impl Arguments {
    /// # Safety
    /// As `cuLaunchKernel` asks of `kernelParams` and `extra`; pointers to unmapped memory are noticed.
    pub unsafe fn new(params: *const *const c_void, extra: *const *const c_void) -> Arguments {
        Arguments { params, extra }
    }

    /// The parameter block.
    fn gather(&self, kernel: &ptxemu::Kernel) -> Result<Vec<u8>, (Code, String)> {
        let mut block = vec![0u8; kernel.param_bytes];
        let invalid = |why: String| (Code::InvalidValue, why);
        if !self.params.is_null() && !self.extra.is_null() {
            return Err(invalid("both kernelParams and extra are given".to_owned()));
        }
        if !self.extra.is_null() {
            self.gather_extra(&mut block).map_err(invalid)?;
        } else if !kernel.params.is_empty() {
            for (index, param) in kernel.params.iter().enumerate() {
                let slot = self.params.addr() + index * size_of::<usize>();
                let range = &mut block[param.offset..param.offset + param.size];
                let value = if self.params.is_null() {
                    None
                } else {
                    read_word(slot)
                };
                if !value.is_some_and(|address| read_own_memory(address, range)) {
                    return Err(invalid(format!(
                        "argument {index} (`{}`, {} bytes) of {} cannot be read",
                        param.name,
                        param.size,
                        kernel.params.len()
                    )));
                }
            }
        }
        Ok(block)
    }

    fn gather_extra(&self, block: &mut [u8]) -> Result<(), String> {
        let (mut buffer, mut bytes) = (None, None);
        for pair in 0.. {
            let slot = self.extra.addr() + pair * 2 * size_of::<usize>();
            let value = || read_word(slot + size_of::<usize>());
            match read_word(slot) {
                Some(PARAM_END) => break,
                Some(PARAM_BUFFER_POINTER) => buffer = value(),
                Some(PARAM_BUFFER_SIZE) => bytes = value().and_then(read_word),
                _ => return Err("extra holds an unknown option".to_owned()),
            }
        }
        let (Some(buffer), Some(bytes)) = (buffer, bytes) else {
            return Err("extra names no buffer or no size".to_owned());
        };
        if bytes != block.len() {
            return Err(format!(
                "the kernel takes {} bytes of arguments, {bytes} were given",
                block.len()
            ));
        }
        match read_own_memory(buffer, block) {
            true => Ok(()),
            false => Err("the argument buffer cannot be read".to_owned()),
        }
    }
}

fn read_word(address: usize) -> Option<usize> {
    let mut bytes = [0; size_of::<usize>()];
    read_own_memory(address, &mut bytes).then(|| usize::from_ne_bytes(bytes))
}

/// Copies from this process's memory; false where nothing is mapped, which would otherwise end the test
/// program without a word about the missing argument.
fn read_own_memory(address: usize, out: &mut [u8]) -> bool {
    let memory = File::open("/proc/self/mem");
    memory.is_ok_and(|memory| memory.read_exact_at(out, address as u64).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unmapped_addresses_are_noticed() {
        let value = 0x1234_5678_9abc_def0_usize;
        assert_eq!(read_word((&raw const value).addr()), Some(value));
        assert_eq!(read_word(0), None);
        assert_eq!(read_word(16), None);
    }
}
