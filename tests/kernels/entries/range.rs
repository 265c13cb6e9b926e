//! Values beyond what attention is.

use attention_rollout::cuda::kernel::{Arithmetic, Form};
use attention_rollout::{Residual, ResidualWeights};

use super::Entry;
use crate::cases::{Case, Path};

pub const ENTRIES: &[Entry] = &[Entry {
    name: "unbounded",
    kernels: &["rollout_rows", "rollout_product"],
    short: true,
    run: |lab| {
        let case = Case::new([4, 1, 2, 23])
            .config(|c| c.residual = ResidualWeights::Uniform(Residual::new(1.0, 1.0)));
        case.clone().check(lab, Path::Rows(1))?;
        for form in Form::ALL {
            case.clone()
                .matrix()
                .check(lab, Path::Product(Arithmetic::F32, form))?;
            case.clone()
                .matrix()
                .check(lab, Path::Product(Arithmetic::Tf32x3, form))?;
        }
        Ok(())
    },
}];
