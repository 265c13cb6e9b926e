//! `verify`: every backend that can run here, against the f64 reference, on the user's own maps.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use attention_rollout::device::Device;
use attention_rollout::{
    HeadFusion, HostLayer, HostTensor, Layer, Problem, QueriesKeys, Residual, ResidualWeights,
    RolloutConfig, first_not_finite, reference,
};
use clap::Args;
use serde_json::json;

use crate::backend::{self, DeviceArg, DeviceArgs};
use crate::error::{Error, Result};
use crate::input::FeatureLayer;
use crate::job::{Job, jobs};
use crate::options::{ConfigArgs, OutputKind, SelectArgs};
use crate::progress::MapProgress;
use crate::report;
use crate::shown::shown;
use crate::tensors::InputFile;

/// Check every backend that can run here against the f64 reference, on your own maps.
///
/// Exit status 1 where an error exceeds its budget.
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// File with tensors layer.<l> or <feature>/layer.<l>
    input: PathBuf,

    /// Check the first items of each batch only (the reference is slow)
    #[arg(long, value_name = "COUNT", default_value = "8")]
    items: NonZeroUsize,

    #[command(flatten)]
    select: SelectArgs,

    #[command(flatten)]
    config: ConfigArgs,

    #[command(flatten)]
    device: DeviceArgs,

    /// Print the table as JSON
    #[arg(long)]
    json: bool,
}

/// One line of the table.
struct Check {
    feature: String,
    output: &'static str,
    backend: String,
    /// NaN where one side is NaN and the other is not.
    error: f64,
    budget: f64,
}

impl Check {
    fn is_ok(&self) -> bool {
        self.error <= self.budget
    }
}

const KINDS: [(OutputKind, &str); 3] = [
    (OutputKind::Rows, "rows"),
    (OutputKind::Matrix, "matrix"),
    (OutputKind::Cumulative, "cumulative"),
];

/// Runs the subcommand.
pub fn run(args: &VerifyArgs) -> Result<()> {
    args.config.check_heeded(None, false)?;
    let file = InputFile::open(&args.input)?;
    let tensors = file.tensors()?;
    let per_kind: Vec<_> = KINDS
        .into_iter()
        .map(|(kind, name)| Ok((name, jobs(&tensors, &args.select, &args.config, kind)?)))
        .collect::<Result<_>>()?;

    let problems = per_kind
        .iter()
        .flat_map(|(_, jobs)| jobs)
        .map(|job| &job.problem);
    let devices = devices(&args.device, problems)?;
    let total = per_kind.iter().flat_map(|(_, jobs)| jobs);
    let mut progress = MapProgress::start(total.map(|job| job.problem.map_bytes() as u64).sum());
    let mut checks = Vec::new();
    let features = per_kind.first().map_or(0, |(_, jobs)| jobs.len());
    for feature in 0..features {
        for (name, jobs) in &per_kind {
            let job = &jobs[feature];
            check(job, name, args.items, &devices, &mut checks)?;
            progress.add(job.problem.map_bytes() as u64);
        }
    }
    drop(progress);

    let failed = checks.iter().filter(|check| !check.is_ok()).count();
    if args.json {
        print_json(&checks)?;
    } else {
        print_table(&checks)?;
    }
    match failed {
        0 => Ok(()),
        failed => Err(Error::Verify {
            failed,
            total: checks.len(),
        }),
    }
}

fn check(
    job: &Job<'_>,
    output: &'static str,
    items: NonZeroUsize,
    devices: &[Device],
    checks: &mut Vec<Check>,
) -> Result<()> {
    let items = 0..job.problem.shape().batch.min(items.get());
    let place = || Error::rollout(job.feature.place());
    let problem = job.problem.slice_batch(items.clone());
    let maps = job.feature.layers(items).map_err(place())?;
    let layers: Vec<HostLayer<'_>> = maps.iter().map(FeatureLayer::host_layer).collect();
    // Forms may differ where a NaN or an infinity takes part: nothing to hold them to.
    let defect = first_not_finite(&problem, &layers).map_err(place())?;
    if let Some(defect) = defect {
        return Err(job.feature.refuse("finite entries", &defect));
    }
    let expected = reference::rollout(&problem, &layers).map_err(place())?;
    let budget = budget(&problem, &layers, &expected).map_err(place())?;
    let mut seen = Vec::new();
    let mut variants = Vec::new();
    for device in devices {
        variants.extend(device.candidates(&problem).map_err(place())?);
    }
    for variant in variants {
        let mut plan = variant.plan(&problem).map_err(place())?;
        let label = format!("{variant}: {}", plan.variant());
        // What the plan chose by itself comes up again among all choices.
        if seen.contains(&label) {
            continue;
        }
        seen.push(label.clone());
        // What a backend forgets to write stays NaN and fails.
        let mut out = vec![f32::NAN; problem.output_len()];
        plan.run(&layers, &mut out, &mut |_| ()).map_err(place())?;
        checks.push(Check {
            feature: match job.feature.name() {
                "" => ".".to_owned(),
                name => name.to_owned(),
            },
            output,
            backend: label,
            error: max_error(&out, &expected),
            budget: if variant.is_half() {
                budget.max(half_budget(&problem, &expected))
            } else {
                budget
            },
        });
    }
    Ok(())
}

/// The CPU, and the GPU where there is one, unless the options name a device.
fn devices<'p>(
    args: &DeviceArgs,
    problems: impl Iterator<Item = &'p Problem>,
) -> Result<Vec<Device>> {
    let first = backend::open_for(args, problems)?;
    if args.device == DeviceArg::Auto && first.name() != "cpu" {
        return Ok(vec![backend::open_cpu(args)?, first]);
    }
    Ok(vec![first])
}

/// The largest absolute difference; NaN where exactly one of two elements is NaN.
pub fn max_error(got: &[f32], expected: &[f64]) -> f64 {
    let mut worst: f64 = 0.0;
    for (&got, &expected) in got.iter().zip(expected) {
        let got = f64::from(got);
        let agree = got == expected || (got.is_nan() && expected.is_nan());
        let error = if agree { 0.0 } else { (got - expected).abs() };
        if error.is_nan() {
            return error;
        }
        worst = error.max(worst);
    }
    worst
}

/// How far f32 arithmetic may be from the reference: `8 u sqrt(n)` times the largest element, with unit roundoff
/// `u = 2^-24` and `n` operations on the way to each element. That is the probabilistic bound of Higham & Mary 2019
/// (SIAM J. Sci. Comput. 41, A2815) with `lambda = 8`, for maps without negative entries. Entries from queries and keys add
/// those of a product and an exponential, and what a score loses, `2 u` times the largest that there can be.
fn budget(
    problem: &Problem,
    layers: &[HostLayer<'_>],
    expected: &[f64],
) -> attention_rollout::Result<f64> {
    let shape = problem.shape();
    // Per layer: heads to fuse, tokens to sum, and the scaling, residual and normalisation.
    let scores = problem.queries_keys();
    let per_entry = scores.map_or(0, |source| source.head_dim + 16);
    let operations = problem.layers().len() * (shape.heads + 2 * shape.tokens + 4 + per_entry);
    let largest = |values: &[f64]| values.iter().fold(0.0, |max: f64, v| max.max(v.abs()));
    let magnitude = match without_cancellation(problem)? {
        Some(problem) => largest(&reference::rollout(&problem, layers)?),
        None => largest(expected),
    };
    let unit_roundoff = f64::from(f32::EPSILON) / 2.0;
    let score = scores.map_or(0.0, |source| largest_score(source, layers));
    let relative = unit_roundoff * (8.0 * (operations as f64).sqrt() + 2.0 * score);
    Ok(relative * magnitude + f64::from(f32::MIN_POSITIVE))
}

/// The largest absolute score that there can be: that of the longest query and the longest key.
fn largest_score(source: &QueriesKeys, layers: &[HostLayer<'_>]) -> f64 {
    let length = |tensor: &HostTensor<'_>, head_dim: usize| {
        let squares = (0..tensor.len() / head_dim).map(|token| {
            let elements = (0..head_dim).map(|at| f64::from(tensor.get(token * head_dim + at)));
            elements.map(|element| element * element).sum::<f64>()
        });
        squares.fold(0.0, f64::max).sqrt()
    };
    let of_layer = |layer: &HostLayer<'_>| match layer {
        Layer::QueriesKeys { queries, keys, .. } => {
            length(queries, source.head_dim) * length(keys, source.head_dim)
        }
        _ => 0.0,
    };
    let largest = layers.iter().map(of_layer).fold(0.0, f64::max);
    f64::from(source.scale()).abs() * largest
}

/// How far products with fused maps rounded to f16 may be from the reference: each layer rounds one factor, by at most
/// `2^-11` of its value, and nothing cancels.
pub fn half_budget(problem: &Problem, expected: &[f64]) -> f64 {
    let largest = expected.iter().fold(0.0, |max: f64, v| max.max(v.abs()));
    problem.layers().len() as f64 / 2048.0 * largest
}

/// The problem with the magnitudes of its weights, where some are negative: terms that cancel keep their errors.
fn without_cancellation(problem: &Problem) -> attention_rollout::Result<Option<Problem>> {
    let config = problem.config();
    let head_fusion = match &config.head_fusion {
        HeadFusion::Weighted(weights) => {
            HeadFusion::Weighted(weights.iter().map(|w| w.abs()).collect())
        }
        other => other.clone(),
    };
    let absolute = |r: &Residual| Residual::new(r.attention.abs(), r.identity.abs());
    let residual = match &config.residual {
        ResidualWeights::Uniform(residual) => ResidualWeights::Uniform(absolute(residual)),
        ResidualWeights::PerLayer(all) => {
            ResidualWeights::PerLayer(all.iter().map(absolute).collect())
        }
    };
    if head_fusion == config.head_fusion && residual == config.residual {
        return Ok(None);
    }
    let config = RolloutConfig {
        head_fusion,
        residual,
        ..config.clone()
    };
    let mut builder = Problem::builder(*problem.shape(), problem.dtype())
        .config(config)
        .windows(problem.windows().to_vec());
    if let Some(source) = problem.queries_keys() {
        builder = builder.queries_keys(source.clone());
    }
    builder.build().map(Some)
}

fn print_table(checks: &[Check]) -> Result<()> {
    let width = |column: fn(&Check) -> &str, title: &str| {
        let widths = checks
            .iter()
            .map(|check| shown(column(check)).chars().count());
        widths.max().unwrap_or(0).max(title.len())
    };
    let feature = width(|check| &check.feature, "feature");
    let backend = width(|check| &check.backend, "backend");
    report::line(format_args!(
        "{:feature$}  {:10}  {:backend$}  {:>13}  {:>9}",
        "feature", "output", "backend", "max abs error", "budget"
    ))?;
    for check in checks {
        let verdict = if check.is_ok() { "ok" } else { "FAILED" };
        report::line(format_args!(
            "{:feature$}  {:10}  {:backend$}  {:>13.2e}  {:>9.2e}  {verdict}",
            shown(&check.feature),
            check.output,
            check.backend,
            check.error,
            check.budget
        ))?;
    }
    Ok(())
}

fn print_json(checks: &[Check]) -> Result<()> {
    let checks: Vec<_> = checks
        .iter()
        .map(|check| {
            json!({
                "feature": check.feature,
                "output": check.output,
                "backend": check.backend,
                // Not a number where one side is NaN; JSON has none, so null.
                "max_abs_error": check.error,
                "budget": check.budget,
                "ok": check.is_ok(),
            })
        })
        .collect();
    report::line(json!({ "checks": checks }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_that_was_never_written_fails() {
        assert_eq!(max_error(&[1.0, 2.5, 3.0], &[1.0, 2.0, 3.25]), 0.5);
        assert_eq!(
            max_error(&[f32::NAN, f32::INFINITY], &[f64::NAN, f64::INFINITY]),
            0.0
        );
        let check = Check {
            feature: String::new(),
            output: "rows",
            backend: String::new(),
            error: max_error(&[1.0, f32::NAN, 3.0], &[1.0, 2.0, 3.0]),
            budget: f64::INFINITY,
        };
        assert!(!check.is_ok());
    }
}
