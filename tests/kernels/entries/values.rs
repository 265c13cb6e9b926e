//! Entries that are not finite: they reach every output that depends on them, and no other item.

use attention_rollout::cuda::variant::{Arithmetic, Form};
use attention_rollout::{DType, HeadFusion, StartRows};

use super::{Entry, fusions};
use crate::cases::{Case, Path};
use crate::lab::Lab;

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
        name: "chain_not_finite",
        kernels: &["rollout_chain"],
        short: false,
        run: |lab| {
            for arithmetic in [Arithmetic::F16x1, Arithmetic::Tf32x3] {
                not_finite(lab, Path::Chain(arithmetic), &fusions(3)[..1], Case::matrix)?;
            }
            let path = Path::Chain(Arithmetic::F16x3);
            not_finite(lab, path, &fusions(3), Case::matrix)
        },
    },
];

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
        for normalize in [false, true] {
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
