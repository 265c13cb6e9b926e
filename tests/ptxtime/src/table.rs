//! The table: what was measured on a device, beside what is predicted.

use crate::{Timeline, Timing, Wait};
use attention_rollout::{
    DType, Discard, DiscardScope, GradientRule, LogBase, Lse, Output, Problem, QueriesKeys,
    RolloutConfig, Shape,
};
use std::collections::BTreeMap;
use std::fmt;

/// The system of the crate's own lines in the files of `benches/results`, run by run and as a CUDA graph.
const STREAM: &str = "attention-rollout";
const GRAPH: &str = "attention-rollout graph";

/// A line of a benchmark: one output of one workload.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// `rows`, `matrix`, `discard`, `gradients`, which weighs maps for rows, `scores`, rows from queries and keys, or
    /// `recomputed`, the same without their LSE.
    pub output: String,
    /// The workload's name.
    pub workload: String,
    /// Layers, batch, heads and tokens of each of its problems: `12x8x12x197`, several with `;`. Of queries and keys their
    /// elements may follow; else these are 64.
    pub extents: String,
    /// Element type of the maps.
    pub dtype: String,
    /// Median of the measured times as a CUDA graph, in microseconds; NaN where it was not measured.
    pub graph_us: f64,
    /// The same on a stream.
    pub stream_us: f64,
}

/// The crate's own lines of a results file (`system,output,shape,extents,dtype,threads,round,run,time_us,...`), in order
/// of appearance.
///
/// # Errors
/// What is wrong with a line.
pub fn rows(csv: &str) -> Result<Vec<Row>, String> {
    let mut rows: Vec<Row> = Vec::new();
    let mut times: BTreeMap<(usize, bool), Vec<f64>> = BTreeMap::new();
    let lines = csv.lines().filter(|line| !line.starts_with('#')).skip(1);
    for line in lines {
        let fields: Vec<&str> = line.split(',').collect();
        let [system, output, workload, extents, dtype, _, _, _, time, ..] = fields[..] else {
            return Err(format!("9 fields expected, got {}: {line}", fields.len()));
        };
        if system != STREAM && system != GRAPH {
            continue;
        }
        let time: f64 = time.parse().map_err(|_| format!("no time: {line}"))?;
        let same =
            |row: &Row| (&*row.output, &*row.extents, &*row.dtype) == (output, extents, dtype);
        let index = rows.iter().position(same).unwrap_or_else(|| {
            rows.push(Row {
                output: output.to_owned(),
                workload: workload.to_owned(),
                extents: extents.to_owned(),
                dtype: dtype.to_owned(),
                graph_us: f64::NAN,
                stream_us: f64::NAN,
            });
            rows.len() - 1
        });
        times
            .entry((index, system == GRAPH))
            .or_default()
            .push(time);
    }
    for ((index, graph), mut times) in times {
        let median = median(&mut times);
        match graph {
            true => rows[index].graph_us = median,
            false => rows[index].stream_us = median,
        }
    }
    Ok(rows)
}

/// The middle of `values`, or of the two in the middle the mean; NaN where there are none.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => values[len / 2],
        len => (values[len / 2 - 1] + values[len / 2]) / 2.0,
    }
}

impl Row {
    /// A name for files.
    pub fn name(&self) -> String {
        let extents = self.extents.replace(';', "_");
        format!("{}-{extents}-{}", self.output, self.dtype)
    }

    /// What was computed.
    ///
    /// # Errors
    /// What is wrong with the extents, the output or the type.
    pub fn problems(&self) -> Result<Vec<Problem>, String> {
        let dtype = DType::ALL
            .into_iter()
            .find(|dtype| dtype.name() == self.dtype);
        let dtype = dtype.ok_or_else(|| format!("no element type {}", self.dtype))?;
        let mut config = RolloutConfig::default();
        match self.output.as_str() {
            "rows" => {}
            "matrix" => config.output = Output::Matrix,
            "discard" => {
                config.discard = Some(Discard {
                    ratio: 0.9,
                    scope: DiscardScope::Map,
                });
            }
            "gradients" => config.gradients = Some(GradientRule::Heads),
            "scores" | "recomputed" => {}
            other => return Err(format!("no output {other}")),
        }
        let problem = |extents: &str| {
            let extents: Vec<usize> = extents.split('x').flat_map(str::parse).collect();
            let (extents, head_dim) = match extents[..] {
                [ref extents @ .., head_dim] if extents.len() == 4 => (extents, head_dim),
                _ => (&extents[..], 64),
            };
            let [layers, batch, heads, tokens] = *extents else {
                return Err(format!("four extents expected, got {:?}", self.extents));
            };
            let shape = Shape {
                layers,
                batch,
                heads,
                tokens,
            };
            let mut problem = Problem::builder(shape, dtype).config(config.clone());
            let lse = match self.output.as_str() {
                "scores" => Some(Lse::Given(LogBase::E)),
                "recomputed" => Some(Lse::Recomputed),
                _ => None,
            };
            if let Some(lse) = lse {
                problem = problem.queries_keys(QueriesKeys {
                    lse,
                    mass_tolerance: None,
                    ..QueriesKeys::new(&shape, head_dim)
                });
            }
            problem.build().map_err(|error| error.to_string())
        };
        self.extents.split(';').map(problem).collect()
    }
}

/// A row with its prediction.
pub struct Compared<'a> {
    /// What was measured.
    pub row: &'a Row,
    /// What is predicted.
    pub timeline: Timeline,
    /// Its launches.
    pub launches: Vec<Timing>,
}

impl Compared<'_> {
    /// Predicted over measured, as a graph.
    pub fn ratio(&self) -> f64 {
        self.timeline.graph_us / self.row.graph_us
    }

    /// What most of the time is bound by.
    pub fn bound_by(&self) -> Wait {
        let mut by: BTreeMap<Wait, f64> = BTreeMap::new();
        for launch in &self.launches {
            *by.entry(launch.bound_by).or_default() += launch.us;
        }
        let longest = by.into_iter().max_by(|a, b| a.1.total_cmp(&b.1));
        longest.map_or(Wait::Issue, |(wait, _)| wait)
    }
}

/// How well predictions of graphs agree with measurements. A factor is a ratio, or its reciprocal, whichever is above 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Agreement {
    /// Lines compared.
    pub lines: usize,
    /// Median factor.
    pub median: f64,
    /// Largest factor.
    pub worst: f64,
    /// Lines within 25 %.
    pub within_a_quarter: usize,
    /// Rank correlation (Spearman).
    pub rank: f64,
}

impl Agreement {
    /// The agreement of some rows.
    pub fn of(compared: &[Compared<'_>]) -> Agreement {
        let ratios: Vec<f64> = compared.iter().map(Compared::ratio).collect();
        let mut factors: Vec<f64> = ratios.iter().map(|ratio| ratio.max(1.0 / ratio)).collect();
        let measured: Vec<f64> = compared.iter().map(|line| line.row.graph_us).collect();
        let predicted: Vec<f64> = compared.iter().map(|line| line.timeline.graph_us).collect();
        Agreement {
            lines: compared.len(),
            worst: factors.iter().copied().fold(f64::NAN, f64::max),
            median: median(&mut factors),
            within_a_quarter: ratios
                .iter()
                .filter(|ratio| (0.75..=1.25).contains(*ratio))
                .count(),
            rank: spearman(&measured, &predicted),
        }
    }
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} lines: median factor {:.3}, worst {:.2}, {} within 25 %, rank correlation {:.3}",
            self.lines, self.median, self.worst, self.within_a_quarter, self.rank
        )
    }
}

fn spearman(a: &[f64], b: &[f64]) -> f64 {
    let ranks = |values: &[f64]| {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
        let mut ranks = vec![0.0; values.len()];
        for (rank, index) in order.into_iter().enumerate() {
            ranks[index] = rank as f64;
        }
        ranks
    };
    let n = a.len() as f64;
    let squares = ranks(a)
        .into_iter()
        .zip(ranks(b))
        .map(|(x, y)| (x - y) * (x - y));
    1.0 - 6.0 * squares.sum::<f64>() / (n * (n * n - 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_the_medians_of_the_crates_own_lines() {
        let csv = "# a comment\nsystem,output,shape,extents,dtype,threads,round,run,time_us,map_bytes\n\
                   attention-rollout,rows,ViT,12x8x12x197,f16,1,0,0,5,9\n\
                   torch row,rows,ViT,12x8x12x197,f16,1,0,0,1,9\n\
                   attention-rollout,rows,ViT,12x8x12x197,f16,1,0,1,7,9\n\
                   attention-rollout graph,rows,ViT,12x8x12x197,f16,1,0,0,4,9\n";
        let rows = rows(csv).unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].stream_us, rows[0].graph_us), (6.0, 4.0));
        assert_eq!(rows[0].name(), "rows-12x8x12x197-f16");
        assert_eq!(rows[0].problems().unwrap()[0].shape().tokens, 197);
        assert!(super::rows("head\nattention-rollout,rows").is_err());
    }

    #[test]
    fn ranks_correlate_where_orders_agree() {
        let up = [1.0, 2.0, 30.0, 31.0];
        assert_eq!(spearman(&up, &[5.0, 6.0, 7.0, 8.0]), 1.0);
        assert_eq!(spearman(&up, &[8.0, 7.0, 6.0, 5.0]), -1.0);
    }
}
