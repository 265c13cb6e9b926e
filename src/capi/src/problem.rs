//! A problem of the caller's, as the library has it.

use attention_rollout::{
    DType, Discard, DiscardScope, GradientRule, HeadFusion, Output, Problem, Residual,
    ResidualWeights, RolloutConfig, Shape, StartRows, Strides, Window,
};

use crate::error::Result;
use crate::given::{choice, list};
use crate::queries_keys::queries_keys;
use crate::types::{
    ArDiscardScope, ArDtype, ArGradients, ArHeadFusion, ArOutput, ArProblem, ArResidual, ArRows,
    ArStrides, ArWindow,
};

impl From<ArStrides> for Strides {
    fn from(ArStrides { batch, head, row }: ArStrides) -> Self {
        Strides { batch, head, row }
    }
}

impl From<ArWindow> for Window {
    fn from(ArWindow { start, len }: ArWindow) -> Self {
        Window { start, len }
    }
}

impl From<ArResidual> for Residual {
    fn from(given: ArResidual) -> Self {
        Residual::new(given.attention, given.identity)
    }
}

/// Checks and copies a problem.
///
/// # Safety
/// Its pointers are null, or point to as many elements as it says; so are those of its queries and keys.
pub unsafe fn problem(given: &ArProblem) -> Result<Problem> {
    let shape = Shape {
        layers: given.layers,
        batch: given.batch,
        heads: given.heads,
        tokens: given.tokens,
    };
    let dtype = match choice("dtype", given.dtype)? {
        ArDtype::F32 => DType::F32,
        ArDtype::F16 => DType::F16,
        ArDtype::Bf16 => DType::Bf16,
    };
    // SAFETY: the caller's promise.
    let (config, strides, windows) = unsafe {
        (
            config(given)?,
            list("strides", given.strides, given.strides_count)?,
            list("windows", given.windows, given.windows_count)?,
        )
    };
    let mut builder = Problem::builder(shape, dtype).config(config);
    builder = match *strides {
        [] => builder,
        [strides] => builder.strides(strides.into()),
        _ => builder.layer_strides(strides.iter().map(|&strides| strides.into()).collect()),
    };
    if !windows.is_empty() {
        builder = builder.windows(windows.iter().map(|&window| window.into()).collect());
    }
    if given.max_window > 0 {
        builder = builder.max_window(given.max_window);
    }
    if !given.queries_keys.is_null() {
        // SAFETY: the caller's promise.
        builder = builder.queries_keys(unsafe { queries_keys(&shape, given.queries_keys)? });
    }
    Ok(builder.build()?)
}

/// What to compute.
///
/// # Safety
/// As [`problem`].
unsafe fn config(given: &ArProblem) -> Result<RolloutConfig> {
    // SAFETY: the caller's promise.
    let (head_weights, residuals, excluded) = unsafe {
        (
            list("head_weights", given.head_weights, given.head_weights_count)?,
            list("residuals", given.residuals, given.residuals_count)?,
            list("excluded", given.excluded, given.excluded_count)?,
        )
    };
    let discard_scope = match choice("discard_scope", given.discard_scope)? {
        ArDiscardScope::Map => DiscardScope::Map,
        ArDiscardScope::Patches => DiscardScope::Patches {
            special_tokens: given.special_tokens,
        },
    };
    let end = match given.end_layer {
        0 => given.layers,
        end => end,
    };
    Ok(RolloutConfig {
        head_fusion: match choice("head_fusion", given.head_fusion)? {
            ArHeadFusion::Mean => HeadFusion::Mean,
            ArHeadFusion::Max => HeadFusion::Max,
            ArHeadFusion::Min => HeadFusion::Min,
            ArHeadFusion::Weighted => HeadFusion::Weighted(head_weights.to_vec()),
        },
        gradients: match choice("gradients", given.gradients)? {
            ArGradients::None => None,
            ArGradients::Heads => Some(GradientRule::Heads),
            ArGradients::Fused => Some(GradientRule::Fused),
        },
        residual: match *residuals {
            [] => ResidualWeights::default(),
            [residual] => ResidualWeights::Uniform(residual.into()),
            _ => ResidualWeights::PerLayer(residuals.iter().map(|&given| given.into()).collect()),
        },
        normalize_rows: given.normalize_rows != 0,
        discard: (given.discard_ratio != 0.0)
            .then(|| Discard::new(given.discard_ratio, discard_scope))
            .transpose()?,
        exclude_from_attention: excluded.to_vec(),
        layers: Some(given.first_layer..end),
        causal: given.causal != 0,
        output: match choice("output", given.output)? {
            // SAFETY: the caller's promise.
            ArOutput::Rows => Output::Rows(unsafe { start_rows(given)? }),
            ArOutput::Matrix => Output::Matrix,
            ArOutput::Cumulative => Output::Cumulative,
        },
    })
}

/// Where the relevance starts.
///
/// # Safety
/// As [`problem`].
unsafe fn start_rows(given: &ArProblem) -> Result<StartRows> {
    // SAFETY: the caller's promise.
    let (rows, weights) = unsafe {
        (
            list("rows", given.rows, given.rows_count)?,
            list("row_weights", given.row_weights, given.row_weights_count)?,
        )
    };
    Ok(match choice("row_kind", given.row_kind)? {
        ArRows::List if rows.is_empty() => StartRows::Rows(vec![0]),
        ArRows::List => StartRows::Rows(rows.to_vec()),
        ArRows::PerItem => StartRows::PerItem(rows.to_vec()),
        ArRows::Last => StartRows::Last,
        ArRows::Mean => StartRows::Mean,
        ArRows::Weights => StartRows::Weights {
            rows: given.rows_weighted,
            weights: weights.to_vec(),
        },
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::types::ArMemory;

    /// All zero but for size and extents.
    pub(crate) fn smallest() -> ArProblem {
        // SAFETY: zeros are numbers and null pointers.
        let mut given: ArProblem = unsafe { std::mem::zeroed() };
        given.size = size_of::<ArProblem>();
        (given.layers, given.batch, given.heads, given.tokens) = (3, 2, 4, 5);
        given
    }

    const SHAPE: Shape = Shape {
        layers: 3,
        batch: 2,
        heads: 4,
        tokens: 5,
    };

    #[test]
    fn what_is_zero_has_its_default() {
        // SAFETY: there are no lists.
        let made = unsafe { problem(&smallest()) }.unwrap();
        let expected = RolloutConfig {
            layers: Some(0..3),
            ..Default::default()
        };
        assert_eq!(made, Problem::new(SHAPE, DType::F32, expected).unwrap());
        assert_eq!(smallest().memory, ArMemory::Host as u32);
    }

    #[test]
    fn every_field_arrives_in_its_place() {
        let strides = [100, 200, 300].map(|batch| ArStrides {
            batch,
            head: 25,
            row: 6,
        });
        let windows = [(1, 4), (0, 3)].map(|(start, len)| ArWindow { start, len });
        let residuals =
            [(0.1, 0.9), (0.2, 0.8), (0.3, 0.7)].map(|(attention, identity)| ArResidual {
                attention,
                identity,
            });
        let head_weights = [0.1, 0.2, 0.3, 0.4];
        let excluded = [2, 3];
        let row_weights: Vec<f32> = (0..20).map(|i| i as f32).collect();
        let mut given = smallest();
        given.dtype = ArDtype::Bf16 as u32;
        (given.strides, given.strides_count) = (strides.as_ptr(), 3);
        (given.windows, given.windows_count) = (windows.as_ptr(), 2);
        (given.residuals, given.residuals_count) = (residuals.as_ptr(), 3);
        given.head_fusion = ArHeadFusion::Weighted as u32;
        (given.head_weights, given.head_weights_count) = (head_weights.as_ptr(), 4);
        given.gradients = ArGradients::Fused as u32;
        given.normalize_rows = 1;
        given.causal = 2;
        given.discard_ratio = 0.25;
        given.discard_scope = ArDiscardScope::Patches as u32;
        given.special_tokens = 1;
        (given.excluded, given.excluded_count) = (excluded.as_ptr(), 2);
        (given.first_layer, given.end_layer) = (1, 2);
        given.row_kind = ArRows::Weights as u32;
        (given.row_weights, given.row_weights_count) = (row_weights.as_ptr(), 20);
        given.rows_weighted = 2;
        given.max_window = 5;
        let config = RolloutConfig {
            head_fusion: HeadFusion::Weighted(head_weights.to_vec()),
            gradients: Some(GradientRule::Fused),
            residual: ResidualWeights::PerLayer(residuals.map(Residual::from).to_vec()),
            normalize_rows: true,
            discard: Some(Discard {
                ratio: 0.25,
                scope: DiscardScope::Patches { special_tokens: 1 },
            }),
            exclude_from_attention: excluded.to_vec(),
            layers: Some(1..2),
            causal: true,
            output: Output::Rows(StartRows::Weights {
                rows: 2,
                weights: row_weights.clone(),
            }),
        };
        let expected = Problem::builder(SHAPE, DType::Bf16)
            .config(config)
            .layer_strides(strides.map(Strides::from).to_vec())
            .windows(windows.map(Window::from).to_vec())
            .max_window(5);
        // SAFETY: the lists are as long as their counts.
        let made = unsafe { problem(&given) }.unwrap();
        assert_eq!(made, expected.build().unwrap());
    }

    #[test]
    fn rows_and_outputs_are_told_apart() {
        let rows = [3, 1];
        let rows_of = |kind: ArRows, count| {
            let mut given = smallest();
            given.row_kind = kind as u32;
            (given.rows, given.rows_count) = (rows.as_ptr(), count);
            // SAFETY: the list is at least as long as its count.
            unsafe { problem(&given) }.unwrap().config().output.clone()
        };
        let list = rows.to_vec();
        for (kind, count, expected) in [
            (ArRows::List, 0, StartRows::Rows(vec![0])),
            (ArRows::List, 2, StartRows::Rows(list.clone())),
            (ArRows::PerItem, 2, StartRows::PerItem(list)),
            (ArRows::Last, 0, StartRows::Last),
            (ArRows::Mean, 0, StartRows::Mean),
        ] {
            assert_eq!(rows_of(kind, count), Output::Rows(expected));
        }
        for (output, expected) in [
            (ArOutput::Matrix, Output::Matrix),
            (ArOutput::Cumulative, Output::Cumulative),
        ] {
            let mut given = smallest();
            given.output = output as u32;
            // SAFETY: there are no lists.
            let made = unsafe { problem(&given) }.unwrap();
            assert_eq!(made.config().output, expected);
        }
        for (fusion, expected) in [
            (ArHeadFusion::Max, HeadFusion::Max),
            (ArHeadFusion::Min, HeadFusion::Min),
        ] {
            let mut given = smallest();
            given.head_fusion = fusion as u32;
            // SAFETY: there are no lists.
            let made = unsafe { problem(&given) }.unwrap();
            assert_eq!(made.config().head_fusion, expected);
        }
    }
}
