use super::*;
use crate::config::{Discard, DiscardScope, Output, RolloutConfig};
use crate::cuda::kernel::{Exchange, RingRows};
use crate::cuda::options::Precision;
use crate::cuda::pipeline::rows_read_fused;
use crate::dtype::DType::{F16, F32};
use crate::layout::Shape;
use crate::problem::Problem;

const fn apart(blocks: u32) -> Pipeline {
    let splits = Splits {
        blocks,
        clustered: false,
    };
    Pipeline::Rows { rows: 1, splits }
}

const fn cluster(blocks: u32) -> Pipeline {
    let splits = Splits {
        blocks,
        clustered: true,
    };
    Pipeline::Rows { rows: 1, splits }
}

const PRODUCT: Pipeline = Pipeline::Product {
    arithmetic: Arithmetic::F16x3,
    form: Form::Rows,
};

/// `rows_stream`: columns of a lane, blocks of an item, how these tell each other their sums, and the time.
type RingTimes = &'static [(u32, u32, Exchange, f64)];
/// Pipelines with their times.
type Times = &'static [(Pipeline, f64)];
/// Pipelines by their names, the best first.
type NamedTimes = &'static [(&'static str, f64)];
type Predicted = ([usize; 4], DType, Times);

/// What the model of a multiprocessor predicts for one row on an H200, in microseconds in a CUDA graph: `[layers,
/// batch, heads, tokens]`, type, and pipelines with their times. Predictions, not measurements.
#[rustfmt::skip]
const PREDICTED: &[Predicted] = &[
    ([6, 4, 12, 28], F32, &[(apart(1), 68.0), (cluster(2), 42.0), (cluster(4), 26.0), (cluster(8), 26.0), (apart(4), 37.0), (PRODUCT, 24.1)]),
    ([12, 8, 12, 197], F32, &[(apart(17), 199.0), (apart(25), 174.0), (apart(33), 183.0), (apart(50), 277.0), (apart(13), 204.0), (apart(9), 259.0), (cluster(4), 467.0), (cluster(8), 260.0), (cluster(2), 889.0), (PRODUCT, 159.8)]),
    ([24, 1, 16, 577], F32, &[(apart(145), 3121.0), (apart(97), 2397.0), (apart(73), 2148.0), (apart(49), 2093.0), (apart(37), 2254.0), (apart(25), 2796.0), (cluster(8), 6979.0), (PRODUCT, 683.3)]),
    ([12, 2, 12, 512], F32, &[(apart(16), 626.0), (apart(22), 524.0), (apart(32), 440.0), (apart(43), 427.0), (apart(64), 460.0), (apart(86), 547.0), (cluster(8), 1064.0), (PRODUCT, 318.3), (apart(128), 700.0)]),
    ([12, 1, 12, 197], F32, &[(apart(17), 176.0), (apart(25), 158.0), (apart(33), 173.0), (apart(50), 179.0), (apart(9), 258.0), (cluster(8), 260.0), (PRODUCT, 124.5)]),
    ([12, 16, 12, 128], F32, &[(apart(4), 175.0), (apart(6), 147.0), (apart(8), 121.0), (apart(11), 131.0), (apart(16), 111.0), (cluster(2), 282.0), (cluster(4), 153.0), (cluster(8), 91.0), (PRODUCT, 117.9)]),
    ([12, 16, 3, 197], F32, &[(apart(9), 140.0), (apart(13), 124.0), (apart(17), 136.0), (apart(25), 182.0), (cluster(4), 185.0), (cluster(8), 108.0), (PRODUCT, 142.1), (apart(12), 127.0), (apart(7), 149.0)]),
    ([12, 64, 12, 197], F32, &[(apart(4), 553.0), (apart(6), 479.0), (cluster(2), 898.0), (cluster(4), 538.0), (cluster(8), 553.0), (PRODUCT, 473.6), (apart(5), 570.0), (apart(9), 580.0)]),
    ([12, 8, 12, 197], F16, &[(apart(9), 175.0), (apart(13), 146.0), (apart(17), 161.0), (apart(25), 148.0), (cluster(4), 287.0), (cluster(8), 174.0), (PRODUCT, 139.4)]),
    ([12, 1, 12, 197], F16, &[(apart(9), 174.0), (apart(13), 144.0), (apart(17), 149.0), (apart(25), 132.0), (cluster(8), 173.0), (PRODUCT, 121.8)]),
    ([12, 2, 12, 512], F16, &[(apart(16), 391.0), (apart(22), 348.0), (apart(32), 324.0), (apart(43), 340.0), (apart(64), 402.0), (cluster(8), 591.0), (PRODUCT, 285.1)]),
    ([24, 1, 16, 577], F16, &[(apart(97), 1919.0), (apart(73), 1592.0), (apart(49), 1436.0), (apart(37), 1457.0), (apart(25), 1693.0), (cluster(8), 3876.0), (PRODUCT, 627.3)]),
    ([12, 64, 12, 197], F16, &[(apart(4), 381.0), (cluster(2), 520.0), (cluster(4), 364.0), (cluster(8), 386.0), (PRODUCT, 315.1), (apart(5), 433.0), (apart(7), 438.0)]),
];

/// The same for `rows_stream`; no measurement has ever confirmed the mechanisms it uses.
#[rustfmt::skip]
const RING_PREDICTED: &[([usize; 4], DType, RingTimes)] = &[
    ([6, 4, 12, 28], F32, &[(1, 8, Exchange::Cluster, 8.6)]),
    ([12, 8, 12, 197], F32, &[(7, 16, Exchange::Words, 41.2)]),
    ([24, 1, 16, 577], F32, &[(7, 132, Exchange::Words, 112.8)]),
    ([12, 2, 12, 512], F32, &[(4, 66, Exchange::Words, 66.3)]),
    ([12, 1, 12, 197], F32, &[(4, 132, Exchange::Words, 17.9), (1, 132, Exchange::Words, 19.2)]),
    ([12, 16, 12, 128], F32, &[(4, 8, Exchange::Cluster, 35.5)]),
    ([12, 16, 3, 197], F32, &[(7, 8, Exchange::Cluster, 24.0)]),
    ([12, 64, 12, 197], F32, &[(7, 2, Exchange::Cluster, 290.7)]),
    ([12, 8, 12, 197], F16, &[(7, 16, Exchange::Words, 27.7)]),
    ([12, 4, 12, 197], F16, &[(7, 33, Exchange::Words, 21.7)]),
    ([12, 1, 12, 197], F16, &[(4, 132, Exchange::Words, 17.7)]),
    ([12, 2, 12, 512], F16, &[(4, 66, Exchange::Words, 41.9)]),
    ([24, 1, 16, 577], F16, &[(7, 132, Exchange::Words, 75.5)]),
    ([12, 64, 12, 197], F16, &[(7, 2, Exchange::Cluster, 148.6)]),
    ([12, 32, 12, 197], F16, &[(7, 4, Exchange::Cluster, 77.1)]),
    ([12, 33, 12, 128], F16, &[(4, 4, Exchange::Cluster, 36.4)]),
];

/// The same of f32 maps of which 9 of 10 entries are discarded.
#[rustfmt::skip]
const DISCARD_PREDICTED: &[([usize; 4], NamedTimes)] = &[
    ([12, 8, 12, 197], &[("ring rows, 16 blocks to an item, by words", 75.9)]),
    ([12, 2, 12, 512], &[("ring rows, 66 blocks to an item, by words", 114.3)]),
    ([24, 1, 16, 577], &[("ring rows, 132 blocks to an item, by words", 190.0)]),
    ([6, 4, 12, 28], &[("ring rows, a cluster of 8 to an item", 16.6), ("ring rows, a block to an item", 19.7)]),
    ([12, 3, 12, 64], &[("ring rows, a cluster of 8 to an item", 24.4)]),
    ([12, 1, 12, 197], &[("ring rows, 132 blocks to an item, by words", 31.3)]),
    ([12, 16, 12, 128], &[("ring rows, a cluster of 8 to an item", 67.4)]),
    ([2, 2, 12, 1024], &[("ring rows, 66 blocks to an item, by words", 90.5), (ROWS_PRODUCT, 222.1)]),
    // In parts that stay in L2.
    ([12, 64, 12, 197], &[("ring rows, 5 blocks to an item, by words", 531.2), (ROWS_PRODUCT, 662.9)]),
    ([24, 8, 16, 577], &[("ring rows, 132 blocks to an item, by words", 1520.1)]),
];
const ROWS_PRODUCT: &str = "product, f16x3, rows";

/// What was predicted for a pipeline.
fn predicted_us(shape: [usize; 4], dtype: DType, pipeline: Pipeline) -> Option<f64> {
    if let Pipeline::RingRows(RingRows { kernel, sets, .. }) = pipeline {
        let of_shape = |row: &&([usize; 4], DType, RingTimes)| (row.0, row.1) == (shape, dtype);
        let (_, _, times) = RING_PREDICTED.iter().find(of_shape)?;
        let way = (kernel.columns, sets.blocks, sets.exchange);
        let time = times.iter().find(|time| (time.0, time.1, time.2) == way);
        return time.map(|time| time.3);
    }
    let of_shape = |row: &&Predicted| (row.0, row.1) == (shape, dtype);
    let (_, _, times) = PREDICTED.iter().find(of_shape)?;
    let time = times.iter().find(|(known, _)| *known == pipeline);
    time.map(|&(_, us)| us)
}

/// What an H200 has to choose from.
pub fn candidates(extents: [usize; 4], dtype: DType, output: Output) -> Vec<(f64, Pipeline)> {
    let config = RolloutConfig {
        output,
        ..RolloutConfig::default()
    };
    candidates_of(extents, dtype, config, &DeviceLimits::H200)
}

fn candidates_of(
    [layers, batch, heads, tokens]: [usize; 4],
    dtype: DType,
    config: RolloutConfig,
    limits: &DeviceLimits,
) -> Vec<(f64, Pipeline)> {
    let shape = Shape {
        layers,
        batch,
        heads,
        tokens,
    };
    let problem = Problem::new(shape, dtype, config).unwrap();
    let fused_first = rows_read_fused(&problem);
    let work = Workload::new(&problem, batch, limits, fused_first);
    let mut all = work.candidates(Precision::F32);
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    all
}

#[test]
fn the_cheapest_way_to_a_row_is_within_1_3_of_the_best_predicted() {
    let rings = RING_PREDICTED
        .iter()
        .map(|&(shape, dtype, _)| (shape, dtype));
    for (shape, dtype) in rings {
        let mut all = candidates(shape, dtype, Output::default());
        // Where there is no ring, too.
        for has_ring in [true, false] {
            let is_ring = |pipeline| matches!(pipeline, Pipeline::RingRows(_));
            all.retain(|&(_, pipeline)| has_ring || !is_ring(pipeline));
            all.sort_by(|a, b| a.0.total_cmp(&b.0));
            let predicted = |pipeline| predicted_us(shape, dtype, pipeline);
            let times = all.iter().filter_map(|&(_, pipeline)| predicted(pipeline));
            let best = times.fold(f64::INFINITY, f64::min);
            if best.is_infinite() {
                continue;
            }
            let chosen = super::super::preferred(&all).unwrap();
            let us = predicted(chosen)
                .unwrap_or_else(|| panic!("{shape:?} {dtype}: nobody predicted {chosen:?}"));
            assert!(
                us <= 1.3 * best,
                "{shape:?} {dtype}: {chosen:?} {us} us, the best {best}"
            );
        }
    }
}

#[test]
fn estimates_are_near_what_is_predicted() {
    let mut compared = [0, 0];
    let rings = RING_PREDICTED
        .iter()
        .map(|&(shape, dtype, _)| (shape, dtype));
    for (shape, dtype) in rings {
        for (estimate, pipeline) in candidates(shape, dtype, Output::default()) {
            let Some(us) = predicted_us(shape, dtype, pipeline) else {
                continue;
            };
            let factor = (estimate / us).max(us / estimate);
            assert!(
                factor < 1.5,
                "{shape:?} {dtype} {pipeline:?}: {estimate} us, predicted {us}"
            );
            compared[usize::from(matches!(pipeline, Pipeline::RingRows(_)))] += 1;
        }
    }
    for &(shape, times) in DISCARD_PREDICTED {
        let discard = Some(Discard {
            ratio: 0.9,
            scope: DiscardScope::Map,
        });
        let config = RolloutConfig {
            discard,
            ..RolloutConfig::default()
        };
        // What stays in L2 together is what does where it was predicted.
        let limits = DeviceLimits {
            l2_bytes: 60 << 20,
            ..DeviceLimits::H200
        };
        let all = candidates_of(shape, F32, config, &limits);
        for &(name, us) in times {
            // The ways of that name differ in the columns of a lane.
            let mut all = all.iter();
            let (estimate, pipeline) = all.find(|(_, one)| one.to_string() == name).unwrap();
            let factor = (estimate / us).max(us / estimate);
            assert!(
                factor < 1.5,
                "{shape:?} discard, {pipeline}: {estimate} us, predicted {us}"
            );
        }
        let chosen = super::super::preferred(&all).unwrap().to_string();
        assert_eq!(chosen, times[0].0, "{shape:?} discard");
        let is_best = times.iter().all(|(_, us)| times[0].1 <= *us);
        assert!(is_best, "{shape:?} discard, {chosen}");
    }
    assert!(
        compared[0] >= 60 && compared[1] >= 16,
        "{compared:?} estimates compared"
    );
}
