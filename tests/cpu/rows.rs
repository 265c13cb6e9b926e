//! Row form: which rows are read, and in what company.

use crate::against_reference::{bits, check, run};
use crate::common::generate::Case;
use attention_rollout::cpu::{Choice, Form, Prefetch, Simd};
use attention_rollout::{
    DType, GradientRule, HeadFusion, HostLayer, Output, Problem, RolloutConfig, Shape, StartRows,
};

#[test]
fn rows_without_weight_are_not_read() {
    // Some are read side by side, where all their rows carry weight.
    for batch in [3, 16] {
        rows_of_items_without_weight_are_not_read(batch);
    }
}

fn rows_of_items_without_weight_are_not_read(batch: usize) {
    let shape = Shape {
        layers: 3,
        batch,
        heads: 2,
        tokens: 37,
    };
    let (start, other, square) = (5, 30, shape.tokens * shape.tokens);
    let config = RolloutConfig {
        output: Output::Rows(StartRows::Rows(vec![start])),
        ..RolloutConfig::default()
    };
    let problem = Problem::new(shape, DType::F32, config).unwrap();
    let uniform = vec![1.0 / shape.tokens as f32; shape.batch * shape.heads * square];
    // The start row looks at one other token in the last item, and so do only two rows carry weight in the layer before.
    let (mut before, mut last) = (uniform.clone(), uniform.clone());
    for (at, (before, last)) in before.iter_mut().zip(&mut last).enumerate() {
        let (item, row, column) = (
            at / square / shape.heads,
            at % square / shape.tokens,
            at % shape.tokens,
        );
        if row != start {
            *last = f32::NAN;
        } else if item + 1 == batch && column != other {
            *last = 0.0;
        }
        if item + 1 == batch && ![start, other].contains(&row) {
            *before = f32::NAN;
        }
    }
    let layers = [&uniform, &before, &last].map(|maps| HostLayer::from(&maps[..]));
    for (count, simd) in [1, 2]
        .into_iter()
        .flat_map(|count| Simd::available().map(move |simd| (count, simd)))
    {
        let choice = Choice {
            form: Form::Rows,
            simd,
            share_rest: true,
            prefetch: Prefetch::Near,
        };
        let got = run(&problem, &layers, count, choice);
        let numbers = got.iter().all(|entry| entry.is_finite());
        assert!(numbers, "{simd}, {count} threads: {got:?}");
    }
}

/// Windows whose rows are made several blocks at a time, and a few rows of a block at a time.
#[test]
fn rows_that_must_be_made_agree_with_the_reference() {
    for (heads, tokens) in [(12, 200), (1, 700)] {
        let shape = Shape {
            layers: 2,
            batch: 1,
            heads,
            tokens,
        };
        let settings: [fn(&mut RolloutConfig); 5] = [
            |config| config.normalize_rows = true,
            |config| config.head_fusion = HeadFusion::Max,
            |config| config.gradients = Some(GradientRule::Fused),
            |config| config.exclude_from_attention = vec![0, 7],
            |config| config.causal = true,
        ];
        for (at, set) in settings.into_iter().enumerate() {
            let mut case = Case::new(shape, 7);
            set(&mut case.config);
            // Entries right of the diagonal are not read, and there are rows to normalise left of it.
            case.config.normalize_rows |= case.config.causal;
            let generated = case.generate();
            let ways = [(1, false, Prefetch::Near), (2, true, Prefetch::Far)];
            let [alone, shared] = ways.map(|(count, share_rest, prefetch)| {
                let choice = Choice {
                    form: Form::Rows,
                    simd: Simd::detect(),
                    share_rest,
                    prefetch,
                };
                run(&generated.problem, &generated.layers(), count, choice)
            });
            check(&format!("setting {at}"), &generated, &alone).unwrap();
            assert_eq!(bits(&alone), bits(&shared), "setting {at}");
        }
    }
}

/// Small items, of which several are read side by side, in one block of rows or in several, and some are left over.
#[test]
fn small_items_are_the_same_beside_others_and_alone() {
    for (seed, (batch, heads, tokens, dtype)) in [
        (16, 1, 33, DType::F32),
        (19, 4, 100, DType::F32),
        (17, 2, 64, DType::F16),
        (8, 1, 197, DType::F16),
        (11, 5, 65, DType::Bf16),
    ]
    .into_iter()
    .enumerate()
    {
        let mut case = Case::new(
            Shape {
                layers: 3,
                batch,
                heads,
                tokens,
            },
            seed as u64,
        );
        case.dtype = dtype;
        let weights = (0..heads).map(|head| 0.5 - head as f32 / 8.0).collect();
        for (fusion, start) in [
            (HeadFusion::Mean, StartRows::Rows(vec![tokens / 2])),
            (HeadFusion::Weighted(weights), StartRows::Mean),
        ] {
            case.config.head_fusion = fusion;
            case.config.output = Output::Rows(start);
            let generated = case.generate();
            for simd in Simd::available() {
                let run = |count, prefetch| {
                    let choice = Choice {
                        form: Form::Rows,
                        simd,
                        share_rest: true,
                        prefetch,
                    };
                    run(&generated.problem, &generated.layers(), count, choice)
                };
                let together = run(1, Prefetch::Near);
                check(&format!("{case:?}, {simd}"), &generated, &together).unwrap();
                for count in [2, batch] {
                    let apart = run(count, Prefetch::Far);
                    assert_eq!(bits(&apart), bits(&together), "{case:?}, {simd}");
                }
            }
        }
    }
}
