//! Entries that are not finite reach every output that depends on them, and no other item; entries that are equal, or
//! that are not numbers, are discarded in the order of the reference.

use attention_rollout::cuda::kernel::{Arithmetic, Form};
use attention_rollout::{DType, DiscardScope, HeadFusion, Output, StartRows};

use super::tree::whole;
use super::{Entry, discard, fusions};
use crate::cases::{Case, Path, StreamWay, ring_matrix};
use crate::device::Device;
use crate::lab::Lab;
use crate::maps;

pub const ENTRIES: &[Entry] = &[
    Entry {
        name: "rows_not_finite",
        kernels: &["rollout_rows"],
        short: false,
        run: |lab| {
            not_finite(lab, Path::Rows(1), &fusions(3), |case| {
                case.start(StartRows::Mean)
            })?;
            not_finite(lab, Path::Rows(2), &fusions(3)[..1], |case| {
                case.start(StartRows::Rows(vec![3, 7]))
            })
        },
    },
    Entry {
        name: "product_not_finite",
        kernels: &[
            "head_fusion",
            "rollout_first",
            "rollout_product",
            "row_scales",
        ],
        short: false,
        run: |lab| {
            for arithmetic in Arithmetic::ALL {
                for form in Form::ALL {
                    let path = Path::Product(arithmetic, form);
                    not_finite(lab, path, &fusions(3)[..1], Case::matrix)?;
                }
            }
            let path = Path::Product(Arithmetic::F32, Form::Rows);
            not_finite(lab, path, &fusions(3)[1..], Case::matrix)
        },
    },
    Entry {
        name: "matrix_not_finite",
        kernels: &["matrix_stream"],
        short: false,
        run: |lab| {
            for arithmetic in [Arithmetic::F16x2, Arithmetic::Tf32x3] {
                not_finite(lab, ring_matrix(arithmetic), &fusions(3)[..1], Case::matrix)?;
            }
            let path = ring_matrix(Arithmetic::F16x3);
            not_finite(lab, path, &fusions(3), Case::matrix)
        },
    },
    Entry {
        name: "tree_not_finite",
        kernels: &["head_fusion", "split_product"],
        short: false,
        run: |lab| not_finite(lab, whole(32), &fusions(3)[..1], Case::matrix),
    },
    Entry {
        name: "tree_first_layer_not_finite",
        kernels: &["split_product"],
        short: true,
        run: first_layer_not_finite,
    },
    Entry {
        name: "discard_values",
        kernels: &["discard"],
        short: true,
        run: |lab| {
            let rows = || StartRows::Rows((0..8).collect());
            discarded(lab, Path::Rows(1), |case| case.start(rows()))?;
            between_neighbours(lab)?;
            discarded(lab, ring_matrix(Arithmetic::F16x3), Case::matrix)?;
            discarded(
                lab,
                Path::Product(Arithmetic::F32, Form::Matrix),
                Case::matrix,
            )
        },
    },
    Entry {
        name: "stream_discard_values",
        kernels: &["rows_stream"],
        short: true,
        run: |lab| {
            let path = Path::Stream(StreamWay::ONE);
            discarded(lab, path, |case| {
                case.start(StartRows::Rows((0..8).collect()))
            })?;
            // Rows before that of the cut, behind it, and its own; a lane has several columns, of which the first one or two
            // may be special.
            let several = StreamWay {
                columns: Some(4),
                ..StreamWay::ONE
            };
            for special_tokens in [2, 40] {
                Case::new([2, 1, 1, 70])
                    .dtype(DType::F32)
                    .levels(300)
                    .start(StartRows::Mean)
                    .config(|c| {
                        c.discard = discard(0.5, DiscardScope::Patches { special_tokens });
                    })
                    .check(lab, Path::Stream(several))?;
            }
            Ok(())
        },
    },
    Entry {
        name: "discard_shared",
        kernels: &["discard"],
        short: false,
        run: shared_maps,
    },
    Entry {
        name: "discard_long",
        kernels: &["discard"],
        short: false,
        run: long_maps,
    },
];

/// A cut between values that differ in their last bit, after all that are equal to the lower one.
fn between_neighbours(lab: &Lab) -> Result<(), String> {
    let mut case = Case::new([1, 1, 1, 8]).dtype(DType::F32);
    for (row, column) in [(1, 1), (2, 3), (5, 5)] {
        case = case.entry([0, 0, 0, row, column], -1.0);
    }
    case.entry([0, 0, 0, 3, 3], (-1.0f32).next_up())
        .start(StartRows::Rows((0..8).collect()))
        .config(|c| c.discard = discard(0.05, DiscardScope::Map))
        .check(lab, Path::Rows(1))
}

/// Maps whose entries the blocks of a cluster count together, some of them equal; in windows of their own, of which one is
/// not worth a block; and causal ones.
fn shared_maps(lab: &Lab) -> Result<(), String> {
    for (levels, ratio, causal) in [(0, 0.7, false), (64, 0.4, true), (8, 0.95, false)] {
        let windows = [(4, 131), (0, 30)];
        let case = Case::new([1, 2, 1, 135]).levels(levels).windows(&windows);
        let case = case
            .start(StartRows::Mean)
            .multiprocessors(132)
            .config(|c| {
                c.causal = causal;
                c.discard = discard(ratio, DiscardScope::Patches { special_tokens: 1 });
            });
        case.check(lab, Path::Rows(1))?;
        let problem = case.problem();
        let mut device = Device::new(lab, &problem, &[], 0);
        device.multiprocessors = case.multiprocessors;
        let schedule = device.prepare(Path::Rows(1)).schedule;
        let mut launches = schedule.steps().iter().map(|step| step.launch(true));
        let shared = launches.find(|launch| launch.variant().stem == "discard");
        let cluster = shared.map(|launch| launch.geometry().cluster);
        if cluster != Some(8) {
            return Err(format!("clusters of {cluster:?} find cuts"));
        }
    }
    Ok(())
}

/// Maps of which a block keeps a part in shared memory and reads the rest again, and one whose rows have more granules than a
/// block has threads.
fn long_maps(lab: &Lab) -> Result<(), String> {
    for (tokens, levels, ratio, causal) in [
        (243, 0, 0.7, false),
        (243, 4, 0.3, false),
        (243, 4, 0.9, true),
        (2061, 0, 0.5, true),
    ] {
        Case::new([1, 1, 1, tokens])
            .dtype(DType::F32)
            .levels(levels)
            .multiprocessors(1)
            .config(|c| {
                c.causal = causal;
                c.discard = discard(ratio, DiscardScope::Patches { special_tokens: 2 });
            })
            .check(lab, Path::Rows(1))?;
    }
    Ok(())
}

/// The first of cumulative outputs is a layer and no product: an entry of it that is not a number is the only one.
fn first_layer_not_finite(lab: &Lab) -> Result<(), String> {
    const TOKENS: usize = 9;
    let case = Case::new([2, 1, 1, TOKENS])
        .config(|c| c.output = Output::Cumulative)
        .entry([0, 0, 0, 3, 5], f32::NAN);
    let problem = case.problem();
    let layers = maps::layers(&problem, 7, case.levels, &case.entries);
    let device = Device::new(lab, &problem, &maps::hosts(&layers), case.offset);
    let got = device.run(whole(32))?;
    let is_nan = |&at: &usize| got[at].is_nan();
    let nan: Vec<usize> = (0..TOKENS * TOKENS).filter(is_nan).collect();
    match nan == [3 * TOKENS + 5] {
        true => Ok(()),
        false => Err(format!("{case:?}: not a number at {nan:?}")),
    }
}

/// One layer of one head, so that the output is the map without what was discarded: zeros of both signs, many entries
/// that are equal, negative ones, and NaN, which go last.
fn discarded(lab: &Lab, path: Path, base: impl Fn(Case) -> Case) -> Result<(), String> {
    let mut case = base(Case::new([1, 1, 1, 8])).dtype(DType::F32).levels(8);
    for (place, value) in [
        ((0, 0), -0.5),
        ((0, 3), -0.0),
        ((1, 6), f32::NAN),
        ((2, 2), -0.0),
        ((2, 4), -f32::NAN),
        ((3, 3), -0.25),
        ((4, 5), f32::NAN),
        ((5, 1), -0.0),
        ((5, 7), -0.25),
        ((6, 3), f32::INFINITY),
        ((7, 2), f32::NAN),
        ((7, 7), -0.0),
    ] {
        case = case.entry([0, 0, 0, place.0, place.1], value);
    }
    for scope in [
        DiscardScope::Map,
        DiscardScope::Patches { special_tokens: 2 },
    ] {
        // In turn the cut is among the negative entries, the zeros, the equal ones, and NaN.
        for ratio in [0.02, 0.04, 0.1, 0.2, 0.35, 0.5, 0.65, 0.75, 0.9, 0.96, 0.99] {
            case.clone()
                .config(|c| c.discard = discard(ratio, scope))
                .check_not_finite(lab, path)?;
        }
    }
    Ok(())
}

fn not_finite(
    lab: &Lab,
    path: Path,
    fusions: &[HeadFusion],
    base: impl Fn(Case) -> Case,
) -> Result<(), String> {
    let case = |fusion: &HeadFusion| {
        base(Case::new([3, 2, 3, 21]))
            .windows(&[(2, 17), (0, 21)])
            .config(|c| c.head_fusion = fusion.clone())
    };
    for fusion in fusions {
        for (layer, value) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY]
            .into_iter()
            .enumerate()
        {
            for (turn, dtype) in DType::ALL.into_iter().enumerate() {
                // Each value in each layer, each in the first, a middle and the last head.
                let at = [(layer + turn) % 3, 0, turn, 3, 5];
                case(fusion)
                    .dtype(dtype)
                    .entry(at, value)
                    .check_not_finite(lab, path)?;
            }
        }
        let normalizes = [false, true].into_iter();
        for normalize in normalizes.filter(|&normalize| !normalize || path.normalizes()) {
            case(fusion)
                .config(|c| {
                    c.normalize_rows = normalize;
                    c.causal = true;
                })
                .entry([1, 1, 1, 7, 4], f32::NAN)
                .check_not_finite(lab, path)?;
        }
    }
    Ok(())
}
