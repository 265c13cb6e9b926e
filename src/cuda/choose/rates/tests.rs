use std::path::Path;

use super::*;
use crate::config::{Discard, DiscardScope, GradientRule, Output, RolloutConfig, StartRows};
use crate::cuda::choose::{Workload, preferred};
use crate::cuda::options::{LayerOrder, Precision};
use crate::cuda::pipeline::{Pipeline, rows_read_fused};
use crate::dtype::DType::{self, F16, F32};
use crate::layout::Shape;
use crate::problem::Problem;
use crate::queries_keys::QueriesKeys;

const TABLES: [(&str, &Rates); 2] = [("h200", &Rates::H200), ("h100", &Rates::H100)];

#[test]
fn every_rate_is_from_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (model, rates) in TABLES {
        for (name, rate) in rates.clone().all() {
            assert!(rate.value > 0.0 && rate.value.is_finite(), "{name}");
            let source = rate.origin.source();
            let there = match rate.origin {
                Origin::Counted => false,
                Origin::Measured(file) | Origin::Predicted(file) => {
                    // Of that very device. What is measured and predicted with lies in the repository, not in the package.
                    let is_there = root.join(file).is_file() || !root.join(".ci").exists();
                    is_there && file.contains(model)
                }
                Origin::Published(source) | Origin::Assumed(source) => !source.is_empty(),
            };
            assert!(there, "{model}, {name}: {source:?}");
        }
    }
}

#[test]
fn a_device_goes_by_its_own_table_or_by_assumptions() {
    for (model, rates) in TABLES {
        let limits = DeviceLimits::of_model(model).unwrap();
        assert_eq!(Rates::of(&limits), rates, "{model}");
        // What a group gives one of its members.
        for multiprocessors in [1, 7, 131] {
            let peak = f64::from(limits.memory_bytes_per_us);
            let peak = peak / f64::from(limits.multiprocessors) * f64::from(multiprocessors);
            let share = DeviceLimits {
                multiprocessors,
                memory_bytes_per_us: peak as u32,
                ..limits.clone()
            };
            assert_eq!(Rates::of(&share), rates, "{model}, {multiprocessors}");
        }
    }
    let others = DeviceLimits::MODELS.into_iter();
    let others = others.filter(|(name, _)| TABLES.iter().all(|(model, _)| model != name));
    let silent = DeviceLimits {
        memory_bytes_per_us: 0,
        ..DeviceLimits::H200
    };
    for (name, limits) in others.chain([("without a peak", silent)]) {
        let (mut rates, mut h200) = (Rates::of(&limits).clone(), Rates::H200.clone());
        for ((rate, figure), (_, of_h200)) in rates.all().into_iter().zip(h200.all()) {
            assert_eq!(figure.value, of_h200.value, "{name}: {rate}");
            assert!(
                matches!(figure.origin, Origin::Assumed(_)),
                "{name}: {rate}"
            );
        }
    }
}

/// Problems of all kinds that estimates tell apart: each alone, some as members of a group, or layer by layer.
fn problems() -> Vec<(Problem, bool, Option<LayerOrder>)> {
    let rows = |rows| Output::Rows(StartRows::Rows(rows));
    let config = |output, discard: bool, gradients: bool| RolloutConfig {
        output,
        discard: discard.then_some(Discard {
            ratio: 0.9,
            scope: DiscardScope::Map,
        }),
        gradients: gradients.then_some(GradientRule::Heads),
        ..RolloutConfig::default()
    };
    let of = |[layers, batch, heads, tokens]: [usize; 4], dtype, config| {
        let shape = Shape {
            layers,
            batch,
            heads,
            tokens,
        };
        let problem = Problem::builder(shape, dtype);
        let problem = match config {
            Some(config) => problem.config(config),
            None => problem.queries_keys(QueriesKeys::new(&shape, 64)),
        };
        problem.build().unwrap()
    };
    let row = || Some(config(rows(vec![0]), false, false));
    let matrix = || Some(config(Output::Matrix, false, false));
    let alone = [
        of([12, 8, 12, 197], F32, row()),
        of([24, 1, 16, 577], F16, row()),
        of(
            [12, 2, 12, 512],
            F32,
            Some(config(rows(vec![0, 3, 5]), false, false)),
        ),
        of(
            [12, 64, 12, 197],
            F32,
            Some(config(rows(vec![0]), true, false)),
        ),
        of(
            [12, 8, 12, 197],
            F16,
            Some(config(rows(vec![0]), false, true)),
        ),
        of([6, 4, 12, 28], F32, matrix()),
        of([3, 400, 2, 100], F16, matrix()),
        of([3, 400, 2, 100], F32, matrix()),
        of([12, 64, 12, 197], F32, matrix()),
        of([24, 1, 16, 577], F16, matrix()),
        of([4, 6, 2, 512], F16, matrix()),
        of([12, 1, 2, 197], F16, matrix()),
        of(
            [3, 64, 2, 197],
            F32,
            Some(config(Output::Matrix, true, true)),
        ),
        of([6, 4, 12, 64], F16, None),
        of([4, 8, 12, 512], F16, None),
        of([2, 64, 12, 197], F16, None),
    ];
    let alone = alone.map(|problem| (problem, false, None));
    let member = |tokens| (of([3, 64, 4, tokens], F32, row()), true, None);
    let streamed = |config| {
        (
            of([12, 8, 12, 197], F32, config),
            false,
            Some(LayerOrder::Forward),
        )
    };
    let others = [
        member(100),
        member(1000),
        streamed(row()),
        streamed(matrix()),
        streamed(Some(config(rows(vec![0]), true, false))),
    ];
    alone.into_iter().chain(others).collect()
}

#[test]
fn an_estimate_is_as_weak_as_the_weakest_rate_that_changes_it() {
    const WEAK: Origin = Origin::Assumed("nobody knows");
    const STRONG: Origin = Origin::Measured("a file");
    let mut rates = Rates::H200.clone();
    rates
        .all()
        .iter_mut()
        .for_each(|(_, rate)| rate.origin = STRONG);
    let names: Vec<&str> = rates.all().iter().map(|(name, _)| *name).collect();
    // Each rate much larger, or much less: what is hidden by something longer is not then.
    let others: Vec<(usize, Rates)> = (0..names.len())
        .flat_map(|index| [(index, 8.0), (index, 0.125)])
        .map(|(index, factor)| {
            let mut other = rates.clone();
            let rate = &mut other.all()[index].1;
            (rate.value, rate.origin) = (factor * rate.value, WEAK);
            (index, other)
        })
        .collect();
    let mut matter = vec![false; names.len()];
    for (problem, grouped, order) in problems() {
        let fused_first = rows_read_fused(&problem) || order.is_some();
        let batch = problem.shape().batch;
        let work = |rates| Workload {
            rates,
            grouped,
            order,
            ..Workload::new(&problem, batch, &DeviceLimits::H200, fused_first)
        };
        let known = work(&rates);
        let others: Vec<(usize, Workload<'_>)> = others
            .iter()
            .map(|(index, rates)| (*index, work(rates)))
            .collect();
        for (_, pipeline) in known.candidates(Precision::F32) {
            let estimate = known.microseconds(pipeline);
            assert_eq!(estimate.origin, STRONG, "{pipeline}");
            for (index, other) in &others {
                let other = other.microseconds(pipeline);
                if other.value != estimate.value {
                    matter[*index] = true;
                    assert_eq!(other.origin, WEAK, "{pipeline}: {}", names[*index]);
                }
            }
        }
    }
    let idle = names.iter().zip(&matter).filter(|(_, matters)| !**matters);
    let idle: Vec<_> = idle.map(|(name, _)| name).collect();
    assert!(idle.is_empty(), "rates on which nothing depends: {idle:?}");
}

#[test]
fn the_origins_of_pipelines_as_they_are() {
    let problem = |batch, tokens, output| {
        let shape = Shape {
            layers: 12,
            batch,
            heads: 12,
            tokens,
        };
        let config = RolloutConfig {
            output,
            ..RolloutConfig::default()
        };
        Problem::new(shape, F16, config).unwrap()
    };
    let origins = |problem: &Problem, name: &str| {
        let batch = problem.shape().batch;
        let work = Workload::new(problem, batch, &DeviceLimits::H200, false);
        let all = work.candidates(Precision::F32).into_iter();
        let all = all.filter(|(_, pipeline)| pipeline.to_string().starts_with(name));
        let mut origins: Vec<String> = all
            .map(|(_, pipeline)| work.microseconds(pipeline).origin.to_string())
            .collect();
        origins.sort_unstable();
        origins.dedup();
        origins
    };
    let [one, many] = [1, 64].map(|batch| problem(batch, 197, Output::default()));
    let three = Output::Rows(StartRows::Rows(vec![0, 1, 2]));
    let three = problem(64, 197, three);
    let [few_matrices, matrices] = [1, 66].map(|batch| problem(batch, 197, Output::Matrix));
    for (problem, pipeline, expected) in [
        (&one, "product", "predicted"),
        (&many, "ring rows", "predicted"),
        // What a second row takes at the end of a layer.
        (&three, "ring rows", "assumed"),
        (&matrices, "tree", "predicted"),
        // What a ring can take where others take nothing.
        (&few_matrices, "ring matrix", "assumed"),
        (&matrices, "ring matrix", "predicted"),
    ] {
        assert_eq!(origins(problem, pipeline), [expected], "{pipeline}");
    }
}

/// What the model of a multiprocessor predicts for an H100 of what is taken on an H200, in microseconds in a CUDA graph:
/// rows and the matrix of `[layers, batch, heads, tokens]`. Predictions, not measurements.
const PREDICTED_FOR_H100: [([usize; 4], DType, [f64; 2]); 8] = [
    ([12, 8, 12, 197], F16, [31.9, 69.7]),
    ([12, 8, 12, 197], F32, [56.5, 98.9]),
    ([12, 1, 12, 197], F16, [17.7, 24.6]),
    ([12, 1, 12, 197], F32, [18.0, 28.6]),
    ([12, 64, 12, 197], F16, [210.3, 253.7]),
    ([12, 64, 12, 197], F32, [414.0, 465.7]),
    ([24, 1, 16, 577], F16, [83.0, 229.4]),
    ([24, 1, 16, 577], F32, [159.2, 309.7]),
];

#[test]
fn estimates_for_an_h100_are_near_what_is_predicted() {
    let h100 = DeviceLimits::H100;
    for ([layers, batch, heads, tokens], dtype, predicted) in PREDICTED_FOR_H100 {
        let shape = Shape {
            layers,
            batch,
            heads,
            tokens,
        };
        let outputs = [Output::default(), Output::Matrix];
        for (output, predicted) in outputs.into_iter().zip(predicted) {
            let config = RolloutConfig {
                output,
                ..RolloutConfig::default()
            };
            let problem = Problem::new(shape, dtype, config).unwrap();
            let [h200, h100] = [&DeviceLimits::H200, &h100]
                .map(|limits| Workload::new(&problem, batch, limits, false));
            let mut all: Vec<(f64, Pipeline)> = h200.candidates(Precision::F32);
            all.sort_by(|a, b| a.0.total_cmp(&b.0));
            let pipeline = preferred(&all).unwrap();
            let estimate = h100.microseconds(pipeline).value;
            let factor = (estimate / predicted).max(predicted / estimate);
            assert!(
                factor < 1.5,
                "{shape} {dtype} {pipeline}: {estimate} us, predicted {predicted}"
            );
        }
    }
}
