//! Tensors in the memory of an NVIDIA GPU.

use attention_rollout::Problem;
use attention_rollout::cuda::cudarc::driver::CudaView;
use attention_rollout::cuda::{DeviceLayer, Options, Plan};
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaStorageSlice;
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, Error, Layout, Result, Storage, Tensor};
use half::{bf16, f16};

/// A layer from its offset on.
enum View<'a> {
    F32(CudaView<'a, f32>),
    F16(CudaView<'a, f16>),
    Bf16(CudaView<'a, bf16>),
}

/// Runs the plan that is kept, or another that is kept from now on, on the device's stream.
pub fn run(
    kept: &mut Option<Plan>,
    device: &CudaDevice,
    problem: &Problem,
    maps: &[Tensor],
) -> Result<Tensor> {
    let stream = device.cuda_stream();
    let fits = |plan: &Plan| plan.problem() == problem && plan.context() == stream.context();
    let plan = match kept.take().filter(fits) {
        Some(plan) => plan,
        None => Plan::new(stream.context(), problem, &Options::default()).map_err(Error::wrap)?,
    };
    let plan = kept.insert(plan);
    let storages: Vec<_> = maps.iter().map(Tensor::storage_and_layout).collect();
    let views: Vec<View<'_>> = storages
        .iter()
        .map(|(storage, layout)| view(storage, layout))
        .collect::<Result<_>>()?;
    let layers: Vec<DeviceLayer<'_>> = views
        .iter()
        .map(|view| match view {
            View::F32(maps) => maps.into(),
            View::F16(maps) => maps.into(),
            View::Bf16(maps) => maps.into(),
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
        CudaStorageSlice::F32(maps) => View::F32(maps.slice(start..)),
        CudaStorageSlice::F16(maps) => View::F16(maps.slice(start..)),
        CudaStorageSlice::BF16(maps) => View::Bf16(maps.slice(start..)),
        _ => return Err(Error::UnsupportedDTypeForOp(storage.dtype(), "rollout").bt()),
    })
}
