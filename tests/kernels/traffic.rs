//! What the kernels that read maps ask of memory, against what any evaluation must read.

use attention_rollout::cuda::variant::{Arithmetic, Variant};
use attention_rollout::{DType, Output};

use crate::cases::{Case, Path};
use crate::lab::Lab;

/// Bytes that a kernel read from the maps.
struct Read {
    asked: u64,
    distinct: u64,
    /// Shared-memory passes beyond the fewest possible, per request.
    conflicts: f64,
}

fn read(lab: &Lab, case: &Case, path: Path, stem: &str) -> Result<Read, String> {
    let mut read = Read {
        asked: 0,
        distinct: 0,
        conflicts: 0.0,
    };
    case.run(lab, path, |variant: &Variant, report| {
        if variant.stem() == stem {
            for traffic in report.traffic.iter().filter(|t| t.label == "maps") {
                read.asked += traffic.read.bytes;
                read.distinct += traffic.read.distinct_bytes;
            }
            let shared = &report.shared;
            read.conflicts += shared.extra_wavefronts as f64 / shared.requests.max(1) as f64;
        }
    })?;
    Ok(read)
}

/// Every element of the maps is read once, in granules: no byte of DRAM more than the floor and the ends of rows, and
/// at most 5 % more asked for where rows are long.
pub fn check(lab: &Lab) -> Result<(), String> {
    let rows = |tokens: usize, dtype| {
        (
            Case::new([2, 1, 2, tokens]).dtype(dtype),
            Path::Rows(1),
            "rollout_rows",
        )
    };
    let chain = |tokens: usize| {
        let mut case = Case::new([2, 1, 2, tokens]);
        case.config.output = Output::Matrix;
        (case, Path::Chain(Arithmetic::F16x3), "rollout_chain")
    };
    for ((case, path, stem), ceiling) in [
        (rows(64, DType::F16), 1.0),
        (rows(128, DType::F32), 1.0),
        (rows(197, DType::F16), 1.05),
        (rows(331, DType::F16), 1.05),
        (chain(64), 1.0),
        (chain(127), 1.07),
    ] {
        let floor = case.problem().map_bytes() as f64;
        let read = read(lab, &case, path, stem)?;
        let (asked, distinct) = (read.asked as f64 / floor, read.distinct as f64 / floor);
        println!(
            "{stem}, {:?} of {}: {asked:.3} of the floor asked for, {distinct:.3} distinct, {:.2} conflicts a request",
            case.shape, case.dtype, read.conflicts
        );
        // The one row of the last layer, and the first and last rows, end within a granule.
        if !(1.0..=1.01).contains(&distinct) || !(1.0..=ceiling).contains(&asked) {
            return Err(format!(
                "{stem} of {:?}: asked {asked:.3}, distinct {distinct:.3}",
                case.shape
            ));
        }
    }
    Ok(())
}
