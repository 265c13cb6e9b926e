//! What the kernels that read maps ask of memory, against what any evaluation must read and write.

use std::collections::HashSet;

use attention_rollout::cuda::kernel::{Arithmetic, Exchange, SplitProduct};
use attention_rollout::cuda::variant::Variant;
use attention_rollout::{DType, GradientRule, Output, Problem, StartRows};

use crate::cases::{Case, Path, StreamWay, ring_matrix};
use crate::entries::Entry;
use crate::entries::tree::whole_by;
use crate::lab::Lab;

/// Not by stems: faults that only waste memory name this, and all others are noticed sooner by what is computed.
const KERNELS: &[&str] = &["traffic"];

/// Bytes of a sector of DRAM, of which L2 fetches whole ones.
const SECTOR: usize = 32;

/// What the launches of one kernel did.
#[derive(Default)]
struct Counts {
    /// Bytes read from the maps, and from their gradients.
    asked: u64,
    distinct: u64,
    /// 32-byte sectors that were read of.
    sectors: u64,
    /// Bytes written to global memory.
    written: u64,
    /// Shared-memory passes, and those beyond the fewest possible.
    wavefronts: u64,
    conflicts: u64,
}

fn count(lab: &Lab, case: &Case, path: Path, stem: &str) -> Result<Counts, String> {
    let mut counts = Counts::default();
    case.run(lab, path, |variant: &Variant, report| {
        if variant.stem == stem {
            for traffic in &report.traffic {
                if ["maps", "gradients"].contains(&traffic.label.as_str()) {
                    counts.asked += traffic.read.bytes;
                    counts.distinct += traffic.read.distinct_bytes;
                    counts.sectors += traffic.read.distinct_sectors;
                }
                counts.written += traffic.written.bytes;
            }
            counts.wavefronts += report.shared.wavefronts;
            counts.conflicts += report.shared.extra_wavefronts;
        }
    })?;
    Ok(counts)
}

/// One case, with the most that may be asked for and the most bank conflicts, as shares of the floor and of all passes.
struct Limit {
    case: Case,
    path: Path,
    stem: &'static str,
    asked: f64,
    conflicts: f64,
}

fn rows(tokens: usize, dtype: DType, asked: f64) -> Limit {
    Limit {
        case: Case::new([2, 1, 2, tokens]).dtype(dtype),
        path: Path::Rows(1),
        stem: "rollout_rows",
        asked,
        conflicts: 0.2,
    }
}

fn stream(way: StreamWay, tokens: usize, dtype: DType, asked: f64) -> Limit {
    Limit {
        case: Case::new([2, 1, 2, tokens]).dtype(dtype),
        path: Path::Stream(way),
        stem: "rows_stream",
        asked,
        // A lane has pairs of columns of 2-byte maps; their sums go to every second or sixth word, once per layer.
        conflicts: if dtype.size_bytes() == 2 { 0.06 } else { 0.0 },
    }
}

/// Rows of the last layer without weight, alone and in runs: two of three are not read.
fn sparse(mut limit: Limit) -> Limit {
    let tokens = limit.case.shape[3];
    let weight = |i: usize| {
        if i % 5 < 2 || i.is_multiple_of(7) {
            0.25
        } else {
            0.0
        }
    };
    limit.case.config.output = Output::Rows(StartRows::Weights {
        rows: 1,
        weights: (0..tokens).map(weight).collect(),
    });
    limit
}

fn matrix(tokens: usize, arithmetic: Arithmetic, asked: f64, conflicts: f64) -> Limit {
    Limit {
        case: Case::new([2, 1, 2, tokens]).matrix(),
        path: ring_matrix(arithmetic),
        stem: "matrix_stream",
        asked,
        conflicts,
    }
}

/// Maps and as many gradients. A row that nothing is left of is not read, so the start row is one that every row has a part
/// in.
fn weighed(mut limit: Limit) -> Limit {
    limit.case.config.gradients = Some(GradientRule::Heads);
    limit.case.config.output = Output::Rows(StartRows::Mean);
    if limit.stem == "rows_stream" {
        limit.conflicts = 0.0;
    }
    limit
}

/// Of a causal map only the triangle.
fn causal(mut limit: Limit) -> Limit {
    limit.case.config.causal = true;
    if limit.stem != "matrix_stream" {
        limit.case.config.output = Output::Rows(StartRows::Mean);
    }
    limit
}

/// Of a causal map only the rows up to the last one that carries weight, in every layer.
fn behind(mut limit: Limit, rows: &[usize]) -> Limit {
    limit.case.config.output = Output::Rows(StartRows::Rows(rows.to_vec()));
    limit
}

/// What any evaluation must read.
#[derive(Default)]
struct Needed {
    /// Bytes of elements.
    bytes: u64,
    /// The sectors that hold one of them: DRAM has no smaller unit.
    sectors: u64,
}

fn needed(problem: &Problem) -> Needed {
    let shape = problem.shape();
    let (tokens, element) = (shape.tokens, problem.dtype().size_bytes());
    let (causal, start_rows) = (problem.config().causal, problem.start_rows());
    let mut needed = Needed::default();
    for layer in problem.layers() {
        let strides = problem.strides(layer);
        let is_last = layer + 1 == problem.layers().end;
        let mut sectors = HashSet::new();
        for (item, head) in (0..shape.batch).flat_map(|b| (0..shape.heads).map(move |h| (b, h))) {
            let mut carries = vec![start_rows == 0; tokens];
            for start_row in 0..start_rows {
                let mut weights = vec![0.0; tokens];
                problem.start_weights(item, start_row, &mut weights);
                let both = carries.iter_mut().zip(&weights);
                both.for_each(|(carries, &weight)| *carries |= weight != 0.0);
            }
            // Of the last layer only rows that carry weight. Of others these give weight to all, or to those before them.
            let end = carries.iter().rposition(|&carries| carries);
            let end = end.map_or(0, |last| last + 1);
            let matters = |row: usize| match is_last {
                true => carries[row],
                false => !causal || row < end,
            };
            for row in (0..tokens).filter(|&row| matters(row)) {
                let columns = if causal { row + 1 } else { tokens };
                let first = item * strides.batch + head * strides.head + row * strides.row;
                let bytes = first * element..(first + columns) * element;
                needed.bytes += bytes.len() as u64;
                sectors.extend(bytes.start / SECTOR..bytes.end.div_ceil(SECTOR));
            }
        }
        needed.sectors += sectors.len() as u64;
    }
    // Gradients lie as the maps do.
    let tensors = match problem.config().gradients {
        None => 1,
        Some(_) => 2,
    };
    Needed {
        bytes: tensors * needed.bytes,
        sectors: tensors * needed.sectors,
    }
}

/// Every element of the maps, and of their gradients, is read once, in granules: no byte of DRAM more than the floor and the ends of rows, and
/// at most a twentieth more asked for: the granules in which one row ends and the next begins. Of causal maps the triangle
/// is the floor; there `rollout_rows` asks for more where rows are short, but no sector is read in vain. Nothing but the
/// output is written.
pub const ENTRIES: &[Entry] = &[
    Entry {
        name: "traffic_stream",
        kernels: KERNELS,
        short: false,
        run: of_stream,
    },
    Entry {
        name: "traffic_rows",
        kernels: KERNELS,
        short: false,
        run: of_rows,
    },
    Entry {
        name: "traffic_matrix_stream",
        kernels: KERNELS,
        short: false,
        run: of_matrix_stream,
    },
    Entry {
        name: "traffic_tree",
        kernels: &["traffic", "split_product"],
        short: false,
        run: of_tree,
    },
];

fn of_stream(lab: &Lab) -> Result<(), String> {
    const ONE: StreamWay = StreamWay::ONE;
    const OLD: StreamWay = StreamWay { arch: 80, ..ONE };
    let three = ONE.blocks(3, Exchange::Cluster);
    check(
        lab,
        &[
            stream(ONE, 64, DType::F16, 1.0),
            stream(OLD, 128, DType::F32, 1.0),
            stream(ONE, 197, DType::F16, 1.05),
            stream(OLD, 197, DType::F16, 1.05),
            stream(three, 197, DType::F16, 1.05),
            sparse(stream(ONE, 197, DType::F16, 1.05)),
            sparse(stream(OLD, 131, DType::F32, 1.05)),
            sparse(stream(three, 197, DType::F16, 1.05)),
            weighed(stream(ONE, 64, DType::F16, 1.0)),
            weighed(stream(OLD, 131, DType::F16, 1.05)),
            weighed(stream(three, 150, DType::F16, 1.05)),
            causal(stream(ONE, 197, DType::F16, 1.08)),
            causal(stream(OLD, 131, DType::F32, 1.07)),
            behind(causal(stream(ONE, 197, DType::F16, 1.2)), &[70]),
            behind(causal(stream(OLD, 131, DType::F32, 1.2)), &[3, 64]),
            behind(causal(stream(three, 197, DType::F16, 1.2)), &[0, 131]),
        ],
    )
}

fn of_rows(lab: &Lab) -> Result<(), String> {
    check(
        lab,
        &[
            rows(64, DType::F16, 1.0),
            rows(128, DType::F32, 1.0),
            rows(197, DType::F16, 1.05),
            rows(331, DType::F16, 1.05),
            weighed(rows(64, DType::F16, 1.0)),
            weighed(rows(197, DType::F16, 1.05)),
            weighed(rows(331, DType::F16, 1.05)),
            weighed(causal(rows(331, DType::F16, 1.07))),
            causal(rows(128, DType::F16, 1.06)),
            causal(rows(197, DType::F16, 1.08)),
            causal(rows(331, DType::F16, 1.07)),
            causal(rows(512, DType::F16, 1.02)),
        ],
    )
}

fn of_matrix_stream(lab: &Lab) -> Result<(), String> {
    check(
        lab,
        &[
            matrix(64, Arithmetic::F16x3, 1.0, 0.0),
            matrix(127, Arithmetic::F16x3, 1.05, 0.0),
            matrix(197, Arithmetic::F16x3, 1.05, 0.005),
            matrix(208, Arithmetic::F16x3, 1.0, 0.005),
            matrix(101, Arithmetic::Tf32x3, 1.05, 0.005),
            causal(matrix(197, Arithmetic::F16x3, 1.08, 0.005)),
        ],
    )
}

/// Maps are read once and written once, split; each product writes its map once, and has no bank conflicts.
fn of_tree(lab: &Lab) -> Result<(), String> {
    for (kernel, tokens) in [
        (SplitProduct::together(32), 70),
        (SplitProduct::together(64), 131),
        (SplitProduct::together(128), 131),
        (SplitProduct::apart(64), 131),
        (SplitProduct::apart(112), 131),
        (SplitProduct::apart(160), 131),
        (SplitProduct::apart(208), 131),
    ] {
        let case = Case::new([3, 1, 2, tokens]).matrix();
        let problem = case.problem();
        let fusion = count(lab, &case, whole_by(kernel), "head_fusion")?;
        let products = count(lab, &case, whole_by(kernel), "split_product")?;
        let map_bytes = (4 * tokens * tokens.next_multiple_of(8)) as u64;
        let written = [fusion.written, products.written];
        let expected = [3 * map_bytes, map_bytes + 4 * problem.output_len() as u64];
        let needed_sectors = needed(&problem).sectors;
        if fusion.sectors != needed_sectors || written != expected || products.conflicts > 0 {
            return Err(format!(
                "{}: read of {} sectors where {needed_sectors} are needed, wrote {written:?} bytes for {expected:?}, {} of {} passes are conflicts",
                problem.shape(),
                fusion.sectors,
                products.conflicts,
                products.wavefronts,
            ));
        }
    }
    Ok(())
}

fn check(lab: &Lab, limits: &[Limit]) -> Result<(), String> {
    for limit in limits {
        let problem = limit.case.problem();
        let needed = needed(&problem);
        let floor = needed.bytes as f64;
        let counts = count(lab, &limit.case, limit.path, limit.stem)?;
        let (asked, distinct) = (counts.asked as f64 / floor, counts.distinct as f64 / floor);
        let conflicts = counts.conflicts as f64 / counts.wavefronts.max(1) as f64;
        println!(
            "{} {:?} of {} {}{}{}: {asked:.3} of the floor asked for, {distinct:.3} distinct, {} of {} passes are conflicts",
            limit.stem,
            limit.path,
            problem.shape(),
            problem.dtype(),
            if problem.config().causal {
                " causal"
            } else {
                ""
            },
            match problem.config().gradients {
                None => "",
                Some(_) => " and gradients",
            },
            counts.conflicts,
            counts.wavefronts,
        );
        // The one row of the last layer, and the first and last rows, end within a granule; so does each causal row.
        let most_distinct = if problem.config().causal {
            limit.asked
        } else {
            1.01
        };
        let output_bytes = 4 * problem.output_len() as u64;
        if counts.sectors != needed.sectors
            || !(1.0..=most_distinct).contains(&distinct)
            || !(1.0..=limit.asked).contains(&asked)
            || !(0.0..=limit.conflicts).contains(&conflicts)
            || counts.written != output_bytes
        {
            return Err(format!(
                "{} of {}: read of {} sectors where {} are needed, asked {asked:.3}, distinct {distinct:.3}, \
                 conflicts {conflicts:.3}, wrote {} bytes for {output_bytes}",
                limit.stem,
                problem.shape(),
                counts.sectors,
                needed.sectors,
                counts.written,
            ));
        }
    }
    Ok(())
}
