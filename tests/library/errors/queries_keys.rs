//! Descriptions of queries and keys that make no sense, and layers that do not fit them.

use attention_rollout::{
    DType, Discard, DiscardScope, Error, GradientRule, HeadFusion, HostLayer, HostTensor, Layer,
    LogBase, Lse, Problem, QueriesKeys, QueriesKeysStrides, Result, RolloutConfig, TokenStrides,
    validate,
};

use super::SHAPE;

fn source() -> QueriesKeys {
    QueriesKeys::new(&SHAPE, 16)
}

fn problem(source: QueriesKeys) -> Result<Problem> {
    Problem::builder(SHAPE, DType::F32)
        .queries_keys(source)
        .build()
}

fn error(source: QueriesKeys) -> Error {
    problem(source).unwrap_err()
}

#[test]
fn descriptions_that_make_no_sense() {
    for head_dim in [0, 4, 12, 264, usize::MAX] {
        let source = QueriesKeys {
            head_dim,
            ..source()
        };
        assert_error!(error(source), Error::Parameter { what: "the head size", got, .. } if *got == head_dim as f64);
    }
    for key_heads in [0, 2, 4] {
        let source = QueriesKeys {
            key_heads,
            ..source()
        };
        assert_error!(error(source), Error::KeyHeads { heads: 3, got } if *got == key_heads);
    }
    for bad in [f32::NAN, f32::INFINITY] {
        let not_finite = |source| {
            assert_error!(
                error(source),
                Error::Parameter {
                    expected: "finite",
                    ..
                }
            );
        };
        not_finite(QueriesKeys {
            scale: Some(bad),
            ..source()
        });
        not_finite(QueriesKeys {
            soft_caps: vec![bad],
            ..source()
        });
        not_finite(QueriesKeys {
            alibi_slopes: vec![0.5, bad, 0.25],
            ..source()
        });
        not_finite(QueriesKeys {
            sinks: vec![0.5, bad, 0.25],
            ..source()
        });
    }
    let negative = QueriesKeys {
        soft_caps: vec![1.0, -1.0],
        ..source()
    };
    assert_error!(
        error(negative),
        Error::Parameter {
            what: "a soft cap",
            ..
        }
    );
    let tolerance = QueriesKeys {
        mass_tolerance: Some(f32::NAN),
        ..source()
    };
    assert_error!(
        error(tolerance),
        Error::Parameter {
            what: "the mass tolerance",
            ..
        }
    );
    let windows = QueriesKeys {
        sliding_windows: vec![4; 3],
        ..source()
    };
    assert_eq!(
        error(windows).to_string(),
        "sliding windows: expected none, 1 that all layers share, or 1 for each of 2 layers, got 3"
    );
    let sinks = QueriesKeys {
        sinks: vec![0.0; 4],
        ..source()
    };
    assert_error!(
        error(sinks),
        Error::PerLayer {
            what: "sinks",
            width: 3,
            layers: 2,
            got: 4
        }
    );
    let far = TokenStrides {
        batch: 1,
        head: usize::MAX / 2,
        token: 16,
    };
    let strides = QueriesKeysStrides {
        queries: far,
        keys: far,
        lse: far,
    };
    let strides = QueriesKeys {
        strides: vec![strides],
        ..source()
    };
    assert_error!(error(strides), Error::SizeOverflow { .. });
    let config = RolloutConfig {
        gradients: Some(GradientRule::Heads),
        ..RolloutConfig::default()
    };
    let both = Problem::builder(SHAPE, DType::F32)
        .config(config)
        .queries_keys(source())
        .build();
    assert_eq!(
        both.unwrap_err().to_string(),
        "gradients cannot be had together with queries and keys"
    );
}

#[test]
fn layers_that_do_not_fit_their_description() {
    let values = vec![0.5_f32; 2 * 3 * 4 * 16];
    let halves = vec![half::f16::ONE; values.len()];
    let tensor = HostTensor::from(&values[..]);
    let short = HostTensor::from(&values[1..]);
    let lse = HostTensor::from(&values[..24]);
    let layer = |queries, keys, lse| Layer::QueriesKeys { queries, keys, lse };
    let given = problem(QueriesKeys {
        lse: Lse::Given(LogBase::E),
        ..source()
    })
    .unwrap();
    let recomputed = problem(source()).unwrap();
    let message = |problem: &Problem, layer: HostLayer<'_>| {
        problem.check_layer(1, &layer).unwrap_err().to_string()
    };
    given
        .check_layer(1, &layer(tensor, tensor, Some(lse)))
        .unwrap();
    recomputed
        .check_layer(1, &layer(tensor, tensor, None))
        .unwrap();
    assert_eq!(
        message(&given, layer(tensor, tensor, None)),
        "layer 1: expected queries, keys and LSE, got queries and keys"
    );
    assert_eq!(
        message(&recomputed, layer(tensor, tensor, Some(lse))),
        "layer 1: expected queries and keys, got queries, keys and LSE"
    );
    assert_eq!(
        message(&recomputed, Layer::Maps(tensor)),
        "layer 1: expected queries and keys, got maps"
    );
    assert_eq!(
        message(&recomputed, layer(short, tensor, None)),
        "layer 1, queries: its extents and strides reach 384 elements, got 383"
    );
    assert_eq!(
        message(&recomputed, layer(tensor, short, None)),
        "layer 1, keys: its extents and strides reach 384 elements, got 383"
    );
    assert_eq!(
        message(
            &given,
            layer(tensor, tensor, Some(HostTensor::from(&values[..23])))
        ),
        "layer 1, LSE: its extents and strides reach 24 elements, got 23"
    );
    assert_eq!(
        message(
            &given,
            layer(tensor, tensor, Some(HostTensor::from(&halves[..24])))
        ),
        "layer 1, LSE: expected f32 elements, got f16"
    );
    assert_eq!(
        message(
            &recomputed,
            layer(tensor, HostTensor::from(&halves[..]), None)
        ),
        "layer 1, keys: expected f32 elements, got f16"
    );
    let maps = Problem::new(SHAPE, DType::F32, RolloutConfig::default()).unwrap();
    assert_eq!(
        message(&maps, layer(tensor, tensor, None)),
        "layer 1: expected maps, got queries and keys"
    );
}

#[test]
fn the_first_element_that_is_not_a_number_is_named() {
    let problem = problem(QueriesKeys {
        lse: Lse::Given(LogBase::E),
        key_heads: 1,
        ..source()
    })
    .unwrap();
    let clean = vec![0.5_f32; 2 * 3 * 4 * 16];
    let defect = |operand: usize, at: usize| {
        let mut tensors = vec![clean.clone(), clean[..128].to_vec(), clean[..24].to_vec()];
        tensors[operand][at] = f32::NAN;
        let of = |tensors: &[Vec<f32>]| {
            let layer = Layer::QueriesKeys {
                queries: HostTensor::from(&tensors[0][..]),
                keys: HostTensor::from(&tensors[1][..]),
                lse: Some(HostTensor::from(&tensors[2][..])),
            };
            validate(&problem, &[layer, layer], 1e-3).unwrap()
        };
        of(&tensors).map(|defect| defect.to_string())
    };
    let all = [
        (
            0,
            2 * 64 + 3 * 16 + 5,
            "layer 0, item 0, head 2, row 3: element 5 of the query is NaN",
        ),
        (
            1,
            64 + 16 + 7,
            "layer 0, item 1, head 0, row 1: element 7 of the key is NaN",
        ),
        (
            2,
            12 + 4 + 2,
            "layer 0, item 1, head 1, row 2: the LSE is NaN",
        ),
    ];
    for (operand, at, expected) in all {
        assert_eq!(defect(operand, at).as_deref(), Some(expected));
    }
}

#[test]
fn sums_are_known_where_nothing_changes_what_rows_sum_to() {
    let given = QueriesKeys {
        lse: Lse::Given(LogBase::E),
        mass_tolerance: Some(0.25),
        ..source()
    };
    let tolerance = |source: &QueriesKeys, config: RolloutConfig| {
        let builder = Problem::builder(SHAPE, DType::F32).config(config);
        let problem = builder.queries_keys(source.clone()).build().unwrap();
        problem.mass_tolerance()
    };
    for head_fusion in [
        HeadFusion::Mean,
        HeadFusion::Weighted(vec![0.5, 0.25, 0.125]),
    ] {
        let config = RolloutConfig {
            head_fusion,
            ..RolloutConfig::default()
        };
        assert_eq!(tolerance(&given, config), Some(0.25));
    }
    let sinks = QueriesKeys {
        sinks: vec![0.5; SHAPE.heads],
        ..given.clone()
    };
    let nobody_looks = QueriesKeys {
        mass_tolerance: None,
        ..given.clone()
    };
    for source in [source(), sinks, nobody_looks] {
        assert_eq!(
            tolerance(&source, RolloutConfig::default()),
            None,
            "{source:?}"
        );
    }
    let changes: [fn(&mut RolloutConfig); 5] = [
        |config| config.head_fusion = HeadFusion::Max,
        |config| config.head_fusion = HeadFusion::Min,
        |config| config.normalize_rows = true,
        |config| config.discard = Some(Discard::new(0.5, DiscardScope::Map).unwrap()),
        |config| config.exclude_from_attention = vec![0],
    ];
    for change in changes {
        let mut config = RolloutConfig::default();
        change(&mut config);
        assert_eq!(tolerance(&given, config.clone()), None, "{config:?}");
    }
}
