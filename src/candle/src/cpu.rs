//! Tensors in host memory.

use std::num::NonZeroUsize;

use attention_rollout::cpu::{Options, PlanCache};
use attention_rollout::{Element, HostLayer, HostTensor, Layer, Problem};
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, Device, Error, Layout, Result, Storage, Tensor};

/// Runs the plan of `problem`, one of at most `most` that are kept in `plans`.
pub fn run(
    plans: &mut Option<PlanCache>,
    most: NonZeroUsize,
    problem: &Problem,
    layers: &[Layer<Tensor>],
) -> Result<Tensor> {
    let plans = match plans {
        Some(plans) => plans,
        None => plans.insert(PlanCache::new(&Options::default(), most).map_err(Error::wrap)?),
    };
    let plan = plans.get(problem).map_err(Error::wrap)?;
    let storages: Vec<_> = layers
        .iter()
        .map(|layer| layer.map(Tensor::storage_and_layout))
        .collect();
    let layers: Vec<HostLayer<'_>> = storages
        .iter()
        .map(|layer| layer.try_map(|(storage, layout)| tensor(storage, layout)))
        .collect::<Result<_>>()?;
    let out = plan.run_to_vec(&layers).map_err(Error::wrap)?;
    Tensor::from_vec(out, problem.output_shape(), &Device::Cpu)
}

fn tensor<'a>(storage: &'a Storage, layout: &Layout) -> Result<HostTensor<'a>> {
    let Storage::Cpu(storage) = storage else {
        return Err(Error::Msg("rollout: a tensor of the CPU is stored elsewhere".to_owned()).bt());
    };
    Ok(match storage {
        CpuStorage::F32(elements) => from_offset(elements, layout),
        CpuStorage::F16(elements) => from_offset(elements, layout),
        CpuStorage::BF16(elements) => from_offset(elements, layout),
        other => return Err(Error::UnsupportedDTypeForOp(other.dtype(), "rollout").bt()),
    })
}

fn from_offset<'a, T: Element>(elements: &'a [T], layout: &Layout) -> HostTensor<'a> {
    elements
        .get(layout.start_offset()..)
        .unwrap_or_default()
        .into()
}
