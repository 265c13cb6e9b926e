//! What a problem says of itself: how much is read, and how large values can become.

use attention_rollout::{
    DType, Discard, DiscardScope, GradientRule, HeadFusion, Output, Problem, Residual,
    ResidualWeights, RolloutConfig, Shape, StartRows,
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
    assert_eq!(bytes(&causal), items * heads * (10 + 1 + 3) * f16);
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
    let infinite = f64::INFINITY;
    assert_eq!(bound(&weighted(&[2.0, -1.0]), &half, normalized), infinite);
    let negative = [(0.5, -0.5)];
    assert_eq!(bound(&HeadFusion::Mean, &negative, normalized), infinite);

    let grows = [(2.0, 1.0); 2];
    assert_eq!(bound(&weighted(&[2.0, 2.0]), &grows, excluding), 9.0);
    assert_eq!(bound(&weighted(&[2.0, -2.0]), &half, excluding), infinite);
    let weighed = |config: &mut RolloutConfig| config.gradients = Some(GradientRule::Heads);
    assert_eq!(bound(&HeadFusion::Mean, &half, weighed), infinite);
}
