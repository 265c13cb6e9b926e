//! Many problems in each launch: the kernels' grouped entries, against the f64 reference and against the bits of each
//! problem alone.

use std::rc::Rc;

use attention_rollout::cuda::kernel::{Arithmetic, Form, RowsStream, Sets};
use attention_rollout::cuda::pack::{Part, pack};
use attention_rollout::cuda::variant;
use attention_rollout::{DType, Discard, DiscardScope, GradientRule, StartRows};
use ptxemu::Memory;

use super::Entry;
use super::tree::whole;
use crate::cases::{Case, Lay, MatrixWay, Path, StreamWay, bits, compare};
use crate::device::{Device, Prepared};
use crate::lab::Lab;
use crate::maps;

pub const ENTRIES: &[Entry] = &[MANY, ROWS, STREAM, MATRIX, PRODUCT, TREE];

/// More members than a warp looks at in one go.
const MANY: Entry = Entry {
    name: "group_of_many",
    kernels: &["entry", "rollout_rows"],
    short: true,
    run: |lab| {
        let case = |i: usize| Case::new([1 + i % 3, 1 + i % 2, 1, 1 + i % 7]);
        let cases: Vec<_> = (0..70).map(|i| (case(i), Path::Rows(1))).collect();
        check(lab, &cases)
    },
};

/// Splits, blocks of fewer threads, windows, and most of the layers that a launch can take.
const ROWS: Entry = Entry {
    name: "group_of_rows",
    kernels: &["entry", "rollout_rows"],
    short: true,
    run: |lab| {
        let windows = [(0, 19), (3, 18), (2, 1)];
        let case = |shape| Case::new(shape).dtype(DType::F32);
        check(
            lab,
            &[
                (case([2, 3, 3, 21]).windows(&windows), Path::Rows(3)),
                (case([2, 1, 2, 331]), Path::Rows(1)),
                (case([64, 1, 1, 3]), Path::Rows(1)),
                (
                    case([3, 2, 2, 20])
                        .config(|c| c.causal = true)
                        .start(StartRows::Last)
                        .at(Lay::Interleaved, 4),
                    Path::Rows(2),
                ),
            ],
        )?;
        let weighed = |shape| case(shape).config(|c| c.gradients = Some(GradientRule::Heads));
        check(
            lab,
            &[
                (weighed([2, 3, 3, 21]).windows(&windows), Path::Rows(3)),
                (weighed([64, 1, 1, 3]), Path::Rows(1)),
            ],
        )?;
        let normalized = |shape| Case::new(shape).config(|c| c.normalize_rows = true);
        let many =
            |shape, rows| normalized(shape).start(StartRows::Rows((0..rows).collect::<Vec<_>>()));
        check(
            lab,
            &[
                (many([2, 2, 3, 17], 8), Path::Rows(1)),
                (many([3, 1, 2, 40], 2), Path::Rows(2)),
            ],
        )
    },
};

/// One queue of items that differ in everything, for fewer blocks than there are items.
const STREAM: Entry = Entry {
    name: "group_of_streams",
    kernels: &["entry", "rows_stream"],
    short: true,
    run: |lab| {
        for sharing in 1..=RowsStream::SHARING {
            streams(lab, sharing)?;
        }
        Ok(())
    },
};

fn streams(lab: &Lab, sharing: u32) -> Result<(), String> {
    let member = |case: Case| {
        let items = case.shape[1] as u32;
        let sets = Sets {
            sets: items,
            ..StreamWay::ONE.sets
        };
        let way = StreamWay {
            sets,
            shared_bytes: 88 << 10,
            sharing: Some(sharing),
            ..StreamWay::ONE
        };
        (case, Path::Stream(way))
    };
    let windows = [(0, 19), (3, 18), (2, 1)];
    let case = |shape| Case::new(shape).dtype(DType::F32);
    check(
        lab,
        &[
            member(case([2, 3, 3, 21]).windows(&windows)),
            member(
                case([3, 2, 2, 20])
                    .config(|c| c.causal = true)
                    .start(StartRows::Last)
                    .at(Lay::Interleaved, 4),
            ),
            member(case([64, 1, 1, 3]).config(|c| c.normalize_rows = true)),
            member(case([1, 4, 2, 9])),
        ],
    )?;
    let many = |shape, rows| {
        let rows = StartRows::Rows((0..rows).collect::<Vec<_>>());
        member(Case::new(shape).start(rows))
    };
    check(lab, &[many([2, 2, 3, 17], 8), many([3, 1, 2, 40], 2)])
}

/// Matrices of different sizes, some with more layers than one launch.
const MATRIX: Entry = Entry {
    name: "group_of_matrices",
    kernels: &["entry", "matrix_stream"],
    short: true,
    run: |lab| {
        let path = Path::RingMatrix(MatrixWay {
            grouped: true,
            ..MatrixWay::of(Arithmetic::F16x3)
        });
        check(
            lab,
            &[
                (Case::new([3, 2, 3, 33]).matrix(), path),
                (Case::new([2, 3, 2, 9]).matrix(), path),
                (Case::new([64, 1, 1, 5]).matrix(), path),
                (
                    Case::new([2, 3, 5, 21])
                        .matrix()
                        .windows(&[(0, 19), (3, 18), (2, 1)]),
                    path,
                ),
            ],
        )
    },
};

/// Every kernel of the product: fills, fused maps, cuts, scales, first steps and steps.
const PRODUCT: Entry = Entry {
    name: "group_of_products",
    kernels: &[
        "entry",
        "zero_fill",
        "head_fusion",
        "discard",
        "row_scales",
        "rollout_first",
        "rollout_product",
    ],
    short: true,
    run: |lab| {
        let path = Path::Product(Arithmetic::F16x3, Form::Matrix);
        let case = |shape| {
            Case::new(shape).matrix().levels(64).config(|c| {
                let scope = DiscardScope::Map;
                c.normalize_rows = true;
                c.discard = Some(Discard { ratio: 0.5, scope });
            })
        };
        check(
            lab,
            &[
                (
                    case([2, 3, 2, 21]).windows(&[(0, 19), (3, 18), (2, 1)]),
                    path,
                ),
                (case([3, 1, 3, 70]), path),
                (case([1, 2, 1, 8]), path),
            ],
        )?;
        let rows = |shape, rows: usize| {
            Case::new(shape).start(StartRows::Rows((0..rows).collect::<Vec<_>>()))
        };
        let path = Path::Product(Arithmetic::F32, Form::Rows);
        check(
            lab,
            &[
                (rows([2, 2, 2, 12], 9), path),
                (rows([3, 1, 1, 67], 10), path),
            ],
        )
    },
};

/// Trees of different depths.
const TREE: Entry = Entry {
    name: "group_of_trees",
    kernels: &["entry", "head_fusion", "split_product"],
    short: true,
    run: |lab| {
        check(
            lab,
            &[
                (Case::new([3, 2, 3, 33]).matrix(), whole(32)),
                (
                    Case::new([5, 3, 2, 21])
                        .matrix()
                        .windows(&[(0, 19), (3, 18), (2, 1)]),
                    whole(32),
                ),
                (
                    Case::new([2, 1, 2, 40])
                        .matrix()
                        .config(|c| c.causal = true),
                    whole(32),
                ),
            ],
        )
    },
};

/// Runs `cases` side by side, each launch that of all whose turn it is.
fn check(lab: &Lab, cases: &[(Case, Path)]) -> Result<(), String> {
    let memory = Rc::new(Memory::new());
    let problems: Vec<_> = cases.iter().map(|(case, _)| case.problem()).collect();
    let layers: Vec<_> = problems
        .iter()
        .zip(cases)
        .map(|(problem, (case, _))| maps::layers(problem, 7, case.levels, &[]))
        .collect();
    let devices: Vec<Device<'_>> = problems
        .iter()
        .zip(&layers)
        .zip(cases)
        .map(|((problem, layers), (case, _))| {
            Device::beside(
                memory.clone(),
                lab,
                problem,
                &maps::hosts(layers),
                case.offset,
            )
        })
        .collect();
    let prepared: Vec<Prepared> = devices
        .iter()
        .zip(cases)
        .map(|(device, (_, path))| device.prepare(*path))
        .collect();
    let mut addresses = Vec::new();
    let mut parts = Vec::new();
    for (device, prepared) in devices.iter().zip(&prepared) {
        parts.push(Part {
            schedule: &prepared.schedule,
            bases: &prepared.bases,
            first_address: addresses.len(),
        });
        addresses.extend(device.layers());
        addresses.push(prepared.output);
    }
    let aligned = devices.iter().all(Device::aligned);
    let mut tables = Vec::new();
    let launches = pack(&parts, aligned, &mut tables);
    let at = memory.alloc(tables.len());
    memory.write(at, &tables).unwrap();
    for mut launch in launches {
        launch.at(at);
        launch.fit(3);
        let params = bytemuck::bytes_of(launch.link(&addresses)).to_vec();
        let kernel = (variant::Entry::Grouped, &*launch.variant);
        lab.launch(&memory, kernel, launch.geometry, &params)?;
    }
    for (index, (case, path)) in cases.iter().enumerate() {
        let fail = |what: String| format!("{index} of the group, {path:?} of {case:?}: {what}");
        let (problem, layers) = (&problems[index], &layers[index]);
        let expected = case.reference(problem, layers);
        let got = devices[index].download(prepared[index].output);
        compare(&got, &expected, path.tolerance(problem.layers().len())).map_err(fail)?;
        let alone = Device::new(lab, problem, &maps::hosts(layers), case.offset);
        if bits(&got) != bits(&alone.run(*path).map_err(fail)?) {
            return Err(fail("other bits than alone".to_owned()));
        }
    }
    Ok(())
}
