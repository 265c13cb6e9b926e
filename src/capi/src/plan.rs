//! Devices and plans behind the handles.

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::slice;

use attention_rollout::cuda::cudarc::driver::sys::CUstream;
use attention_rollout::cuda::{
    self, Compiler, DeviceIndices, DeviceLayer, DeviceOutput, DeviceTensor, Precision, RunInputs,
    Runtime,
};
use attention_rollout::device::{AnyPlan, Device};
use attention_rollout::{DType, HostLayer, HostTensor, Layer, Problem, Window, cpu};

use crate::error::{Error, Result};
use crate::given::{checked, choice, fits, list, sized};
use crate::problem::problem;
use crate::types::{
    ArDeviceKind, ArDeviceOptions, ArInputs, ArLayer, ArMemory, ArPlanInfo, ArPrecision, ArProblem,
    ArRun,
};

/// A device, and what a plan for its own memory needs.
pub struct Place {
    device: Device,
    gpu: Option<(Runtime, cuda::Options)>,
}

impl Place {
    /// # Errors
    /// Those of the device, and for choices that are none.
    pub fn new(given: &ArDeviceOptions) -> Result<Self> {
        let precision = match choice("precision", given.precision)? {
            ArPrecision::F32 => Precision::F32,
            ArPrecision::Half => Precision::Half,
        };
        match choice("kind", given.kind)? {
            ArDeviceKind::Cpu => Ok(Place {
                device: Device::cpu(&cpu::Options {
                    threads: NonZeroUsize::new(given.threads as usize),
                    ..cpu::Options::default()
                }),
                gpu: None,
            }),
            ArDeviceKind::Cuda => {
                let options = cuda::Options {
                    precision,
                    ..Default::default()
                };
                let context = cuda::context(given.ordinal as usize)?;
                let runtime = Runtime::new(&context, &Compiler::default())?;
                Ok(Place {
                    device: Device::on(slice::from_ref(&runtime), &options)?,
                    gpu: Some((runtime, options)),
                })
            }
        }
    }
}

/// A problem made ready, by where its layers lie.
pub enum Ready {
    Host(Box<AnyPlan>),
    Device(Box<cuda::Plan>),
}

impl Ready {
    /// # Safety
    /// As [`problem`](problem()).
    pub unsafe fn new(place: &Place, given: &ArProblem) -> Result<Self> {
        let memory = choice("memory", given.memory)?;
        // SAFETY: the caller's promise.
        let problem = unsafe { problem(given)? };
        Ok(match memory {
            ArMemory::Host => {
                let items = NonZeroUsize::new(given.items_per_chunk as usize);
                Ready::Host(Box::new(place.device.plan_chunked(&problem, items)?))
            }
            ArMemory::Device => {
                let (runtime, options) = place.gpu.as_ref().ok_or(Error::DeviceMemory)?;
                Ready::Device(Box::new(cuda::Plan::on(runtime, &problem, options)?))
            }
        })
    }

    fn problem(&self) -> &Problem {
        match self {
            Ready::Host(plan) => plan.problem(),
            Ready::Device(plan) => plan.problem(),
        }
    }

    /// What the plan is.
    pub fn info(&self) -> ArPlanInfo {
        let problem = self.problem();
        let shape = problem.output_shape();
        let mut output_shape = [0; 4];
        output_shape[..shape.len()].copy_from_slice(&shape);
        let (workspace_bytes, items_per_chunk) = match self {
            Ready::Host(plan) => (plan.workspace_bytes(), plan.items_per_chunk()),
            Ready::Device(plan) => (plan.workspace_bytes(), problem.shape().batch),
        };
        ArPlanInfo {
            size: size_of::<ArPlanInfo>(),
            output_count: problem.output_len(),
            output_rank: shape.len(),
            output_shape,
            workspace_bytes,
            items_per_chunk,
        }
    }

    /// Gives the runs to come what `given` holds.
    ///
    /// # Safety
    /// Its pointers are null, or point to as many elements as it says.
    pub unsafe fn set_inputs(&mut self, given: &ArInputs) -> Result<()> {
        // SAFETY: the caller's promise.
        let (windows, rows) = unsafe {
            (
                list("windows", given.windows, given.windows_count)?,
                list("rows", given.rows, given.rows_count)?,
            )
        };
        let before = self.problem().windows().to_vec();
        if !given.windows.is_null() {
            let windows: Vec<Window> = windows.iter().map(|&window| window.into()).collect();
            self.set_windows(&windows)?;
        }
        if given.rows.is_null() {
            return Ok(());
        }
        let set = match self {
            Ready::Host(plan) => plan.set_rows(rows),
            Ready::Device(plan) => plan.set_rows(rows),
        };
        if set.is_err() && !given.windows.is_null() {
            self.set_windows(&before)?;
        }
        Ok(set?)
    }

    fn set_windows(&mut self, windows: &[Window]) -> Result<()> {
        Ok(match self {
            Ready::Host(plan) => plan.set_windows(windows),
            Ready::Device(plan) => plan.set_windows(windows),
        }?)
    }

    /// Waits for the last run in device memory and checks what it left; in host memory, a run has done so itself.
    ///
    /// # Safety
    /// `stream` is null or a stream of the plan's context.
    pub unsafe fn check(&mut self, stream: CUstream) -> Result<()> {
        match self {
            Ready::Host(_) if !stream.is_null() => Err(Error::Stream),
            Ready::Host(_) => Ok(()),
            Ready::Device(plan) => {
                // SAFETY: the caller's promise.
                let stream = unsafe { plan.context().wrap_borrowed_stream(stream) };
                Ok(plan.check(&stream)?)
            }
        }
    }

    /// The items that a run of `given` takes; without one, all.
    pub fn items(&self, given: Option<&ArRun>) -> Range<usize> {
        let batch = self.problem().shape().batch;
        match given {
            None => 0..batch,
            Some(given) if given.end_item == 0 => given.first_item..batch,
            Some(given) => given.first_item..given.end_item,
        }
    }

    /// # Safety
    /// The tensors of `layers` and `out` are as long as they say, in the memory the plan is for; `stream` is null or a
    /// stream of the plan's context. In device memory, what [`DeviceTensor::from_raw`] and [`DeviceOutput::from_raw`] ask,
    /// and for what is `given` [`DeviceIndices::from_raw`].
    pub unsafe fn run(
        &mut self,
        layers: &[ArLayer],
        out: *mut f32,
        out_count: usize,
        stream: CUstream,
        given: Option<&ArRun>,
    ) -> Result<()> {
        for layer in layers {
            // SAFETY: a reference is a valid pointer.
            unsafe { sized(layer)? };
        }
        let items = self.items(given);
        match self {
            Ready::Host(plan) => {
                let device_inputs = given.map_or([false; 2], |given| {
                    [!given.windows.is_null(), !given.rows.is_null()]
                });
                for (is_given, what) in device_inputs.into_iter().zip(["windows", "rows"]) {
                    if is_given {
                        return Err(Error::DeviceInputs { what });
                    }
                }
                if !stream.is_null() {
                    return Err(Error::Stream);
                }
                // SAFETY: the caller's promise.
                unsafe { run_host(plan, items, layers, out, out_count) }
            }
            // SAFETY: the caller's promise.
            Ready::Device(plan) => unsafe {
                run_device(plan, items, layers, out, out_count, stream, given)
            },
        }
    }
}

/// # Safety
/// As [`Ready::run`].
unsafe fn run_host(
    plan: &mut AnyPlan,
    items: Range<usize>,
    layers: &[ArLayer],
    out: *mut f32,
    out_count: usize,
) -> Result<()> {
    let tensor = |what, dtype: DType, pointer: *const c_void, count: usize| {
        let bytes = count.checked_mul(dtype.size_bytes());
        let bytes = bytes.ok_or(Error::Overflow { what, count })?;
        // SAFETY: the caller's promise.
        let elements = unsafe { list(what, pointer.cast::<u8>(), bytes)? };
        HostTensor::from_bytes(dtype, elements).ok_or(Error::Misaligned {
            what,
            required: dtype.size_bytes(),
            address: pointer.addr(),
        })
    };
    let layers: Vec<HostLayer<'_>> = tensors(plan.problem(), layers, tensor)?;
    let out: &mut [f32] = match out_count {
        0 => &mut [],
        _ => {
            checked("out", out)?;
            fits::<f32>("out", out_count)?;
            check_apart(&layers, out.addr()..out.addr() + 4 * out_count)?;
            // SAFETY: not null, aligned, of a size that memory can have, and apart from the layers.
            unsafe { slice::from_raw_parts_mut(out, out_count) }
        }
    };
    Ok(plan.run_items(items, &layers, out, &mut |_| ())?)
}

/// The layers of what `tensor` makes of the name, element type, address and length of each tensor. Whether they are those
/// that the problem asks for is for the plan to check.
fn tensors<T>(
    problem: &Problem,
    layers: &[ArLayer],
    tensor: impl Fn(&'static str, DType, *const c_void, usize) -> Result<T>,
) -> Result<Vec<Layer<T>>> {
    let dtype = problem.dtype();
    let needed = |what, pointer, count| tensor(what, dtype, checked(what, pointer)?, count);
    let layer = |(number, given): (usize, &ArLayer)| {
        let is_any = |pointers: &[*const c_void]| pointers.iter().any(|p| !p.is_null());
        let has_maps = is_any(&[given.maps, given.gradients]);
        let has_scores = is_any(&[given.queries, given.keys, given.lse.cast()]);
        if has_maps && has_scores {
            return Err(Error::Sources { layer: number });
        }
        if has_scores || (!has_maps && problem.queries_keys().is_some()) {
            let (lse, count) = (given.lse.cast(), given.lse_count);
            return Ok(Layer::QueriesKeys {
                queries: needed("queries", given.queries, given.queries_count)?,
                keys: needed("keys", given.keys, given.keys_count)?,
                lse: (!given.lse.is_null())
                    .then(|| tensor("lse", DType::F32, lse, count))
                    .transpose()?,
            });
        }
        let maps = needed("maps", given.maps, given.maps_count)?;
        Ok(match given.gradients.is_null() {
            true => Layer::Maps(maps),
            false => Layer::Gradients {
                maps,
                gradients: needed("gradients", given.gradients, given.gradients_count)?,
            },
        })
    };
    layers.iter().enumerate().map(layer).collect()
}

/// Checks that the output, given by its addresses, lies in no tensor.
fn check_apart(layers: &[HostLayer<'_>], out: Range<usize>) -> Result<()> {
    for (number, layer) in layers.iter().enumerate() {
        for tensor in layer.operands() {
            let bytes = tensor.bytes().as_ptr_range();
            if bytes.start.addr() < out.end && out.start < bytes.end.addr() {
                return Err(Error::Overlap { layer: number });
            }
        }
    }
    Ok(())
}

/// # Safety
/// As [`Ready::run`].
unsafe fn run_device(
    plan: &mut cuda::Plan,
    items: Range<usize>,
    layers: &[ArLayer],
    out: *mut f32,
    out_count: usize,
    stream: CUstream,
    given: Option<&ArRun>,
) -> Result<()> {
    // SAFETY: the caller's promise.
    let tensor = |_, dtype, pointer: *const c_void, count| {
        Ok(unsafe { DeviceTensor::from_raw(pointer.addr() as u64, count, dtype) })
    };
    let layers: Vec<DeviceLayer<'_>> = tensors(plan.problem(), layers, tensor)?;
    if out_count > 0 && out.is_null() {
        return Err(Error::NullPointer { what: "out" });
    }
    // SAFETY: the caller's promise.
    let (stream, out) = unsafe {
        (
            plan.context().wrap_borrowed_stream(stream),
            DeviceOutput::from_raw(out.addr() as u64, out_count),
        )
    };
    let indices = |first: *const i32, count: usize| {
        // SAFETY: the caller's promise.
        (!first.is_null()).then(|| unsafe { DeviceIndices::from_raw(first.addr() as u64, count) })
    };
    let inputs = given.map_or(RunInputs::default(), |given| RunInputs {
        windows: indices(given.windows, given.windows_count),
        rows: indices(given.rows, given.rows_count),
    });
    Ok(plan.run_items_with(&stream, items, &layers, out, inputs)?)
}
