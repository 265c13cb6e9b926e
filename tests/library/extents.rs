//! What a problem says of itself: how much is read, and how large values can become.

use attention_rollout::{
    DType, Discard, DiscardScope, GradientRule, HeadFusion, LogBase, Lse, Output, Problem,
    QueriesKeys, Residual, ResidualWeights, RolloutConfig, Shape, StartRows, Window,
};

fn problem(layers: usize, heads: usize, config: RolloutConfig) -> Problem {
    let shape = Shape {
        layers,
        batch: 2,
        heads,
        tokens: 4,
    };
    Problem::new(shape, DType::F16, config).unwrap()
}

#[test]
fn bytes_are_those_of_the_rows_that_are_read() {
    // Two start rows, the same for both items, which carry the tokens 0 and 2: of the last layer only these are read.
    let weights = vec![0.5, 0.0, 0.0, 0.0, 0.5, 0.0, 0.5, 0.0];
    let config = RolloutConfig {
        output: Output::Rows(StartRows::Weights { rows: 2, weights }),
        ..RolloutConfig::default()
    };
    let bytes = |config: &RolloutConfig| problem(2, 3, config.clone()).map_bytes();
    let (items, heads, f16) = (2, 3, 2);
    assert_eq!(bytes(&config), items * heads * (16 + 2 * 4) * f16);
    let causal = RolloutConfig {
        causal: true,
        ..config.clone()
    };
    // No layer needs a row behind the last of them.
    assert_eq!(bytes(&causal), items * heads * (6 + 1 + 3) * f16);
    let discarded = RolloutConfig {
        discard: Some(Discard::new(0.5, DiscardScope::Map).unwrap()),
        ..config.clone()
    };
    assert_eq!(bytes(&discarded), items * heads * (16 + 16) * f16);
    let weighed = RolloutConfig {
        gradients: Some(GradientRule::Heads),
        ..config
    };
    assert_eq!(bytes(&weighed), 2 * items * heads * (16 + 2 * 4) * f16);
}

#[test]
fn bytes_of_queries_and_keys_are_those_inside_the_windows() {
    let shape = Shape {
        layers: 2,
        batch: 2,
        heads: 6,
        tokens: 4,
    };
    let bytes = |lse: Lse| {
        let source = QueriesKeys {
            key_heads: 2,
            lse,
            ..QueriesKeys::new(&shape, 8)
        };
        let windows = [3, 2].map(|len| Window { start: 1, len });
        let builder = Problem::builder(shape, DType::F16).queries_keys(source);
        builder
            .windows(windows.to_vec())
            .build()
            .unwrap()
            .map_bytes()
    };
    let (layers, tokens, f16, f32) = (2, 3 + 2, 2, 4);
    let vectors = (6 + 2) * 8 * f16;
    assert_eq!(bytes(Lse::Recomputed), layers * tokens * vectors);
    assert_eq!(
        bytes(Lse::Given(LogBase::E)),
        layers * tokens * (vectors + 6 * f32)
    );
}

#[test]
fn the_longest_window_is_that_of_the_builder() {
    let shape = *problem(1, 1, RolloutConfig::default()).shape();
    let longest =
        |builder: attention_rollout::ProblemBuilder| builder.build().unwrap().max_window();
    assert_eq!(longest(Problem::builder(shape, DType::F32)), None);
    assert_eq!(
        longest(Problem::builder(shape, DType::F32).max_window(3)),
        Some(3)
    );
}

#[test]
fn a_part_of_a_batch_has_its_own_rows_and_weights() {
    let shape = Shape {
        layers: 1,
        batch: 3,
        heads: 1,
        tokens: 2,
    };
    let part = |rows: StartRows| {
        let config = RolloutConfig {
            output: Output::Rows(rows),
            ..RolloutConfig::default()
        };
        let whole = Problem::new(shape, DType::F32, config).unwrap();
        let part = whole.slice_batch(1..3);
        assert_eq!((part.shape().batch, part.windows().len()), (2, 2));
        match &part.config().output {
            Output::Rows(rows) => rows.clone(),
            output => panic!("rows became {output:?}"),
        }
    };
    let rows = StartRows::PerItem(vec![0, 1, 1, 1, 0, 1]);
    assert_eq!(part(rows), StartRows::PerItem(vec![1, 1, 0, 1]));
    let weights = |count: usize, first: usize| StartRows::Weights {
        rows: 2,
        weights: (first..first + count).map(|at| 1.0 + at as f32).collect(),
    };
    assert_eq!(part(weights(12, 0)), weights(8, 4));
    // These are of every item.
    assert_eq!(part(weights(4, 0)), weights(4, 0));
}

#[test]
fn growth_is_bounded_by_the_largest_row_sums() {
    let bound = |fusion: &HeadFusion, residuals: &[(f32, f32)], change: fn(&mut RolloutConfig)| {
        let residuals = residuals.iter().map(|&(a, b)| Residual::new(a, b));
        let mut config = RolloutConfig {
            head_fusion: fusion.clone(),
            residual: ResidualWeights::PerLayer(residuals.collect()),
            ..RolloutConfig::default()
        };
        change(&mut config);
        let (layers, heads) = match (&config.residual, fusion) {
            (ResidualWeights::PerLayer(layers), HeadFusion::Weighted(heads)) => {
                (layers.len(), heads.len())
            }
            (ResidualWeights::PerLayer(layers), _) => (layers.len(), 3),
            _ => unreachable!("it was set above"),
        };
        problem(layers, heads, config).growth_bound()
    };
    let weighted = |weights: &[f32]| HeadFusion::Weighted(weights.to_vec());
    let as_is = |_: &mut RolloutConfig| ();
    let normalized = |config: &mut RolloutConfig| config.normalize_rows = true;
    let excluding = |config: &mut RolloutConfig| config.exclude_from_attention = vec![1];
    let half = [(0.5, 0.5); 2];

    assert_eq!(bound(&HeadFusion::Mean, &half, as_is), 1.0);
    assert_eq!(bound(&HeadFusion::Min, &[(1.0, 1.0); 3], as_is), 8.0);
    assert_eq!(bound(&HeadFusion::Max, &[(1.0, 0.5); 2], as_is), 12.25);
    assert_eq!(bound(&HeadFusion::Mean, &[(-3.0, -1.0)], as_is), 4.0);
    assert_eq!(bound(&weighted(&[-2.0, 0.5]), &half, as_is), 3.0625);
    // One fused map, or one layer, exceeds what the rollout comes to.
    let shrunk = [(0.5, 0.0); 2];
    assert_eq!(bound(&weighted(&[-2.0, 0.5]), &shrunk, as_is), 2.5);
    let layer = [(0.125, 0.0), (4.0, 1.0)];
    assert_eq!(bound(&weighted(&[2.0]), &layer, as_is), 9.0);
    // So may layers that are multiplied before those that shrink them.
    let later = [(0.125, 0.0), (1.0, 1.0), (1.0, 1.0), (0.125, 0.0)];
    assert_eq!(bound(&HeadFusion::Mean, &later, as_is), 4.0);

    assert_eq!(bound(&HeadFusion::Mean, &[(3.0, 2.0); 3], normalized), 5.0);
    assert_eq!(bound(&weighted(&[2.0, 1.0]), &half, normalized), 3.0);
    assert!(bound(&weighted(&[2.0, 0.0]), &half, normalized).is_finite());
    let infinite = f64::INFINITY;
    assert_eq!(bound(&weighted(&[2.0, -1.0]), &half, normalized), infinite);
    let negative = [(0.5, -0.5)];
    assert_eq!(bound(&HeadFusion::Mean, &negative, normalized), infinite);
    let negative = [(-0.5, 0.5)];
    assert_eq!(bound(&HeadFusion::Mean, &negative, normalized), infinite);
    // Nothing is negative about 0.
    let absent = [(0.0, 1.0), (1.0, 0.0)];
    assert_eq!(bound(&HeadFusion::Mean, &absent, normalized), 1.0);

    let grows = [(2.0, 1.0); 2];
    assert_eq!(bound(&weighted(&[2.0, 2.0]), &grows, excluding), 9.0);
    assert_eq!(bound(&weighted(&[2.0, -2.0]), &half, excluding), infinite);
    let weighed = |config: &mut RolloutConfig| config.gradients = Some(GradientRule::Heads);
    assert_eq!(bound(&HeadFusion::Mean, &half, weighed), infinite);
}
