//! Comparison element by element, and the error budgets to compare with.

use attention_rollout::{
    DType, HeadFusion, HostLayer, Problem, Residual, ResidualWeights, RolloutConfig, reference,
};

/// Unit roundoff of f32.
pub const UNIT_ROUNDOFF: f64 = 1.0 / (1u64 << 24) as f64;

/// Asserts `|got - want| <= tolerance(index)` everywhere, in a way that NaN fails, and reports the element that
/// misses its tolerance by most.
pub fn assert_close(
    what: &str,
    shape: &[usize],
    got: &[f32],
    want: &[f64],
    tolerance: impl Fn(usize) -> f64,
) {
    if let Err(message) = check_close(what, shape, got, want, tolerance) {
        panic!("{message}");
    }
}

/// As [`assert_close`], but returns the message.
#[allow(
    clippy::neg_cmp_op_on_partial_ord,
    reason = "an excess that is NaN must not pass"
)]
pub fn check_close(
    what: &str,
    shape: &[usize],
    got: &[f32],
    want: &[f64],
    tolerance: impl Fn(usize) -> f64,
) -> Result<(), String> {
    if (got.len(), want.len()) != (want.len(), shape.iter().product()) {
        return Err(format!(
            "{what}: {} elements against {}, shape {shape:?}",
            got.len(),
            want.len()
        ));
    }
    let excess = |index: usize| {
        let (got, want) = (f64::from(got[index]), want[index]);
        // NaN agrees with NaN alone.
        match (got.is_nan(), want.is_nan()) {
            (true, true) => 0.0,
            (false, false) if got == want => 0.0,
            (false, false) => (got - want).abs() / tolerance(index),
            _ => f64::INFINITY,
        }
    };
    let worst = (0..got.len())
        .map(|index| (excess(index), index))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match worst {
        Some((excess, index)) if !(excess <= 1.0) => {
            let mut rest = index;
            let mut coordinate = vec![0; shape.len()];
            for (at, extent) in coordinate.iter_mut().zip(shape).rev() {
                (*at, rest) = (rest % extent, rest / extent);
            }
            Err(format!(
                "{what}: at {coordinate:?} of {shape:?}: got {:e}, want {:e}, {excess:.3} times the tolerance",
                got[index], want[index]
            ))
        }
        _ => Ok(()),
    }
}

/// What an evaluation in f32 may be off by, element by element.
///
/// Every output is a sum of products of non-negative terms, or is bounded by the same sum over magnitudes. In f32 a
/// layer costs one rounding per head (fusion), one per token (the sum over tokens), one more per token where rows are
/// normalised (their sums), and a handful for the residual and the weights. So the error of an output is at most
/// `layers * roundings * u` times the rollout of the magnitudes, and underflow adds next to nothing.
pub struct Budget {
    relative: f64,
    magnitudes: Vec<f64>,
}

impl Budget {
    /// The budget for `problem` on `layers`. Where rows are normalised, all terms must be non-negative.
    pub fn new(problem: &Problem, layers: &[HostLayer<'_>]) -> Self {
        let shape = problem.shape();
        let normalised = if problem.config().normalize_rows {
            shape.tokens
        } else {
            0
        };
        // A row of which tokens are excluded is divided by its sum; entries times gradients are rounded.
        let excluded = if problem.config().exclude_from_attention.is_empty() {
            0
        } else {
            shape.tokens + 2
        };
        let weighed = usize::from(problem.config().gradients.is_some());
        let roundings = shape.heads + shape.tokens + normalised + excluded + weighed + 8;
        Budget {
            relative: 2.0 * (problem.layers().len() * roundings) as f64 * UNIT_ROUNDOFF,
            magnitudes: reference::rollout(&magnitudes(problem), layers).expect("a valid problem"),
        }
    }

    /// The tolerance of output element `index`.
    pub fn tolerance(&self, index: usize) -> f64 {
        self.relative * self.magnitudes[index].abs() + f64::from(f32::MIN_POSITIVE)
    }
}

/// `problem` with every weight replaced by its magnitude.
fn magnitudes(problem: &Problem) -> Problem {
    let mut config: RolloutConfig = problem.config().clone();
    if let HeadFusion::Weighted(weights) = &mut config.head_fusion {
        if weights.iter().all(|w| *w >= 0.0) && !has_negative(&config.residual) {
            return problem.clone();
        }
        assert!(!config.normalize_rows && config.discard.is_none());
        weights.iter_mut().for_each(|w| *w = w.abs());
    }
    let magnitude = |r: &Residual| Residual::new(r.attention.abs(), r.identity.abs());
    config.residual = match &config.residual {
        ResidualWeights::Uniform(r) => ResidualWeights::Uniform(magnitude(r)),
        ResidualWeights::PerLayer(all) => {
            ResidualWeights::PerLayer(all.iter().map(magnitude).collect())
        }
    };
    let mut builder = Problem::builder(*problem.shape(), problem.dtype()).config(config);
    if let Some(source) = problem.queries_keys() {
        builder = builder.queries_keys(source.clone());
    }
    builder
        .layer_strides(
            (0..problem.shape().layers)
                .map(|l| *problem.strides(l))
                .collect(),
        )
        .windows(problem.windows().to_vec())
        .build()
        .expect("a valid problem")
}

fn has_negative(residual: &ResidualWeights) -> bool {
    match residual {
        ResidualWeights::Uniform(r) => r.attention < 0.0 || r.identity < 0.0,
        ResidualWeights::PerLayer(all) => all.iter().any(|r| r.attention < 0.0 || r.identity < 0.0),
    }
}

/// Unit roundoff of the maps' element type.
pub fn element_roundoff(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => UNIT_ROUNDOFF,
        DType::F16 => 1.0 / f64::from(1 << 11),
        DType::Bf16 => 1.0 / f64::from(1 << 8),
    }
}
