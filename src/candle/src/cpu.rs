//! Tensors in host memory.

use attention_rollout::cpu::{Options, Plan};
use attention_rollout::{Element, HostLayer, Problem};
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, Device, Error, Layout, Result, Storage, Tensor};

/// Runs the plan that is kept, or another that is kept from now on.
pub fn run(kept: &mut Option<Plan>, problem: &Problem, maps: &[Tensor]) -> Result<Tensor> {
    let plan = match kept.take().filter(|plan| plan.problem() == problem) {
        Some(plan) => plan,
        None => Plan::new(problem, &Options::default()).map_err(Error::wrap)?,
    };
    let plan = kept.insert(plan);
    let storages: Vec<_> = maps.iter().map(Tensor::storage_and_layout).collect();
    let layers: Vec<HostLayer<'_>> = storages
        .iter()
        .map(|(storage, layout)| layer(storage, layout))
        .collect::<Result<_>>()?;
    let out = plan.run_to_vec(&layers).map_err(Error::wrap)?;
    Tensor::from_vec(out, problem.output_shape(), &Device::Cpu)
}

fn layer<'a>(storage: &'a Storage, layout: &Layout) -> Result<HostLayer<'a>> {
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

fn from_offset<'a, T: Element>(elements: &'a [T], layout: &Layout) -> HostLayer<'a> {
    elements
        .get(layout.start_offset()..)
        .unwrap_or_default()
        .into()
}
