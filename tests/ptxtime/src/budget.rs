//! Budgets: what the shapes that matter may cost, in multiples of reading their maps once.

use crate::table::Row;
use crate::{Line, Machine, Taker, Timeline, Timing, Wait};
use std::error::Error;

/// Published DRAM bandwidth of the H200 in bytes per microsecond: nobody reads faster, whatever the model says.
const PUBLISHED_BYTES_PER_US: f64 = 4.8e6;
/// A launch whose blocks lie on less than this share of the multiprocessors is listed.
const FILLED: f64 = 0.5;

/// The shapes: output, extents, element type.
const SHAPES: [(&str, &str, &str); 31] = [
    ("rows", "12x64x12x197", "f16"),
    ("rows", "12x64x12x197", "f32"),
    ("matrix", "12x64x12x197", "f16"),
    ("rows", "12x8x12x197", "f16"),
    ("rows", "12x8x12x197", "f32"),
    ("matrix", "12x8x12x197", "f16"),
    ("rows", "12x1x12x197", "f16"),
    ("rows", "12x1x12x197", "f32"),
    ("matrix", "12x1x12x197", "f16"),
    ("rows", "12x2x12x512", "f16"),
    ("rows", "12x2x12x512", "f32"),
    ("matrix", "12x2x12x512", "f16"),
    ("rows", "24x1x16x577", "f16"),
    ("rows", "24x1x16x577", "f32"),
    ("matrix", "24x1x16x577", "f16"),
    ("rows", "12x16x3x197", "f32"),
    ("matrix", "12x16x3x197", "f32"),
    ("rows", "12x16x12x128", "f32"),
    ("matrix", "12x16x12x128", "f32"),
    ("rows", "6x4x12x28", "f32"),
    ("matrix", "6x4x12x28", "f32"),
    ("rows", CLINICAL, "f32"),
    ("matrix", CLINICAL, "f32"),
    ("discard", "12x8x12x197", "f32"),
    ("discard", "12x2x12x512", "f32"),
    ("discard", "24x1x16x577", "f32"),
    ("gradients", "12x64x12x197", "f16"),
    ("scores", "12x64x12x197", "f16"),
    ("scores", "12x8x12x197", "f16"),
    ("scores", "4x1x32x2048", "f16"),
    ("recomputed", "12x64x12x197", "f16"),
];
const CLINICAL: &str = "3x256x4x100;2x256x4x60;3x256x4x40;2x256x4x24;1x256x4x48;1x256x4x3";

/// The columns of a line of budgets.
pub const HEAD: &str = "output,extents,dtype,predicted_us,floor_us,ratio,launches,bound_by,\
                        l2_bytes_per_map_byte,load_waits_per_warp_and_layer,kilobytes_in_flight,\
                        least_us,most_us,never_measured";

/// What one shape is predicted to cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Budget {
    /// Output, extents and type: the first three columns.
    pub shape: String,
    /// Predicted for a CUDA graph, in microseconds.
    pub predicted_us: f64,
    /// The larger of what reading the maps is predicted to take and what the published bandwidth takes for them.
    pub floor_us: f64,
    /// The launches.
    pub launches: Vec<Timing>,
    /// Bytes of the maps, and layers, of all problems together.
    map_bytes: f64,
    layers: f64,
    /// The predicted time with half and twice the latencies of what was never measured; none where all of it was.
    pub range: Option<[f64; 2]>,
    /// The fastest other kernel that computes it, with its predicted time.
    pub best_other: Option<(String, f64)>,
}

impl Budget {
    /// Predicted time over floor.
    pub fn ratio(&self) -> f64 {
        self.predicted_us / self.floor_us
    }

    /// How many times faster the best other kernel is predicted to be; below 1 where it is slower.
    pub fn other_is_faster(&self) -> f64 {
        let other = self.best_other.as_ref();
        other.map_or(0.0, |(_, us)| self.predicted_us / us)
    }

    /// The launches that fill less than half of the device, with their share of the time.
    pub fn unfilled(&self) -> impl Iterator<Item = (&Timing, f64)> {
        let launches = self.launches.iter().filter(|launch| launch.filled < FILLED);
        launches.map(|launch| (launch, launch.us / self.predicted_us))
    }

    /// The line, as [`HEAD`] names its columns.
    pub fn line(&self) -> String {
        let launches = &self.launches;
        let longest = launches.iter().max_by(|a, b| a.us.total_cmp(&b.us));
        let l2_bytes: f64 = launches.iter().map(|launch| launch.bytes.l2).sum();
        let load_waits: f64 = launches
            .iter()
            .map(|launch| launch.waits.loads_per_warp)
            .sum();
        let [least, most] = self.range.unwrap_or([self.predicted_us; 2]);
        let mut unmeasured: Vec<String> = launches
            .iter()
            .flat_map(|launch| &launch.unmeasured)
            .map(ToString::to_string)
            .collect();
        unmeasured.dedup();
        format!(
            "{},{:.1},{:.1},{:.2},{},{},{:.2},{:.1},{:.0},{least:.1},{most:.1},{}",
            self.shape,
            self.predicted_us,
            self.floor_us,
            self.ratio(),
            launches.len(),
            longest.map_or(Wait::Issue, |launch| launch.bound_by),
            l2_bytes / self.map_bytes,
            load_waits / self.layers,
            longest.map_or(0.0, |launch| launch.bytes.in_flight / 1e3),
            unmeasured.join("; "),
        )
    }
}

/// Predicts all shapes on the H200.
///
/// # Errors
/// Those of taking traces.
pub fn budgets(taker: &Taker) -> Result<Vec<Budget>, Box<dyn Error>> {
    let machine = Machine::H200;
    SHAPES
        .iter()
        .map(|shape| budget(taker, &machine, *shape))
        .collect()
}

fn budget(
    taker: &Taker,
    machine: &Machine,
    (output, extents, dtype): (&str, &str, &str),
) -> Result<Budget, Box<dyn Error>> {
    let row = Row {
        output: output.to_owned(),
        workload: String::new(),
        extents: extents.to_owned(),
        dtype: dtype.to_owned(),
        graph_us: f64::NAN,
        stream_us: f64::NAN,
    };
    let problems = row.problems()?;
    let map_bytes = problems
        .iter()
        .map(|problem| problem.map_bytes())
        .sum::<usize>();
    let line = taker.take(&problems, None)?;
    let launches = line.predict(machine);
    let range = line.range(machine);
    let timeline = Timeline::of(&launches, machine);
    let floor = taker.take_floor(map_bytes)?.predict(machine);
    let read_us = floor
        .iter()
        .map(|launch| launch.us)
        .fold(f64::INFINITY, f64::min);
    let mut best_other: Option<(String, f64)> = None;
    if problems.len() == 1 {
        for variant in others(output, dtype, &line) {
            // A kernel that cannot compute the problem on this device is no candidate.
            let Ok(line) = taker.take(&problems, Some(&variant)) else {
                continue;
            };
            let us = line.timeline(machine).graph_us;
            if best_other.as_ref().is_none_or(|(_, best)| us < *best) {
                best_other = Some((variant, us));
            }
        }
    }
    Ok(Budget {
        shape: format!("{output},{extents},{dtype}"),
        predicted_us: timeline.graph_us,
        floor_us: (read_us + machine.graph_gap_us).max(map_bytes as f64 / PUBLISHED_BYTES_PER_US),
        launches,
        range,
        map_bytes: map_bytes as f64,
        layers: problems
            .iter()
            .map(|problem| problem.layers().len() as f64)
            .sum(),
        best_other,
    })
}

/// Kernels that compute the same and that `line` does not launch.
fn others(output: &str, dtype: &str, line: &Line) -> Vec<String> {
    let names = match output {
        "rows" => vec![
            format!("rollout_rows_{dtype}_f32_m1_mean"),
            "rollout_product_f32_f16x3_rows".to_owned(),
        ],
        "matrix" => [64, 128, 208]
            .map(|tokens| format!("matrix_stream_{dtype}_f16x3_n{tokens}_mean"))
            .into_iter()
            .chain(["rollout_product_f32_f16x3_matrix".to_owned()])
            .collect(),
        _ => Vec::new(),
    };
    let launched = |name: &String| line.launches.iter().any(|launch| launch.kernel == *name);
    names.into_iter().filter(|name| !launched(name)).collect()
}
