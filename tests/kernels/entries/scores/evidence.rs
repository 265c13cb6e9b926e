//! What runs leave of whether queries, keys and the LSE belong together, compared one by one with what the reference says, for
//! an LSE that is off.

use attention_rollout::cuda::address::Base;
use attention_rollout::cuda::kernel::{Mass, Probe};
use attention_rollout::{HeadFusion, HostLayer, LogBase, Lse, Shape, reference};

use super::FUSED;
use crate::cases::Path;
use crate::common::queries_keys::{ScoresCase, ScoresGenerated};
use crate::device::Device;
use crate::lab::Lab;

/// The natural logarithm of the base of the LSE.
fn unit(case: &ScoresCase) -> f64 {
    match case.source.lse {
        Lse::Given(LogBase::Two) => std::f64::consts::LN_2,
        _ => 1.0,
    }
}

/// The LSE of each layer.
fn lse_of(generated: &ScoresGenerated) -> Vec<Vec<f32>> {
    (generated.layers().iter())
        .map(|layer| match layer {
            HostLayer::QueriesKeys { lse: Some(lse), .. } => lse.as_slice().unwrap().to_vec(),
            _ => panic!("without an LSE"),
        })
        .collect()
}

/// An LSE that is off by something else in each row of each head, and sometimes says that there is nothing.
fn off(right: &[Vec<f32>]) -> Vec<Vec<f32>> {
    (right.iter().zip(1..))
        .map(|(lse, layer)| {
            let off = |(at, &lse): (usize, &f32)| match at % 23 {
                7 => f32::NEG_INFINITY,
                _ => lse + 0.01 * ((at * layer) % 19) as f32,
            };
            lse.iter().enumerate().map(off).collect()
        })
        .collect()
}

/// The layers with another LSE.
fn with_lse<'a>(generated: &'a ScoresGenerated, given: &'a [Vec<f32>]) -> Vec<HostLayer<'a>> {
    (generated.layers().into_iter().zip(given))
        .map(|(layer, given)| match layer {
            HostLayer::QueriesKeys { queries, keys, .. } => HostLayer::QueriesKeys {
                queries,
                keys,
                lse: Some(given[..].into()),
            },
            other => other,
        })
        .collect()
}

fn near(got: f32, want: f64) -> bool {
    (f64::from(got) - want).abs() <= 2e-5 * want.abs().max(1.0)
}

/// Sums of relevance after each layer, and what they must be by an LSE that is off: by `path`, which leaves those of
/// so many blocks.
pub fn of_relevance(lab: &Lab, case: &ScoresCase, path: Path, blocks: usize) -> Result<(), String> {
    let generated = case.generate();
    let problem = &generated.problem;
    let given = off(&lse_of(&generated));
    let layers = with_lse(&generated, &given);
    let device = Device::new(lab, problem, &layers, 0);
    let prepared = device.prepare(path);
    device.submit(path, &prepared)?;
    let masses: Vec<Mass> = device.table(&prepared, Base::Masses);
    let Shape {
        batch,
        heads,
        tokens,
        ..
    } = case.case.shape;
    let rows = problem.start_rows();
    let range = problem.layers();
    assert_eq!(masses.len(), range.len() * batch * rows * blocks);
    for layer in range.clone() {
        // Relevance before the layer: of the layers above it.
        let relevance = |from: usize| {
            let mut above = case.clone();
            above.case.config.layers = Some(from..range.end);
            let above = above.generate().problem;
            reference::rollout(&above, &layers).map_err(|error| error.to_string())
        };
        let before = match layer + 1 < range.end {
            true => Some(relevance(layer + 1)?),
            false => None,
        };
        let after = relevance(layer)?;
        let residual = problem.residual(layer);
        let (a, b) = (f64::from(residual.attention), f64::from(residual.identity));
        for (item, window) in problem.windows().iter().enumerate() {
            for row in 0..rows {
                let mut start = vec![0.0; window.len];
                problem.start_weights(item, row, &mut start);
                let at = |i: usize| (item * rows + row) * tokens + window.start + i;
                let (mut expected, mut magnitude, mut sum) = (0.0, 0.0, 0.0);
                for i in 0..window.len {
                    let weight = before.as_ref().map_or(f64::from(start[i]), |r| r[at(i)]);
                    let finite = |head: &usize| {
                        let lse = (item * heads + head) * tokens + window.start + i;
                        given[layer][lse].is_finite()
                    };
                    let shares = (0..heads).filter(finite);
                    let shares: Vec<f64> = shares
                        .map(|head| match &case.case.config.head_fusion {
                            HeadFusion::Weighted(weights) => f64::from(weights[head]),
                            _ => 1.0 / heads as f64,
                        })
                        .collect();
                    let all: f64 = shares.iter().map(|share| share.abs()).sum();
                    expected += weight * (a * shares.iter().sum::<f64>() + b);
                    magnitude += weight.abs() * (a * all + b);
                    sum += after[at(i)];
                }
                let index = ((layer - range.start) * batch + item) * rows + row;
                let of = |of: fn(&Mass) -> f32| {
                    masses[index * blocks..][..blocks]
                        .iter()
                        .map(of)
                        .sum::<f32>()
                };
                let right = near(of(|mass| mass.expected), expected)
                    && near(of(|mass| mass.magnitude), magnitude)
                    && near(of(|mass| mass.sum), sum);
                if !right {
                    let got = &masses[index * blocks..][..blocks];
                    return Err(format!(
                        "layer {layer}, item {item}, row {row}: {got:?}, {expected} {magnitude} {sum}"
                    ));
                }
            }
        }
    }
    Ok(())
}

/// Sums of rows and the LSE of some, of an LSE that is off by something else in each row of each head, and sometimes says
/// that there is nothing.
pub fn of_fused_maps(lab: &Lab, case: &ScoresCase) -> Result<(), String> {
    let generated = case.generate();
    let problem = &generated.problem;
    let unit = unit(case);
    let right = lse_of(&generated);
    let given = off(&right);
    let layers = with_lse(&generated, &given);
    let device = Device::new(lab, problem, &layers, 0);
    let prepared = device.prepare(FUSED);
    device.poison(&prepared, Base::Masses);
    device.poison(&prepared, Base::Probes);
    device.submit(FUSED, &prepared)?;
    let masses: Vec<Mass> = device.table(&prepared, Base::Masses);
    let probes: Vec<Probe> = device.table(&prepared, Base::Probes);
    let Shape {
        batch,
        heads,
        tokens,
        ..
    } = case.case.shape;
    let longest = problem.max_window().unwrap();
    let range = problem.layers();
    let mut compared = 0;
    for layer in range.clone() {
        let mut one = case.clone();
        one.case.config.layers = Some(layer..layer + 1);
        let one = one.generate().problem;
        let map = reference::rollout(&one, &layers).map_err(|error| error.to_string())?;
        for (item, window) in problem.windows().iter().enumerate() {
            let index = (layer - range.start) * batch + item;
            let lse = |all: &[f32], head: usize, row: usize| {
                f64::from(all[(item * heads + head) * tokens + window.start + row]) * unit
            };
            for row in 0..longest {
                let mass = masses[index * longest + row];
                let shares: Vec<f64> = (0..heads)
                    .filter(|&head| row < window.len && lse(&given[layer], head, row).is_finite())
                    .map(|head| match &case.case.config.head_fusion {
                        HeadFusion::Weighted(weights) => f64::from(weights[head]),
                        _ => 1.0 / heads as f64,
                    })
                    .collect();
                let sum: f64 = match row < window.len {
                    true => map[(item * tokens + window.start + row) * tokens..][..tokens]
                        .iter()
                        .sum(),
                    false => 0.0,
                };
                let magnitude: f64 = shares.iter().map(|share| share.abs()).sum();
                let right = near(mass.expected, shares.iter().sum())
                    && near(mass.magnitude, magnitude)
                    && near(mass.sum, sum);
                if !right {
                    return Err(format!(
                        "layer {layer}, item {item}, row {row}: {mass:?}, {sum}"
                    ));
                }
                compared += 1;
            }
            let first = window.len.saturating_sub(64);
            for (at, probe) in probes[index * heads * 64..][..heads * 64]
                .iter()
                .enumerate()
            {
                let (head, row) = (at / 64, first + at % 64);
                let (expected, got) = match row < window.len {
                    true => (lse(&right[layer], head, row), lse(&given[layer], head, row)),
                    false => (0.0, 0.0),
                };
                let is_given = f64::from(probe.got) == got || near(probe.got, got);
                if !is_given || !near(probe.expected, expected) {
                    return Err(format!("layer {layer}, item {item}, row {row}: {probe:?}"));
                }
                compared += 1;
            }
        }
    }
    let all = masses.len() + probes.len();
    match compared == all && all > 0 {
        true => Ok(()),
        false => Err(format!("{compared} of {all} compared")),
    }
}
