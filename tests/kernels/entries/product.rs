//! `head_fusion` and the kernels that multiply its maps.

use attention_rollout::cuda::kernel::{Arithmetic, Form};
use attention_rollout::{DType, StartRows};

use super::{Entry, features, many_layers, three_windows, weights};
use crate::cases::{Case, Path};
use crate::lab::Lab;

pub const ENTRIES: &[Entry] = &[
    Entry {
        name: "product_f32",
        kernels: &["head_fusion", "rollout_first", "rollout_product"],
        short: false,
        run: |lab| product_sizes(lab, Arithmetic::F32),
    },
    Entry {
        name: "product_f16x3",
        kernels: &["rollout_product"],
        short: false,
        run: |lab| product_sizes(lab, Arithmetic::F16x3),
    },
    Entry {
        name: "product_f16x2",
        kernels: &["rollout_product"],
        short: false,
        run: |lab| product_sizes(lab, Arithmetic::F16x2),
    },
    Entry {
        name: "product_tf32x3",
        kernels: &["rollout_product"],
        short: false,
        run: |lab| product_sizes(lab, Arithmetic::Tf32x3),
    },
    Entry {
        name: "product_features",
        kernels: &[
            "head_fusion",
            "discard",
            "row_scales",
            "rollout_first",
            "rollout_product",
        ],
        short: false,
        run: |lab| {
            let path = |form| Path::Product(Arithmetic::F16x3, form);
            features(lab, path(Form::Matrix), 37, Case::matrix)?;
            features(lab, path(Form::Rows), 18, Case::matrix)?;
            features(
                lab,
                Path::Product(Arithmetic::F32, Form::Rows),
                11,
                |case| case.start(StartRows::Mean),
            )
        },
    },
    Entry {
        name: "product_many_layers",
        kernels: &["head_fusion", "discard", "row_scales", "rollout_product"],
        short: false,
        run: |lab| {
            for form in Form::ALL {
                many_layers(lab, Path::Product(Arithmetic::F16x3, form), Case::matrix)?;
            }
            many_layers(lab, Path::Product(Arithmetic::F32, Form::Rows), |case| {
                case.start(StartRows::Last)
            })
        },
    },
    Entry {
        name: "product_start_rows",
        kernels: &["rollout_product"],
        short: true,
        run: |lab| {
            Case::new([3, 3, 2, 70])
                .start(weights(9, 70))
                .windows(&three_windows(70))
                .check(lab, Path::Product(Arithmetic::F16x3, Form::Rows))
        },
    },
    Entry {
        // More pairs of entries than a block has threads.
        name: "fused_maps_of_many_blocks",
        kernels: &["head_fusion"],
        short: true,
        run: |lab| {
            Case::new([1, 1, 2, 131])
                .dtype(DType::F32)
                .matrix()
                .check(lab, Path::Product(Arithmetic::F32, Form::Matrix))
        },
    },
    Entry {
        // Most of the output lies outside the windows, in three pieces.
        name: "product_fill",
        kernels: &["zero_fill"],
        short: true,
        run: |lab| {
            Case::new([2, 2, 1, 70])
                .matrix()
                .windows(&[(0, 3), (65, 5)])
                .check(lab, Path::Product(Arithmetic::F32, Form::Matrix))
        },
    },
    Entry {
        // The first step writes the output itself, into its window and nowhere else.
        name: "product_one_layer",
        kernels: &["rollout_first"],
        short: true,
        run: |lab| {
            let path = Path::Product(Arithmetic::F32, Form::Matrix);
            let case = Case::new([1, 3, 2, 33]).matrix();
            case.clone().windows(&three_windows(33)).check(lab, path)?;
            case.check(lab, path)
        },
    },
];

fn product_sizes(lab: &Lab, arithmetic: Arithmetic) -> Result<(), String> {
    for form in Form::ALL {
        let path = Path::Product(arithmetic, form);
        for tokens in [1, 2, 3, 5, 7, 8, 13, 17, 31, 33, 40] {
            Case::new([3, 2, 2, tokens]).matrix().check(lab, path)?;
        }
    }
    for (tokens, form) in [
        (64, Form::Rows),
        (65, Form::Matrix),
        (97, Form::Rows),
        (129, Form::Matrix),
    ] {
        Case::new([2, 1, 2, tokens])
            .matrix()
            .check(lab, Path::Product(arithmetic, form))?;
    }
    Ok(())
}
