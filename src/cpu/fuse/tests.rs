//! Fusing and accumulating against the reference, on every instruction set of this machine.

use half::{bf16, f16};

use super::*;
use crate::cpu::fuse::streams::Heads;
use crate::reference::fuse_f32;

const ROWS: usize = 9;
const HEADS: usize = 7;
/// Below, at and above every vector and step length.
const LENS: [usize; 20] = [
    1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 47, 63, 65, 100, LONGEST,
];
const LONGEST: usize = 131;

/// Maps `[HEADS, ROWS, len]` with a gap after each row; NaN in what must not be read.
struct Maps {
    values: Vec<f32>,
    len: usize,
    /// Whether entries right of the diagonal are absent, and the first row's index.
    causal_from: Option<usize>,
}

impl Maps {
    fn new(len: usize, gap: usize, causal_from: Option<usize>) -> Self {
        let stride = len + gap;
        let mut values = vec![f32::NAN; HEADS * ROWS * stride - gap];
        for (at, value) in values.iter_mut().enumerate() {
            let (row, column) = (at / stride % ROWS, at % stride);
            let present = causal_from.map_or(len, |from| (from + row + 1).min(len));
            if column < present {
                // Exact in every element type, of both signs, and different in adjoining entries.
                *value = ((at * 37 + at / 7) % 255) as f32 / 128.0 - 0.5;
            }
        }
        Maps {
            values,
            len,
            causal_from,
        }
    }

    fn stride(&self) -> usize {
        self.values.len().div_ceil(HEADS * ROWS)
    }

    fn rows<'a>(&self, maps: HostTensor<'a>, heads: usize, fusion: &'a HeadFusion) -> MapRows<'a> {
        MapRows {
            maps,
            gradients: None,
            first: 0,
            head_stride: ROWS * self.stride(),
            row_stride: self.stride(),
            heads,
            fusion,
            causal_from: self.causal_from,
            more_than: f32::NAN,
            rows: ROWS,
            len: self.len,
            prefetch: Prefetch::Near,
            next: None,
        }
    }

    /// The fused rows `[ROWS, len]` as the reference has them.
    fn fused(&self, heads: usize, fusion: &HeadFusion) -> Vec<f32> {
        self.fused_of(|value| value, heads, fusion)
    }

    /// The same, of what `of` makes of each entry.
    fn fused_of(&self, of: fn(f32) -> f32, heads: usize, fusion: &HeadFusion) -> Vec<f32> {
        let entry = |row: usize, column: usize| {
            if self.causal_from.is_some_and(|from| column > from + row) {
                return 0.0;
            }
            let entries: Vec<f32> = (0..heads)
                .map(|head| of(self.values[(head * ROWS + row) * self.stride() + column]))
                .collect();
            fuse_f32(fusion, &entries)
        };
        (0..ROWS * self.len)
            .map(|at| entry(at / self.len, at % self.len))
            .collect()
    }
}

/// Every instruction set, length, layout, element type, number of heads and fusion.
fn for_each(check: impl Fn(Simd, &Maps, MapRows<'_>, &[f32])) {
    for (len, gap, causal_from) in LENS.into_iter().flat_map(|len| {
        [
            (len, 0, None),
            (len, 3, None),
            (len, 0, Some(0)),
            (len, 3, Some(20)),
        ]
    }) {
        let maps = Maps::new(len, gap, causal_from);
        let f16s: Vec<f16> = maps.values.iter().map(|&v| f16::from_f32(v)).collect();
        let bf16s: Vec<bf16> = maps.values.iter().map(|&v| bf16::from_f32(v)).collect();
        let weights = [0.3, 0.6, 0.1, 0.2, 0.5, 0.4, 0.7];
        for heads in 1..=HEADS {
            for fusion in [
                HeadFusion::Mean,
                HeadFusion::Max,
                HeadFusion::Min,
                HeadFusion::Weighted(weights[..heads].to_vec()),
            ] {
                let fused = maps.fused(heads, &fusion);
                for layer in [
                    HostTensor::from(&maps.values[..]),
                    HostTensor::from(&f16s[..]),
                    HostTensor::from(&bf16s[..]),
                ] {
                    for simd in Simd::available() {
                        check(simd, &maps, maps.rows(layer, heads, &fusion), &fused);
                    }
                }
            }
        }
    }
}

#[test]
fn fused_and_weighted_to_the_bit_on_every_instruction_set() {
    for_each(|simd, maps, rows, fused| {
        for weight in [1.0, 0.3] {
            let mut got = vec![f32::NAN; fused.len()];
            rows.fuse(simd, weight, &mut got);
            let got: Vec<u32> = got.iter().map(|value| value.to_bits()).collect();
            let want: Vec<u32> = fused
                .iter()
                .map(|value| (value * weight).to_bits())
                .collect();
            assert_eq!(
                got, want,
                "{simd}, {} columns, weight {weight}, {rows:?}",
                maps.len
            );
        }
    });
}

#[test]
fn accumulated_as_fused_on_every_instruction_set() {
    for_each(|simd, maps, rows, fused| {
        let len = maps.len;
        let magnitudes = match rows.fusion {
            HeadFusion::Mean | HeadFusion::Weighted(_) => {
                maps.fused_of(f32::abs, rows.heads, rows.fusion)
            }
            HeadFusion::Max | HeadFusion::Min => fused.iter().map(|entry| entry.abs()).collect(),
        };
        for start_rows in [1, 2, 5] {
            let need_not = rows.need_not_be_made(start_rows);
            assert_eq!(need_not, start_rows == 1 || rows.heads == 1);
            if !need_not {
                continue;
            }
            let weights: Vec<f32> = (0..start_rows * ROWS).map(|at| 0.1 + at as f32).collect();
            let before: Vec<f32> = (0..start_rows * len).map(|at| at as f32 / 8.0).collect();
            let mut part = before.clone();
            let mut to = Accumulate {
                start_rows,
                weights: &weights,
                weights_stride: ROWS,
                block_rows: ROWS,
                part: &mut part,
                part_stride: len,
                fused: &mut [f32::NAN; ROWS * LONGEST][..ROWS * len],
            };
            rows.accumulate(simd, &mut to);
            for (at, (&got, &before)) in part.iter().zip(&before).enumerate() {
                let (m, column) = (at / len, at % len);
                let weighted = |entries: &[f32]| -> f64 {
                    (0..ROWS)
                        .map(|row| {
                            f64::from(weights[m * ROWS + row])
                                * f64::from(entries[row * len + column])
                        })
                        .sum()
                };
                let want = f64::from(before) + weighted(fused);
                let magnitude = f64::from(before) + weighted(&magnitudes);
                // A product and a sum per row of each head and of the fused rows, and its weight, each rounded once.
                let roundings = (ROWS + 1) * 2 * (rows.heads + 1);
                let budget = roundings as f64 * f64::from(f32::EPSILON) / 2.0 * magnitude;
                let within = (f64::from(got) - want).abs() <= budget;
                assert!(
                    within,
                    "{simd}, start row {m}, column {column} of {len}: {got} for {want}, {rows:?}"
                );
            }
        }
    });
}

/// Sums of blocks are the same to the bit, be they made at once or each by itself.
#[test]
fn blocks_accumulate_as_by_themselves() {
    for_each(|simd, _, rows, _| {
        let weights: Vec<f32> = (0..ROWS).map(|at| 0.1 + at as f32).collect();
        let sums = |rows: MapRows<'_>, weights: &[f32], block_rows: usize| {
            let mut parts = vec![0.25; rows.rows.div_ceil(block_rows) * rows.len];
            let mut to = Accumulate {
                start_rows: 1,
                weights,
                weights_stride: ROWS,
                block_rows,
                part: &mut parts,
                part_stride: rows.len,
                fused: &mut [f32::NAN; ROWS * LONGEST],
            };
            rows.accumulate(simd, &mut to);
            parts
        };
        for block_rows in 1..=ROWS {
            let by_themselves: Vec<f32> = (0..ROWS)
                .step_by(block_rows)
                .flat_map(|first| {
                    let count = block_rows.min(ROWS - first);
                    let block = MapRows {
                        first: rows.first + first * rows.row_stride,
                        causal_from: rows.causal_from.map(|from| from + first),
                        rows: count,
                        ..rows
                    };
                    sums(block, &weights[first..], count)
                })
                .collect();
            assert_eq!(
                sums(rows, &weights, block_rows),
                by_themselves,
                "{simd}, {block_rows} of {ROWS} rows, {rows:?}"
            );
        }
    });
}

#[test]
fn every_head_is_in_one_group() {
    for (operands, heads) in
        (1..=2).flat_map(|operands| (1..=40).map(move |heads| (operands, heads)))
    {
        for in_order in [true, false] {
            let groups: Vec<Heads> = Heads::groups(operands, heads, in_order).collect();
            let mut all: Vec<usize> = groups
                .iter()
                .flat_map(|group| (0..group.count).map(|h| group.at(h)))
                .collect();
            if !in_order {
                all.sort_unstable();
            }
            assert_eq!(all, (0..heads).collect::<Vec<_>>());
            let mut then: Vec<Option<usize>> =
                groups.iter().map(|group| Some(group.first)).collect();
            then.push(None);
            for (group, then) in groups.iter().zip(&then[1..]) {
                assert_eq!(group.then, *then);
                assert!(group.count * operands <= 6);
            }
        }
    }
}

/// Rows that are made in several chunks are those that are made by themselves, be they left or added to sums of blocks that
/// begin elsewhere, and each chunk knows where the next begins.
#[test]
fn chunks_fuse_as_by_themselves() {
    let (heads, rows, len) = (3, 5, CHUNK_ELEMENTS / 2);
    let values: Vec<f32> = (0..heads * rows * len)
        .map(|at| (at % 251) as f32)
        .collect();
    let all = MapRows {
        maps: HostTensor::from(&values[..]),
        gradients: None,
        first: 0,
        head_stride: rows * len,
        row_stride: len,
        heads,
        fusion: &HeadFusion::Mean,
        causal_from: None,
        more_than: f32::NAN,
        rows,
        len,
        prefetch: Prefetch::Near,
        next: None,
    };
    for simd in Simd::available() {
        let mut got = vec![f32::NAN; rows * len];
        all.fuse(simd, 1.0, &mut got);
        for (row, got) in got.chunks_exact(len).enumerate() {
            let mut want = vec![f32::NAN; len];
            all.part(row..row + 1).fuse(simd, 1.0, &mut want);
            assert_eq!(got, want, "{simd}, row {row}");
        }
        let largest = MapRows {
            fusion: &HeadFusion::Max,
            ..all
        };
        let weights = [0.5, 2.0, 0.25, 3.0, 0.125];
        let add = |rows: Range<usize>, block_rows: usize, part: &mut [f32]| {
            let mut to = Accumulate {
                start_rows: 1,
                weights: &weights[rows.clone()],
                weights_stride: rows.len(),
                block_rows,
                part,
                part_stride: len,
                fused: &mut vec![f32::NAN; CHUNK_ELEMENTS],
            };
            largest.part(rows).accumulate(simd, &mut to);
        };
        for block_rows in 1..=rows {
            let mut got = vec![0.0; rows.div_ceil(block_rows) * len];
            let mut want = got.clone();
            add(0..rows, block_rows, &mut got);
            for row in 0..rows {
                add(row..row + 1, 1, &mut want[row / block_rows * len..][..len]);
            }
            assert_eq!(got, want, "{simd}, blocks of {block_rows} rows");
        }
    }
    let next = |rows: Range<usize>| all.part(rows).next.map(|[map, _]| map.addr());
    let row_bytes = len * size_of::<f32>();
    assert_eq!(next(0..2), Some(values.as_ptr().addr() + 2 * row_bytes));
    assert_eq!(next(4..5), None);
}
