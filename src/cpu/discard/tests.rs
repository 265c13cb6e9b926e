//! Against sorting, on every instruction set of this machine.

use super::key::key;
use super::*;
use crate::cpu::Prefetch;
use crate::cpu::item::ItemMaps;
use crate::cpu::map::FusedMap;
use crate::cpu::team::Shared;
use crate::{DType, DiscardScope, RolloutConfig, Shape};

/// A map of few different values, so that many are equal, some of them special.
fn map(len: usize, special: bool) -> Vec<f32> {
    let mut state = len as u32;
    let mut value = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        match state >> 24 {
            0 if special => f32::NAN,
            1 if special => f32::INFINITY,
            2 if special => f32::NEG_INFINITY,
            3..=40 if special => -0.0,
            41..=60 => 0.0,
            bits => (bits / 4) as f32 / 64.0 - 0.25,
        }
    };
    (0..len * len).map(|_| value()).collect()
}

/// The map without what is discarded, by sorting.
fn sorted(problem: &Problem, first: usize, fused: &[f32]) -> Vec<f32> {
    let len = problem.windows()[0].len;
    let inside = |at: &usize| at / len >= first && at % len >= first;
    let mut entries: Vec<usize> = (0..fused.len()).filter(inside).collect();
    entries.sort_by_key(|&at| key(fused[at]));
    entries.truncate(problem.discard_count(0));
    let mut kept = fused.to_vec();
    for at in entries.into_iter().filter(|&at| first > 0 || at > 0) {
        kept[at] = 0.0;
    }
    kept
}

/// The sums of the columns of what is kept, row after row.
fn accumulated(simd: Simd, problem: &Problem, map: FusedEntries<'_>) -> Vec<f32> {
    let len = map.len;
    let maps = ItemMaps {
        problem,
        prefetch: Prefetch::Near,
        operands: map.entries.into(),
        layer: 0,
        item: 0,
        memory: Shared::new(&mut []),
    };
    let candidates = &mut vec![0.0; scratch(len)];
    let all = maps.rows(0..len);
    let fused = FusedMap::new(simd, maps, &all, Some(map), candidates);
    let (mut row, mut sums) = (vec![f32::NAN; len], vec![0.0; len]);
    for rows in [0..len / 2, len / 2..len] {
        let weights = vec![1.0; rows.len()];
        fused.accumulate(rows, len, 1, &weights, &mut row, &mut sums);
    }
    sums
}

fn check(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (at, (got, want)) in got.iter().zip(want).enumerate() {
        let same = got == want || got.is_nan() && want.is_nan();
        assert!(same, "{what}: {got} for {want} at {at}");
    }
}

/// On every instruction set, whole maps and sums of columns: what is kept of a map of `len` tokens is what sorting keeps.
fn compare(fused: &[f32], len: usize, scope: DiscardScope, ratio: f64) {
    let (layers, batch, heads, tokens) = (1, 1, 1, len);
    let shape = Shape {
        layers,
        batch,
        heads,
        tokens,
    };
    let discard = Some(Discard { ratio, scope });
    let config = RolloutConfig {
        discard,
        ..Default::default()
    };
    let problem = Problem::new(shape, DType::F32, config).unwrap();
    let want = sorted(&problem, scope.first(), fused);
    // The same with something between the rows.
    let stride = len + 3;
    let mut apart = vec![-9.0; len * stride];
    for (apart, row) in apart.chunks_mut(stride).zip(fused.chunks(len)) {
        apart[..len].copy_from_slice(row);
    }
    let apart = FusedEntries {
        entries: &apart,
        stride,
        len,
        prefetch: Prefetch::Near,
    };
    let layouts = [FusedEntries::new(fused, len), apart];
    for (simd, map) in Simd::available().flat_map(|simd| layouts.map(|map| (simd, map))) {
        let mut scratch = vec![0.0; scratch(len)];
        let mut got = fused.to_vec();
        if let Some(cutoff) = Cutoff::select(simd, &problem, 0, map, &mut scratch) {
            let (top, bottom) = got.split_at_mut(len / 2 * len);
            cutoff.keep(simd, 0..len / 2, map, top);
            cutoff.keep(simd, len / 2..len, map, bottom);
        }
        check(&got, &want, &format!("{simd}, {scope:?}, {ratio}, keep"));
        let sums = accumulated(simd, &problem, map);
        let column = |j| (0..len).fold(0.0, |sum, i| sum + want[i * len + j]);
        let want: Vec<f32> = (0..len).map(column).collect();
        check(&sums, &want, &format!("{simd}, {scope:?}, {ratio}, sums"));
    }
}

#[test]
fn discards_what_sorting_discards_on_every_instruction_set() {
    let scopes = [
        DiscardScope::Map,
        DiscardScope::Patches { special_tokens: 1 },
        DiscardScope::Patches { special_tokens: 3 },
    ];
    let ratios = [0.001, 0.02, 0.3, 0.5, 0.9, 0.995, 0.9999];
    for (len, special) in [
        (4, true),
        (17, false),
        (31, true),
        (40, true),
        (97, false),
        (150, true),
    ] {
        let fused = map(len, special);
        for (scope, ratio) in scopes.into_iter().flat_map(|s| ratios.map(|r| (s, r))) {
            compare(&fused, len, scope, ratio);
        }
    }
}

#[test]
fn a_sample_that_misleads_costs_time_alone() {
    let len = 60;
    // Numbers of all entries: those of the sample are where it looks.
    let numbers: Vec<f32> = (0..len * len).map(|at| at as f32).collect();
    let mut drawn = vec![0.0; scratch(len)];
    let drawn = select::sample(len, || numbers.chunks_exact(len), &mut drawn);
    // Of the others so many are less than all that is drawn.
    for least in [0.5, 0.8] {
        let mut fused: Vec<f32> = (0..len * len)
            .map(|at| {
                if (at as f64) < least * (len * len) as f64 {
                    0.125
                } else {
                    0.875
                }
            })
            .collect();
        for &at in drawn {
            fused[at as usize] = 0.5;
        }
        for ratio in [0.3, 0.5, 0.7, 0.95] {
            compare(&fused, len, DiscardScope::Map, ratio);
        }
    }
}

#[test]
fn what_is_not_a_number_is_discarded_last_whatever_its_sign() {
    let len = 40;
    let mut fused = map(len, false);
    for at in (3..fused.len()).step_by(7) {
        fused[at] = if at % 2 == 0 { f32::NAN } else { -f32::NAN };
    }
    for ratio in [0.5, 0.8, 0.95] {
        compare(&fused, len, DiscardScope::Map, ratio);
    }
}
