//! Maps whose rollouts can be written down: oracles that share nothing with the reference.

use crate::common::compare::{UNIT_ROUNDOFF, assert_close};
use crate::common::generate::{Case, Random, maps_of};
use attention_rollout::cpu::{Options, Plan};
use attention_rollout::{
    DType, Discard, DiscardScope, HeadFusion, HostLayer, Output, Problem, Residual,
    ResidualWeights, RolloutConfig, Shape, StartRows, Strides, reference,
};
use proptest::prelude::*;

const SHAPE: Shape = Shape {
    layers: 3,
    batch: 2,
    heads: 2,
    tokens: 37,
};

/// The output of one map per layer, shared by items and heads, through both backends.
fn check(shape: Shape, config: RolloutConfig, maps: &[Vec<f32>], want: &[f64], tolerance: f64) {
    let strides = Strides {
        batch: 0,
        head: 0,
        row: shape.tokens,
    };
    let problem = Problem::builder(shape, DType::F32)
        .config(config)
        .strides(strides)
        .build()
        .unwrap();
    let layers: Vec<_> = maps.iter().map(|m| HostLayer::from(&m[..])).collect();
    let extents = problem.output_shape();
    let exact = reference::rollout(&problem, &layers).unwrap();
    let exact: Vec<f32> = exact.iter().map(|&v| v as f32).collect();
    assert_close("reference", &extents, &exact, want, |_| tolerance);
    let mut out = vec![f32::NAN; problem.output_len()];
    let mut plan = Plan::new(&problem, &Options::default()).unwrap();
    plan.run(&layers, &mut out).unwrap();
    assert_close("cpu", &extents, &out, want, |_| tolerance);
}

fn matrix(residual: Residual) -> RolloutConfig {
    RolloutConfig {
        residual: ResidualWeights::Uniform(residual),
        output: Output::Matrix,
        ..RolloutConfig::default()
    }
}

fn square(tokens: usize, entry: impl Fn(usize, usize) -> f64) -> Vec<f64> {
    (0..tokens * tokens)
        .map(|at| entry(at / tokens, at % tokens))
        .collect()
}

fn to_f32(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&v| v as f32).collect()
}

/// Every element of `want` for each item.
fn each_item(shape: Shape, want: &[f64]) -> Vec<f64> {
    want.repeat(shape.batch)
}

fn permutation(random: &mut Random, tokens: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..tokens).collect();
    for at in (1..tokens).rev() {
        order.swap(at, random.below(at + 1));
    }
    order
}

#[test]
fn attention_to_oneself_changes_nothing_but_scale() {
    let tokens = SHAPE.tokens;
    let identity = square(tokens, |i, j| f64::from(u8::from(i == j)));
    let maps = vec![to_f32(&identity); 3];
    // (a + b)^layers, exact in f32.
    let config = matrix(Residual::new(0.5, 0.25));
    let want: Vec<f64> = identity.iter().map(|v| v * 0.421875).collect();
    check(SHAPE, config, &maps, &each_item(SHAPE, &want), 0.0);
}

#[test]
fn every_token_has_an_equal_part_in_the_mean() {
    let identity = to_f32(&square(SHAPE.tokens, |i, j| f64::from(u8::from(i == j))));
    let config = RolloutConfig {
        output: Output::Rows(StartRows::Mean),
        ..RolloutConfig::default()
    };
    let want = vec![f64::from(1.0 / SHAPE.tokens as f32); SHAPE.tokens];
    check(
        SHAPE,
        config,
        &vec![identity; 3],
        &each_item(SHAPE, &want),
        0.0,
    );
}

#[test]
fn permutations_compose() {
    let tokens = SHAPE.tokens;
    let mut random = Random::new(3);
    let orders: Vec<_> = (0..3).map(|_| permutation(&mut random, tokens)).collect();
    let maps: Vec<_> = orders
        .iter()
        .map(|order| to_f32(&square(tokens, |i, j| f64::from(u8::from(order[i] == j)))))
        .collect();
    // Token i of the last layer looks at order[2][i], which looked at order[1][..], and so on.
    let want = square(tokens, |i, j| {
        f64::from(u8::from(orders[0][orders[1][orders[2][i]]] == j))
    });
    check(
        SHAPE,
        matrix(Residual::new(1.0, 0.0)),
        &maps,
        &each_item(SHAPE, &want),
        0.0,
    );
    let row = RolloutConfig {
        output: Output::Rows(StartRows::Last),
        ..matrix(Residual::new(1.0, 0.0))
    };
    let last = &want[(tokens - 1) * tokens..];
    check(SHAPE, row, &maps, &each_item(SHAPE, last), 0.0);
}

#[test]
fn uniform_attention_mixes_by_the_binomial_formula() {
    let tokens = SHAPE.tokens;
    let maps = vec![vec![1.0 / tokens as f32; tokens * tokens]; 3];
    // U^2 = U, so (a U + b I)^L = b^L I + (1 - b^L) U for a + b = 1.
    let stay = 0.25f64.powi(3);
    let want = square(tokens, |i, j| {
        stay * f64::from(u8::from(i == j)) + (1.0 - stay) / tokens as f64
    });
    let tolerance = 3.0 * (tokens + 8) as f64 * UNIT_ROUNDOFF;
    check(
        SHAPE,
        matrix(Residual::new(0.75, 0.25)),
        &maps,
        &each_item(SHAPE, &want),
        tolerance,
    );
}

#[test]
fn normalised_rows_undo_any_scale() {
    let tokens = SHAPE.tokens;
    // Uniform maps of any size, normalised without identity, are uniform maps.
    let maps: Vec<_> = [0.1f32, 3.0, 7.0]
        .iter()
        .map(|&v| vec![v; tokens * tokens])
        .collect();
    let config = RolloutConfig {
        normalize_rows: true,
        ..matrix(Residual::new(2.0, 0.0))
    };
    let want = vec![1.0 / tokens as f64; tokens * tokens];
    let tolerance = 6.0 * (tokens + 8) as f64 * UNIT_ROUNDOFF / tokens as f64;
    check(SHAPE, config, &maps, &each_item(SHAPE, &want), tolerance);
    // Rows without anything stay so.
    let config = RolloutConfig {
        normalize_rows: true,
        ..matrix(Residual::new(1.0, 0.0))
    };
    let empty = vec![vec![0.0; tokens * tokens]; 3];
    check(SHAPE, config, &empty, &vec![0.0; 2 * tokens * tokens], 0.0);
}

#[test]
fn discard_zeroes_the_smallest_and_the_first_of_equals() {
    let shape = Shape {
        layers: 1,
        batch: 2,
        heads: 1,
        tokens: 3,
    };
    let map = vec![0.1, 0.2, 0.3, 0.2, 0.2, 0.9, 0.8, 0.2, 0.7];
    let discarded = |count: f64, scope| RolloutConfig {
        discard: Some(Discard {
            ratio: (count + 0.5) / 9.0,
            scope,
        }),
        ..matrix(Residual::new(1.0, 0.0))
    };
    let case = |config, want: [f64; 9]| {
        check(
            shape,
            config,
            std::slice::from_ref(&map),
            &each_item(shape, &want),
            1e-7,
        );
    };
    // (0, 0) is the smallest: it counts, but stays.
    case(
        discarded(3.0, DiscardScope::Map),
        [0.1, 0.0, 0.3, 0.0, 0.2, 0.9, 0.8, 0.2, 0.7],
    );
    case(
        discarded(8.0, DiscardScope::Map),
        [0.1, 0.0, 0.0, 0.0, 0.0, 0.9, 0.0, 0.0, 0.0],
    );
    // The block without the first token has 4 entries: 0.2, 0.9, 0.2, 0.7.
    let patches = |ratio| RolloutConfig {
        discard: Some(Discard {
            ratio,
            scope: DiscardScope::Patches { special_tokens: 1 },
        }),
        ..matrix(Residual::new(1.0, 0.0))
    };
    case(patches(0.25), [0.1, 0.2, 0.3, 0.2, 0.0, 0.9, 0.8, 0.2, 0.7]);
    case(patches(0.75), [0.1, 0.2, 0.3, 0.2, 0.0, 0.9, 0.8, 0.0, 0.0]);
    case(patches(0.2), [0.1, 0.2, 0.3, 0.2, 0.2, 0.9, 0.8, 0.2, 0.7]);
}

#[test]
fn discard_orders_signed_zeros_and_nan() {
    let shape = Shape {
        layers: 1,
        batch: 1,
        heads: 1,
        tokens: 2,
    };
    let config = |ratio| RolloutConfig {
        discard: Some(Discard {
            ratio,
            scope: DiscardScope::Patches { special_tokens: 0 },
        }),
        ..matrix(Residual::new(1.0, 0.0))
    };
    // 0 and -0 are equal, so the first of them goes; NaN is the largest and goes last.
    // Whatever its sign.
    for nan in [f32::NAN, -f32::NAN] {
        let map = vec![nan, 0.0, -0.0, 1.0];
        let map = std::slice::from_ref(&map);
        let kept = [f64::NAN, 0.0, 0.0, 1.0];
        check(shape, config(0.25), map, &kept, 0.0);
        let kept = [f64::NAN, 0.0, 0.0, 0.0];
        check(shape, config(0.75), map, &kept, 0.0);
    }
    let map = vec![-1.0, 2.0, -3.0, 0.0];
    check(shape, config(0.5), &[map], &[0.0, 2.0, 0.0, 0.0], 0.0);
}

#[test]
fn nan_propagates_through_every_fusion() {
    let shape = Shape {
        layers: 1,
        batch: 1,
        heads: 3,
        tokens: 33,
    };
    for head_fusion in [
        HeadFusion::Mean,
        HeadFusion::Max,
        HeadFusion::Min,
        HeadFusion::Weighted(vec![1.0, 2.0, 3.0]),
    ] {
        for head in 0..3 {
            let config = RolloutConfig {
                head_fusion: head_fusion.clone(),
                ..RolloutConfig::default()
            };
            let problem = Problem::new(shape, DType::F32, config).unwrap();
            let mut maps = vec![0.5; 3 * 33 * 33];
            maps[head * 33 * 33 + 7] = f32::NAN;
            let mut out = vec![0.0; 33];
            let mut plan = Plan::new(&problem, &Options::default()).unwrap();
            plan.run(&[HostLayer::from(&maps[..])], &mut out).unwrap();
            for (j, value) in out.iter().enumerate() {
                assert_eq!(
                    value.is_nan(),
                    j == 7,
                    "{head_fusion:?}, head {head}, column {j}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Renaming the tokens of all maps renames the tokens of the rollout.
    #[test]
    fn tokens_may_be_renamed(tokens in 1..=40usize, seed: u64) {
        let shape = Shape { tokens, ..SHAPE };
        let mut case = Case::new(shape, seed);
        case.config = matrix(Residual::default());
        let generated = case.generate();
        let layers = generated.layers();
        let order = permutation(&mut Random::new(seed), tokens);
        let renamed: Vec<Vec<f32>> = layers
            .iter()
            .map(|layer| {
                let maps = maps_of(layer);
                (0..maps.len())
                    .map(|at| {
                        let (map, i, j) = (at / (tokens * tokens), at / tokens % tokens, at % tokens);
                        maps.get((map * tokens + order[i]) * tokens + order[j])
                    })
                    .collect()
            })
            .collect();
        let renamed: Vec<_> = renamed.iter().map(|l| HostLayer::from(&l[..])).collect();
        let mut plan = Plan::new(&generated.problem, &Options::default()).unwrap();
        let mut out = vec![vec![f32::NAN; generated.problem.output_len()]; 2];
        plan.run(&layers, &mut out[0]).unwrap();
        plan.run(&renamed, &mut out[1]).unwrap();
        let want: Vec<f64> = (0..out[0].len())
            .map(|at| {
                let (item, i, j) = (at / (tokens * tokens), at / tokens % tokens, at % tokens);
                out[0][(item * tokens + order[i]) * tokens + order[j]].into()
            })
            .collect();
        // Both are off by no more than this; sums of rows are 1.
        let tolerance = 2.0 * 3.0 * (tokens + 10) as f64 * UNIT_ROUNDOFF;
        assert_close("renamed", &generated.problem.output_shape(), &out[1], &want, |_| tolerance);
    }

    /// Rows of `0.5 (A + I)` sum to 1, and so do their products.
    #[test]
    fn rows_sum_to_one(tokens in 1..=40usize, seed: u64, causal: bool, normalize_rows: bool) {
        let shape = Shape { tokens, ..SHAPE };
        let mut case = Case::new(shape, seed);
        case.config = RolloutConfig {
            causal,
            normalize_rows,
            ..matrix(Residual::default())
        };
        let generated = case.generate();
        let mut out = vec![f32::NAN; generated.problem.output_len()];
        let mut plan = Plan::new(&generated.problem, &Options::default()).unwrap();
        plan.run(&generated.layers(), &mut out).unwrap();
        let sums: Vec<f32> = out
            .chunks_exact(tokens)
            .map(|row| row.iter().map(|&v| f64::from(v)).sum::<f64>() as f32)
            .collect();
        let tolerance = 3.0 * 2.0 * (tokens + 10) as f64 * UNIT_ROUNDOFF;
        assert_close("sums", &[2, tokens], &sums, &vec![1.0; sums.len()], |_| tolerance);
    }
}
