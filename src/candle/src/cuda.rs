//! Tensors in the memory of an NVIDIA GPU.

use std::num::NonZeroUsize;
use std::sync::Arc;

use attention_rollout::cuda::cudarc::driver::{CudaContext, CudaView};
use attention_rollout::cuda::{Compiler, DeviceLayer, DeviceTensor, Options, PlanCache, Runtime};
use attention_rollout::{Layer, Problem};
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaStorageSlice;
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, Error, Layout, Result, Storage, Tensor};
use half::{bf16, f16};

/// A tensor from its offset on.
enum View<'a> {
    F32(CudaView<'a, f32>),
    F16(CudaView<'a, f16>),
    Bf16(CudaView<'a, bf16>),
}

/// Plans, and the device they are on.
pub type DevicePlans = (Arc<CudaContext>, PlanCache);

/// Runs the plan of `problem`, one of at most `most` that are kept in `plans`, on the device's stream.
pub fn run(
    plans: &mut Option<DevicePlans>,
    most: NonZeroUsize,
    device: &CudaDevice,
    problem: &Problem,
    layers: &[Layer<Tensor>],
) -> Result<Tensor> {
    let stream = device.cuda_stream();
    let context = stream.context();
    let there = plans.take().filter(|(of, _)| of == context);
    let there = match there {
        Some(there) => there,
        None => {
            let runtime = Runtime::new(context, &Compiler::default()).map_err(Error::wrap)?;
            let plans = PlanCache::new(&runtime, &Options::default(), most);
            (context.clone(), plans)
        }
    };
    let (_, plans) = plans.insert(there);
    let plan = plans.get(problem).map_err(Error::wrap)?;
    let storages: Vec<_> = layers
        .iter()
        .map(|layer| layer.map(Tensor::storage_and_layout))
        .collect();
    let views: Vec<Layer<View<'_>>> = storages
        .iter()
        .map(|layer| layer.try_map(|(storage, layout)| view(storage, layout)))
        .collect::<Result<_>>()?;
    let layers: Vec<DeviceLayer<'_>> = views
        .iter()
        .map(|layer| {
            layer.map(|view| match view {
                View::F32(elements) => DeviceTensor::from(elements),
                View::F16(elements) => elements.into(),
                View::Bf16(elements) => elements.into(),
            })
        })
        .collect();
    let out = plan.run_alloc(&stream, &layers).map_err(Error::wrap)?;
    let out = Storage::Cuda(CudaStorage::wrap_cuda_slice(out, device.clone()));
    Ok(Tensor::from_storage(
        out,
        problem.output_shape(),
        BackpropOp::none(),
        false,
    ))
}

fn view<'a>(storage: &'a Storage, layout: &Layout) -> Result<View<'a>> {
    let Storage::Cuda(storage) = storage else {
        return Err(Error::Msg("rollout: a tensor of a GPU is stored elsewhere".to_owned()).bt());
    };
    let start = layout.start_offset();
    Ok(match &storage.slice {
        CudaStorageSlice::F32(elements) => View::F32(elements.slice(start..)),
        CudaStorageSlice::F16(elements) => View::F16(elements.slice(start..)),
        CudaStorageSlice::BF16(elements) => View::Bf16(elements.slice(start..)),
        _ => return Err(Error::UnsupportedDTypeForOp(storage.dtype(), "rollout").bt()),
    })
}
