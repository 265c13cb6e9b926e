//! Finding what no softmax gives.

use crate::common::generate::{Case, Layout};
use attention_rollout::{
    DType, Defect, DefectKind, Element, Error, GradientRule, HostLayer, HostTensor, Layer, Output,
    Problem, RolloutConfig, Shape, Window, first_not_finite, validate,
};
use half::{bf16, f16};

const SHAPE: Shape = Shape {
    layers: 3,
    batch: 2,
    heads: 2,
    tokens: 4,
};

/// f32 rows of up to 40 entries sum to 1 within 40 roundings.
const TOLERANCE: f64 = 40.0 / (1 << 24) as f64;

/// Uniform maps with `value` at `[layer, item, head, row, column]`.
fn maps_with(at: [usize; 5], value: f32) -> Vec<Vec<f32>> {
    let mut maps = vec![vec![0.25; 64]; 3];
    let [layer, item, head, row, column] = at;
    maps[layer][((item * 2 + head) * 4 + row) * 4 + column] = value;
    maps
}

fn find(problem: &Problem, maps: &[Vec<f32>]) -> Option<Defect> {
    let layers: Vec<_> = maps.iter().map(|m| HostLayer::from(&m[..])).collect();
    validate(problem, &layers, 1e-6).unwrap()
}

fn problem(config: RolloutConfig) -> Problem {
    Problem::new(SHAPE, DType::F32, config).unwrap()
}

#[test]
fn defects_are_named() {
    let problem = problem(RolloutConfig::default());
    for (value, kind) in [
        (
            -0.5,
            DefectKind::Negative {
                column: 3,
                value: -0.5,
            },
        ),
        (
            f32::INFINITY,
            DefectKind::NotFinite {
                column: 3,
                value: f32::INFINITY,
            },
        ),
        (
            0.5,
            DefectKind::RowSum {
                sum: 1.25,
                tolerance: 1e-6,
            },
        ),
    ] {
        let defect = find(&problem, &maps_with([2, 1, 0, 2, 3], value));
        let want = Defect {
            layer: 2,
            item: 1,
            head: 0,
            row: 2,
            kind,
        };
        assert_eq!(defect, Some(want));
    }
    let defect = find(&problem, &maps_with([0, 0, 1, 3, 0], f32::NAN)).unwrap();
    assert!(matches!(defect.kind, DefectKind::NotFinite { column: 0, value } if value.is_nan()));
    assert_eq!(
        defect.to_string(),
        "layer 0, item 0, head 1, row 3: column 0 is NaN"
    );
}

#[test]
fn the_first_of_several_is_found() {
    let problem = problem(RolloutConfig::default());
    let mut maps = maps_with([1, 1, 1, 3, 3], -1.0);
    maps[1][0] = 2.0;
    maps[2][0] = f32::NAN;
    let defect = find(&problem, &maps).unwrap();
    assert_eq!(
        (defect.layer, defect.item, defect.head, defect.row),
        (1, 0, 0, 0)
    );
    assert!(matches!(defect.kind, DefectKind::RowSum { sum: 2.75, .. }));
}

#[test]
fn what_is_not_read_is_not_looked_at() {
    let nan = |at| maps_with(at, f32::NAN);
    let config = |layers, causal| RolloutConfig {
        layers,
        causal,
        ..RolloutConfig::default()
    };
    assert_eq!(
        find(&problem(config(Some(1..3), false)), &nan([0, 0, 0, 0, 0])),
        None
    );
    let mut causal = nan([0, 0, 0, 0, 1]);
    for map in causal
        .iter_mut()
        .flat_map(|layer| layer.chunks_exact_mut(16))
    {
        for (i, row) in map.chunks_exact_mut(4).enumerate() {
            row[..=i].fill(1.0 / (i + 1) as f32);
        }
    }
    assert_eq!(find(&problem(config(None, true)), &causal), None);
    let matrix = RolloutConfig {
        output: Output::Matrix,
        ..RolloutConfig::default()
    };
    let windowed = Problem::builder(SHAPE, DType::F32)
        .config(matrix)
        .windows(vec![
            Window { start: 1, len: 3 },
            Window { start: 0, len: 0 },
        ])
        .build()
        .unwrap();
    let mut maps = vec![vec![1.0 / 3.0; 64]; 3];
    maps[0][0] = f32::NAN;
    maps[1][32..].fill(f32::NAN);
    assert_eq!(find(&windowed, &maps), None);
    maps[0][5] = 0.5;
    let defect = find(&windowed, &maps).unwrap();
    assert_eq!((defect.row, defect.head), (1, 0));
}

#[test]
fn softmax_maps_of_every_layout_and_type_are_well() {
    for dtype in DType::ALL {
        for layout in [
            Layout::Contiguous,
            Layout::HeadMajor,
            Layout::LayersInside,
            Layout::PaddedRows,
        ] {
            let mut case = Case::new(
                Shape {
                    tokens: 37,
                    ..SHAPE
                },
                5,
            );
            case.dtype = dtype;
            case.layout = layout;
            let generated = case.generate();
            let roundoff = crate::common::compare::element_roundoff(dtype);
            let tolerance = TOLERANCE + roundoff;
            let defect = validate(&generated.problem, &generated.layers(), tolerance).unwrap();
            assert_eq!(defect, None, "{dtype} {layout:?}");
        }
    }
}

#[test]
fn bad_arguments_are_refused() {
    let problem = problem(RolloutConfig::default());
    let maps = maps_with([0, 0, 0, 0, 0], 0.25);
    let layers: Vec<_> = maps.iter().map(|m| HostLayer::from(&m[..])).collect();
    for tolerance in [-1.0, f64::NAN] {
        assert!(matches!(
            validate(&problem, &layers, tolerance),
            Err(Error::Parameter { .. })
        ));
    }
    assert!(matches!(
        validate(&problem, &layers[1..], 1e-6),
        Err(Error::Count {
            expected: 3,
            got: 2,
            ..
        })
    ));
}

#[test]
fn the_first_gradient_that_is_not_finite_is_named() {
    let problem = problem(RolloutConfig {
        gradients: Some(GradientRule::Heads),
        ..RolloutConfig::default()
    });
    let maps = vec![vec![0.25_f32; 64]; 3];
    let mut gradients = vec![vec![-3.0_f32; 64]; 3];
    let find = |gradients: &[Vec<f32>]| {
        let layers: Vec<_> = (maps.iter().zip(gradients))
            .map(|(maps, gradients)| Layer::Gradients {
                maps: HostTensor::from(&maps[..]),
                gradients: HostTensor::from(&gradients[..]),
            })
            .collect();
        validate(&problem, &layers, 1e-6).unwrap()
    };
    assert_eq!(find(&gradients), None, "of any sign and sum");
    gradients[2][0] = f32::INFINITY;
    gradients[1][32 + 16 + 4 + 3] = f32::NAN;
    let defect = find(&gradients).unwrap();
    assert_eq!(
        defect.to_string(),
        "layer 1, item 1, head 1, row 1: the gradient in column 3 is NaN"
    );
    gradients[1][32 + 16 + 4 + 3] = 0.0;
    assert_eq!(find(&gradients).unwrap().layer, 2);
}

/// One layer of one head of `tokens` tokens.
fn long(dtype: DType, tokens: usize, config: RolloutConfig) -> Problem {
    let shape = Shape {
        layers: 1,
        batch: 1,
        heads: 1,
        tokens,
    };
    Problem::new(shape, dtype, config).unwrap()
}

#[test]
fn a_defect_anywhere_in_a_long_row_is_found() {
    fn find<T: Element>(causal: bool) {
        const TOKENS: usize = 70;
        let config = RolloutConfig {
            causal,
            ..RolloutConfig::default()
        };
        let problem = long(T::DTYPE, TOKENS, config);
        let len = |row: usize| if causal { row + 1 } else { TOKENS };
        let mut map = [T::from_f32(f32::NAN); TOKENS * TOKENS];
        for (row, entries) in map.chunks_exact_mut(TOKENS).enumerate() {
            entries[..len(row)].fill(T::from_f32(1.0 / len(row) as f32));
        }
        let row = 33;
        for column in 0..len(row) {
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.5] {
                let right = std::mem::replace(&mut map[row * TOKENS + column], T::from_f32(value));
                for tolerance in [0.0625, f64::INFINITY] {
                    let layers = [HostLayer::from(&map[..])];
                    let defect = validate(&problem, &layers, tolerance).unwrap().unwrap();
                    assert_eq!(defect.row, row, "{value} in column {column}");
                    match defect.kind {
                        DefectKind::NotFinite { column: at, .. } if !value.is_finite() => {
                            assert_eq!(at, column);
                        }
                        DefectKind::Negative { column: at, .. } => assert_eq!(at, column),
                        kind => panic!("{value} in column {column}: {kind:?}"),
                    }
                }
                map[row * TOKENS + column] = right;
            }
        }
        let layers = [HostLayer::from(&map[..])];
        assert_eq!(validate(&problem, &layers, 0.0625).unwrap(), None);
        // The first of several, whatever comes after it, in the same place of other rows.
        for value in [f32::NAN, f32::INFINITY, 9.0] {
            map[row * TOKENS + 1] = T::from_f32(-0.5);
            map[(row + 1) * TOKENS + 1] = T::from_f32(value);
            map[(row + 2) * TOKENS + 1] = T::from_f32(value);
            let layers = [HostLayer::from(&map[..])];
            let defect = validate(&problem, &layers, 0.0625).unwrap().unwrap();
            assert_eq!(defect.row, row, "{value} after it");
        }
    }
    for causal in [false, true] {
        find::<f32>(causal);
        find::<f16>(causal);
        find::<bf16>(causal);
    }
}

#[test]
fn a_map_without_any_right_entry_has_a_defect() {
    const TOKENS: usize = 70;
    let problem = long(DType::F32, TOKENS, RolloutConfig::default());
    let map = [-0.01_f32; TOKENS * TOKENS];
    let defect = validate(&problem, &[HostLayer::from(&map[..])], f64::INFINITY).unwrap();
    let defect = defect.unwrap();
    assert_eq!(defect.row, 0);
    assert!(matches!(
        defect.kind,
        DefectKind::Negative { column: 0, .. }
    ));
}

#[test]
fn sums_are_judged_as_closely_as_asked() {
    const TOKENS: usize = 256;
    let problem = long(DType::F32, TOKENS, RolloutConfig::default());
    // Closer than a sum in f32 tells, and not.
    for tolerance in [1e-6, 1e-4] {
        for off in [0.0, 0.9, 1.1, -0.9, -1.1_f64] {
            let mut map = [1.0 / TOKENS as f32; TOKENS * TOKENS];
            map[5 * TOKENS] += (off * tolerance) as f32;
            let defect = validate(&problem, &[HostLayer::from(&map[..])], tolerance).unwrap();
            let found =
                defect.map(|defect| (defect.row, matches!(defect.kind, DefectKind::RowSum { .. })));
            let want = (off.abs() > 1.0).then_some((5, true));
            assert_eq!(found, want, "{off} times {tolerance} off");
        }
    }
}

#[test]
fn a_row_that_is_as_far_off_as_allowed_is_well() {
    let problem = problem(RolloutConfig::default());
    let at = [1, 0, 1, 2, 0];
    let layers = |maps: &[Vec<f32>], tolerance| {
        let layers: Vec<_> = maps.iter().map(|m| HostLayer::from(&m[..])).collect();
        validate(&problem, &layers, tolerance).unwrap()
    };
    let off = maps_with(at, 0.75);
    assert_eq!(layers(&off, 0.5), None);
    assert_eq!(layers(&off, 0.4375).map(|defect| defect.row), Some(2));
    assert_eq!(layers(&maps_with(at, 0.25), 0.0), None, "exactly 1");
}

#[test]
fn a_defect_is_found_wherever_it_is() {
    // More rows than are looked at in one go, of more pieces than layers; windows that begin late.
    let shape = Shape {
        layers: 2,
        batch: 3,
        heads: 2,
        tokens: 82,
    };
    let window = Window { start: 3, len: 78 };
    let problem = Problem::builder(shape, DType::F32)
        .config(RolloutConfig {
            output: Output::Matrix,
            ..RolloutConfig::default()
        })
        .windows(vec![window; 3])
        .build()
        .unwrap();
    let map_len = 3 * 2 * 82 * 82;
    let mut maps = vec![vec![1.0 / 78.0; map_len]; 2];
    let tolerance = 1e-4;
    for [layer, item, head] in [[0, 0, 0], [1, 2, 1]] {
        for (row, value) in (0..82).flat_map(|row| [(row, f32::NAN), (row, 0.5)]) {
            for column in [2, 3, 40, 80, 81] {
                let at = ((item * 2 + head) * 82 + row) * 82 + column;
                let well = std::mem::replace(&mut maps[layer][at], value);
                let layers: Vec<_> = maps.iter().map(|m| HostLayer::from(&m[..])).collect();
                let inside = [row, column].iter().all(|at| (3..81).contains(at));
                let what = format!("{value} in {layer} {item} {head} {row} {column}");
                let place = |defect: Defect| [defect.layer, defect.item, defect.head, defect.row];
                let want = [layer, item, head, row];
                let found = validate(&problem, &layers, tolerance).unwrap().map(place);
                assert_eq!(found, inside.then_some(want), "{what}");
                let found = first_not_finite(&problem, &layers).unwrap().map(place);
                let wanted = (inside && value.is_nan()).then_some(want);
                assert_eq!(found, wanted, "{what}");
                maps[layer][at] = well;
            }
        }
    }
}
