//! `rows_stream`: every exchange, on both kinds of rings, from the problem's maps and from fused ones.

use std::fmt::Write;

use attention_rollout::cuda::kernel::Exchange;
use attention_rollout::{DType, GradientRule, HeadFusion, StartRows};

use super::{Entry, features, gradients, many_layers, weights};
use crate::cases::{Case, Lay, Path, StreamWay, compare};
use crate::device::Device;
use crate::lab::Lab;
use crate::maps;

const KERNELS: &[&str] = &["rows_stream"];
const ONE: StreamWay = StreamWay::ONE;

pub const ENTRIES: &[Entry] = &[
    Entry {
        name: "stream_slices",
        kernels: KERNELS,
        short: true,
        run: slices,
    },
    Entry {
        name: "stream_sizes",
        kernels: KERNELS,
        short: true,
        run: |lab| {
            for arch in [80, 90] {
                sizes(lab, StreamWay { arch, ..ONE })?;
            }
            Ok(())
        },
    },
    Entry {
        name: "stream_features",
        kernels: KERNELS,
        short: false,
        run: |lab| {
            let mean = |case: Case| case.start(StartRows::Mean);
            features(lab, Path::Stream(StreamWay { arch: 80, ..ONE }), 35, mean)?;
            let last = |case: Case| case.start(StartRows::Last);
            features(lab, Path::Stream(ONE), 19, last)
        },
    },
    Entry {
        // Three warps share a row, and rows are looked at in two panels.
        name: "stream_panels",
        kernels: KERNELS,
        short: false,
        run: |lab| {
            let narrow = StreamWay {
                columns: Some(1),
                shared_bytes: 17 << 10,
                ..ONE
            };
            let wide = Case::new([2, 2, 4, 150])
                .dtype(DType::F32)
                .windows(&[(0, 150), (22, 120)])
                .config(|c| c.normalize_rows = true);
            wide.clone().check(lab, Path::Stream(narrow))?;
            wide.config(|c| c.causal = true)
                .start(StartRows::Mean)
                .check(lab, Path::Stream(narrow.blocks(3, Exchange::Cluster)))
        },
    },
    Entry {
        name: "stream_cluster",
        kernels: KERNELS,
        short: false,
        run: |lab| {
            sizes(lab, ONE.blocks(3, Exchange::Cluster))?;
            let path = Path::Stream(ONE.blocks(4, Exchange::Cluster));
            features(lab, path, 19, |case| case.start(StartRows::Mean))
        },
    },
    Entry {
        name: "stream_words",
        kernels: KERNELS,
        short: false,
        run: |lab| {
            sizes(lab, ONE.blocks(3, Exchange::Words))?;
            let old = StreamWay { arch: 80, ..ONE };
            let path = Path::Stream(old.blocks(4, Exchange::Words));
            features(lab, path, 19, |case| case.start(StartRows::Mean))
        },
    },
    Entry {
        name: "stream_words_again",
        kernels: KERNELS,
        short: true,
        run: words_again,
    },
    Entry {
        name: "stream_many_layers",
        kernels: KERNELS,
        short: false,
        run: |lab| {
            for way in [
                ONE.blocks(2, Exchange::Words),
                ONE.blocks(2, Exchange::Cluster),
            ] {
                many_layers(lab, Path::Stream(way), |case| case.start(StartRows::Mean))?;
            }
            Ok(())
        },
    },
    Entry {
        name: "stream_start_rows",
        kernels: KERNELS,
        short: true,
        run: |lab| {
            let cluster = ONE.blocks(2, Exchange::Cluster);
            let words = ONE.blocks(3, Exchange::Words);
            for (rows, way) in (1..=8).zip([ONE, cluster, words].into_iter().cycle()) {
                Case::new([2, 2, 3, 21])
                    .start(weights(rows, 21))
                    .check(lab, Path::Stream(way))?;
            }
            for way in [cluster, words] {
                Case::new([3, 3, 2, 150])
                    .dtype(DType::F32)
                    .start(weights(5, 150))
                    .windows(&[(0, 150), (22, 128), (0, 0)])
                    .config(|c| c.normalize_rows = true)
                    .check(lab, Path::Stream(way))?;
            }
            Case::new([3, 3, 2, 20])
                .start(StartRows::PerItem(vec![0, 7, 19]))
                .check(lab, Path::Stream(ONE))
        },
    },
    Entry {
        // What lies behind the last start row of a causal map takes no part.
        name: "stream_behind",
        kernels: KERNELS,
        short: true,
        run: |lab| {
            let old = StreamWay { arch: 80, ..ONE };
            let ways = [ONE, old, ONE.blocks(3, Exchange::Cluster)];
            for (way, rows) in ways.into_iter().zip([&[33][..], &[0], &[5, 31, 2]]) {
                let case = Case::new([3, 2, 2, 70])
                    .windows(&[(0, 70), (8, 40)])
                    .start(StartRows::Rows(rows.to_vec()))
                    .config(|c| c.causal = true);
                case.clone().check(lab, Path::Stream(way))?;
                case.config(|c| c.normalize_rows = true)
                    .check(lab, Path::Stream(way))?;
            }
            Ok(())
        },
    },
    Entry {
        // Both tensors have an alignment of their own, on both kinds of rings.
        name: "stream_gradients",
        kernels: &["gradients", "rows_stream"],
        short: false,
        run: |lab| {
            let old = StreamWay { arch: 80, ..ONE };
            for way in [ONE, old, ONE.blocks(3, Exchange::Cluster)] {
                for (tokens, dtype) in [
                    (1, DType::F16),
                    (8, DType::Bf16),
                    (33, DType::F32),
                    (131, DType::F16),
                ] {
                    gradients::weighed([2, 2, 3, tokens], GradientRule::Heads)
                        .dtype(dtype)
                        .at(Lay::Contiguous, 4)
                        .check(lab, Path::Stream(way))?;
                }
            }
            // Rows that fill a stage of a member of a group to the last granule.
            let member = StreamWay {
                sharing: Some(1),
                shared_bytes: 104 << 10,
                ..ONE
            };
            gradients::weighed([3, 1, 12, 24], GradientRule::Heads)
                .start(StartRows::Mean)
                .at(Lay::Contiguous, 8)
                .check(lab, Path::Stream(member))?;
            let path = Path::Stream(ONE);
            let mean = [HeadFusion::Mean];
            gradients::features(lab, path, 21, &mean, |case| case.start(StartRows::Mean))?;
            let path = Path::Stream(old.blocks(2, Exchange::Words));
            gradients::features(lab, path, 19, &mean, |case| case.start(weights(5, 19)))?;
            gradients::not_finite(lab, path)
        },
    },
];

/// Run after run in the same memory, with other maps each time, and after one that was cut off: no word of a run is taken
/// for one of another.
fn words_again(lab: &Lab) -> Result<(), String> {
    let case = Case::new([3, 2, 2, 19]).start(StartRows::Mean);
    let path = Path::Stream(ONE.blocks(3, Exchange::Words));
    let problem = case.problem();
    let layers = |seed| maps::layers(&problem, seed, 0, &[]);
    let mut device = Device::new(lab, &problem, &maps::hosts(&layers(0)), 0);
    let prepared = device.prepare(path);
    let whole = device.machine.max_steps;
    for seed in 0..4 {
        device.replace(&maps::hosts(&layers(seed)));
        // About the middle, after every block has begun.
        device.machine.max_steps = if seed == 2 { 60_000 } else { whole };
        let got = device.submit(path, &prepared);
        if seed == 2 {
            match got {
                Err(fault) if fault.contains("executed") => continue,
                other => return Err(format!("was not cut off: {other:?}")),
            }
        }
        let expected = case.reference(&problem, &layers(seed));
        compare(&got?, &expected, path.tolerance(3))?;
    }
    Ok(())
}

/// Windows divided into slices by reciprocals, as by divisions; of long ones the first quotient is often one too large.
fn slices(lab: &Lab) -> Result<(), String> {
    const LONG: [(u64, u64); 6] = [
        (1, 1),
        (197, 132),
        (8192, 132),
        (4096 * 132, 132),
        (131_071, 131),
        (65_537, 17),
    ];
    const STEPS: u64 = 64;
    let mut text = String::from(
        "#include \"rows_producer.cuh\"\nextern \"C\" __global__ void probe(u32 *out) {\n",
    );
    let mut expected = Vec::new();
    for (len, blocks) in LONG {
        writeln!(
            text,
            "  {{\n    const Slices slices({len}, {blocks});\n    for (u32 i = 0; i < {STEPS}; ++i) {{\n      \
             const Slice slice = slices.slice({blocks} * i / {STEPS});\n      *out++ = slice.first;\n      \
             *out++ = slice.rows;\n      *out++ = slices.of({len} - 1 - {len} / {STEPS} * i);\n    }}\n  }}"
        )
        .unwrap();
        let first = |slice: u64| slice * len / blocks;
        for i in 0..STEPS {
            let slice = blocks * i / STEPS;
            let row = len - 1 - len / STEPS * i;
            // The last slice that begins at or before the row.
            let of = (0..blocks)
                .rev()
                .find(|&slice| first(slice) <= row && first(slice + 1) > row);
            expected.extend([first(slice), first(slice + 1) - first(slice), of.unwrap()]);
        }
    }
    text.push_str("}\n");
    let defines = [("ELEMENT", "f16".to_owned()), ("GRADIENTS", "0".to_owned())];
    let got = lab.probe(&text, &defines, expected.len())?;
    match (got.iter().zip(&expected)).position(|(&got, &expected)| u64::from(got) != expected) {
        None => Ok(()),
        Some(at) => Err(format!(
            "{:?}, number {at}: expected {}, got {}",
            LONG[at / (3 * STEPS as usize)],
            expected[at],
            got[at]
        )),
    }
}

fn sizes(lab: &Lab, way: StreamWay) -> Result<(), String> {
    for tokens in [1, 2, 3, 8, 17, 33, 65] {
        Case::new([3, 3, 3, tokens]).check(lab, Path::Stream(way))?;
    }
    for (tokens, dtype) in [
        (127, DType::F32),
        (128, DType::Bf16),
        (197, DType::F16),
        (331, DType::F16),
    ] {
        Case::new([2, 1, 2, tokens])
            .dtype(dtype)
            .check(lab, Path::Stream(way))?;
    }
    Case::new([2, 1, 40, 9]).check(lab, Path::Stream(way))
}
