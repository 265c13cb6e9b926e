//! Problems that make no sense.

use attention_rollout::{
    DType, Discard, DiscardScope, Error, HeadFusion, Output, Problem, Residual, ResidualWeights,
    RolloutConfig, Shape, StartRows, Strides, Window,
};

use super::SHAPE;

fn error(config: RolloutConfig) -> Error {
    Problem::new(SHAPE, DType::F32, config).unwrap_err()
}

fn rows(rows: StartRows) -> RolloutConfig {
    RolloutConfig {
        output: Output::Rows(rows),
        ..RolloutConfig::default()
    }
}

fn shape_error(shape: Shape) -> Error {
    Problem::new(shape, DType::F32, RolloutConfig::default()).unwrap_err()
}

#[test]
fn extents_of_zero() {
    for (shape, name) in [
        (Shape { layers: 0, ..SHAPE }, "layers"),
        (Shape { heads: 0, ..SHAPE }, "heads"),
        (Shape { tokens: 0, ..SHAPE }, "tokens"),
    ] {
        assert_error!(shape_error(shape), Error::ZeroExtent { what } if *what == name);
    }
    assert_error!(
        Window::from_mask(&[], 2, 0),
        Err(Error::ZeroExtent { what: "tokens" })
    );
    assert_error!(
        error(rows(StartRows::Rows(vec![]))),
        Error::ZeroExtent { .. }
    );
    let weights = StartRows::Weights {
        rows: 0,
        weights: vec![],
    };
    assert_error!(error(rows(weights)), Error::ZeroExtent { .. });
}

#[test]
fn sizes_that_overflow() {
    for shape in [
        Shape {
            tokens: usize::MAX,
            ..SHAPE
        },
        Shape {
            tokens: 1 << 31,
            ..SHAPE
        },
        // 2^63 bytes: they can be counted, and are one too many.
        Shape {
            layers: 1,
            batch: 1,
            heads: 1 << 31,
            tokens: 1 << 15,
        },
        Shape {
            batch: usize::MAX / 2,
            ..SHAPE
        },
        Shape {
            layers: usize::MAX / 2,
            ..SHAPE
        },
        Shape {
            layers: usize::MAX,
            batch: 0,
            heads: 1,
            tokens: 1,
        },
    ] {
        assert_error!(shape_error(shape), Error::SizeOverflow { .. });
    }
    for strides in [
        Strides {
            batch: usize::MAX,
            head: 0,
            row: 4,
        },
        Strides {
            batch: 0,
            head: usize::MAX / 2,
            row: 4,
        },
        Strides {
            batch: 0,
            head: 0,
            row: isize::MAX as usize,
        },
    ] {
        let error = Problem::builder(SHAPE, DType::F32)
            .strides(strides)
            .build()
            .unwrap_err();
        assert_error!(error, Error::SizeOverflow { .. });
    }
    let weights = StartRows::Weights {
        rows: usize::MAX / 2,
        weights: vec![],
    };
    assert_error!(error(rows(weights)), Error::SizeOverflow { .. });
    assert_error!(
        Window::from_mask(&[], usize::MAX, 2),
        Err(Error::SizeOverflow { .. })
    );
}

#[test]
fn counts_that_do_not_fit() {
    let builder = || Problem::builder(SHAPE, DType::F32);
    let strides = vec![Strides::contiguous(&SHAPE); 3];
    assert_error!(
        builder().layer_strides(strides).build().unwrap_err(),
        Error::Count {
            expected: 2,
            got: 3,
            ..
        }
    );
    assert_error!(
        builder()
            .windows(vec![Window::full(4)])
            .build()
            .unwrap_err(),
        Error::Count {
            expected: 2,
            got: 1,
            ..
        }
    );
    let weighted = RolloutConfig {
        head_fusion: HeadFusion::Weighted(vec![1.0; 2]),
        ..RolloutConfig::default()
    };
    assert_error!(
        error(weighted),
        Error::Count {
            expected: 3,
            got: 2,
            ..
        }
    );
    let residuals = RolloutConfig {
        residual: ResidualWeights::PerLayer(vec![Residual::default()]),
        ..RolloutConfig::default()
    };
    assert_error!(
        error(residuals),
        Error::Count {
            expected: 2,
            got: 1,
            ..
        }
    );
    assert_error!(
        error(rows(StartRows::PerItem(vec![0; 3]))),
        Error::Count {
            expected: 2,
            got: 3,
            ..
        }
    );
}

#[test]
#[allow(clippy::reversed_empty_ranges, reason = "that is what is refused")]
fn layer_ranges_that_are_empty_or_leave_the_problem() {
    for layers in [0..3, 2..2, 1..0, usize::MAX..usize::MAX] {
        let config = RolloutConfig {
            layers: Some(layers.clone()),
            ..RolloutConfig::default()
        };
        assert_error!(
            error(config),
            Error::LayerRange { start, end, layers: 2 } if (*start..*end) == layers
        );
    }
}

#[test]
fn windows_that_leave_the_tokens() {
    for window in [
        Window { start: 0, len: 5 },
        Window { start: 5, len: 0 },
        Window {
            start: usize::MAX,
            len: 2,
        },
    ] {
        let windows = vec![Window::full(4), window];
        let error = Problem::builder(SHAPE, DType::F32)
            .windows(windows)
            .build()
            .unwrap_err();
        assert_error!(
            error,
            Error::Window { item: 1, start, len, tokens: 4 } if (*start, *len) == (window.start, window.len)
        );
    }
}

#[test]
fn masks_with_gaps_or_of_another_length() {
    let (o, x) = (false, true);
    let windows = Window::from_mask(&[x, x, o, o, o, x, o, o, o, o, o, o], 3, 4).unwrap();
    let window = |start, len| Window { start, len };
    assert_eq!(windows, [window(0, 2), window(1, 1), window(0, 0)]);
    assert_error!(
        Window::from_mask(&[x, x, x, x, x, o, x, x], 2, 4),
        Err(Error::MaskGap { item: 1, token: 2 })
    );
    assert_error!(
        Window::from_mask(&[x; 7], 2, 4),
        Err(Error::Len {
            what: "attention mask",
            expected: 8,
            got: 7
        })
    );
}

#[test]
fn start_rows_outside_their_windows() {
    assert_error!(
        error(rows(StartRows::Rows(vec![0, 4]))),
        Error::StartRow {
            item: 0,
            row: 4,
            len: 4
        }
    );
    assert_error!(
        error(rows(StartRows::PerItem(vec![3, 9]))),
        Error::StartRow {
            item: 1,
            row: 9,
            len: 4
        }
    );
    let windows = vec![Window::full(4), Window { start: 2, len: 1 }];
    let problem = Problem::builder(SHAPE, DType::F32)
        .config(rows(StartRows::Rows(vec![1])))
        .windows(windows)
        .build();
    assert_error!(
        problem.unwrap_err(),
        Error::StartRow {
            item: 1,
            row: 1,
            len: 1
        }
    );
    let weights = StartRows::Weights {
        rows: 2,
        weights: vec![1.0; 9],
    };
    assert_error!(
        error(rows(weights)),
        Error::Len {
            expected: 8,
            got: 9,
            ..
        }
    );
}

#[test]
fn parameters_outside_their_ranges() {
    for ratio in [-0.1, 1.0, f64::NAN, f64::INFINITY] {
        let config = RolloutConfig {
            discard: Some(Discard {
                ratio,
                scope: DiscardScope::Map,
            }),
            ..RolloutConfig::default()
        };
        assert_error!(
            error(config),
            Error::Parameter {
                what: "discard ratio",
                ..
            }
        );
    }
    let patches = |special_tokens| RolloutConfig {
        discard: Some(Discard {
            ratio: 0.5,
            scope: DiscardScope::Patches { special_tokens },
        }),
        ..RolloutConfig::default()
    };
    assert_error!(
        error(patches(SHAPE.tokens + 1)),
        Error::SpecialTokens { tokens: 4, got: 5 }
    );
    Problem::new(SHAPE, DType::F32, patches(SHAPE.tokens)).unwrap();
    for (attention, identity, name) in [
        (f32::NAN, 0.5, "attention weight"),
        (0.5, f32::INFINITY, "identity weight"),
    ] {
        let config = RolloutConfig {
            residual: ResidualWeights::Uniform(Residual::new(attention, identity)),
            ..RolloutConfig::default()
        };
        assert_error!(error(config), Error::Parameter { what, .. } if *what == name);
    }
    let weighted = RolloutConfig {
        head_fusion: HeadFusion::Weighted(vec![1.0, f32::NAN, 1.0]),
        ..RolloutConfig::default()
    };
    assert_error!(
        error(weighted),
        Error::Parameter {
            what: "head weight",
            ..
        }
    );
    let weights = StartRows::Weights {
        rows: 1,
        weights: vec![1.0, 1.0, f32::NEG_INFINITY, 1.0],
    };
    assert_error!(
        error(rows(weights)),
        Error::Parameter {
            what: "start weight",
            ..
        }
    );
}

/// Lists of so many layers or items need more bytes than a process can address.
#[test]
fn more_than_a_machine_can_list() {
    let many = 100_000_000_000_000;
    let one = Shape {
        layers: 1,
        batch: 1,
        heads: 1,
        tokens: 1,
    };
    for shape in [
        Shape {
            layers: many,
            ..one
        },
        Shape { batch: many, ..one },
    ] {
        let required = many * size_of::<Window>();
        let error = shape_error(shape);
        assert_error!(error, Error::HostMemory { required: r, .. } if *r >= required);
        let strides = Strides::contiguous(&shape);
        let same = Problem::builder(shape, DType::F32).strides(strides).build();
        assert_error!(same, Err(Error::HostMemory { .. }));
    }
}

#[test]
fn strides_that_no_layer_has() {
    assert_error!(
        Strides::of(&[2, 3, 5, 5], &[75, 25, 1, 5]),
        Err(Error::AxisStride { axis: 3, got: 5 })
    );
    assert_error!(
        Strides::of(&[2, 5, 5], &[25, 1, 5]),
        Err(Error::AxisStride { axis: 2, got: 5 })
    );
    for shape in [&[5, 5][..], &[2, 3, 5, 4], &[1, 2, 3, 5, 5]] {
        assert_error!(Strides::of(shape, &[1; 5][..shape.len()]), Err(Error::Shape { got, .. }) if got == shape);
    }
    assert_error!(
        Strides::of(&[2, 5, 5], &[75, 25, 5, 1]),
        Err(Error::Count {
            expected: 3,
            got: 4,
            ..
        })
    );
    assert_error!(
        Strides::of(&[2, 3, 5, 5], &[25, 5, 1]),
        Err(Error::Count {
            expected: 4,
            got: 3,
            ..
        })
    );
    // Fused heads, and one column, beside which nothing lies.
    let fused = Strides::of(&[2, 5, 5], &[25, 5, 1]).unwrap();
    assert_eq!((fused.batch, fused.head, fused.row), (25, 0, 5));
    let contiguous = Strides::of(&[2, 3, 5, 5], &[75, 25, 5, 1]).unwrap();
    assert_eq!(
        contiguous,
        Strides::contiguous(&Shape {
            batch: 2,
            heads: 3,
            tokens: 5,
            ..SHAPE
        })
    );
    assert!(Strides::of(&[2, 3, 1, 1], &[3, 1, 1, 7]).is_ok());
}
