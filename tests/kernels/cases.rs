//! One rollout to try: its problem, its maps, the kernels that compute it, and the error they may make.

use attention_rollout::cuda::DeviceLimits;
use attention_rollout::cuda::kernel::{
    Arithmetic, Exchange, Form, Kernel, ScoreSplits, Sets, SplitProduct,
};
use attention_rollout::cuda::variant::Variant;
use attention_rollout::{
    DType, Output, Problem, RolloutConfig, Shape, StartRows, Strides, Window, reference,
};

use ptxemu::Report;

use crate::device::Device;
use crate::lab::Lab;
use crate::maps::{self, Layer};

/// How a rollout is computed.
#[derive(Clone, Copy, Debug)]
pub enum Path {
    /// `rollout_rows` with that many splits, where more than one take a launch per layer.
    Rows(u32),
    /// `rollout_rows` with the rows of an item divided among a cluster of that many blocks.
    RowsCluster(u32),
    /// `matrix_stream`.
    RingMatrix(MatrixWay),
    /// `head_fusion` and `rollout_product`.
    Product(Arithmetic, Form),
    /// `rows_stream`.
    Stream(StreamWay),
    /// `score_rows`.
    ScoreRows(ScoreSplits),
    /// `score_stream`.
    ScoreStream { sets: u32, head_splits: u32 },
    /// `score_short`, with that many blocks to a head.
    ScoreShort(u32),
    /// `head_fusion` that splits and `split_product`, on a device with that much L2: parts are as large as stay in it.
    Tree {
        kernel: SplitProduct,
        l2_bytes: usize,
    },
}

/// How `rows_stream` is launched.
#[derive(Clone, Copy, Debug)]
pub struct StreamWay {
    /// Of the device, if it is newer than the kernel needs.
    pub arch: u32,
    /// As far as there are items for them.
    pub sets: Sets,
    /// What there is of it: little makes short rings, and panels of long rows.
    pub shared_bytes: usize,
    /// Columns of a lane, if not as few as do.
    pub columns: Option<u32>,
    /// As a member of a group, so many blocks of which share a multiprocessor.
    pub sharing: Option<u32>,
}

impl StreamWay {
    /// One block to an item, and two of them, on sm_90.
    pub const ONE: StreamWay = StreamWay {
        arch: 90,
        sets: Sets {
            sets: 2,
            blocks: 1,
            exchange: Exchange::Cluster,
        },
        shared_bytes: 28 << 10,
        columns: None,
        sharing: None,
    };

    /// So many blocks to an item.
    pub fn blocks(self, blocks: u32, exchange: Exchange) -> Self {
        StreamWay {
            sets: Sets {
                blocks,
                exchange,
                ..self.sets
            },
            ..self
        }
    }
}

/// How `matrix_stream` is launched.
#[derive(Clone, Copy, Debug)]
pub struct MatrixWay {
    /// How products are computed.
    pub arithmetic: Arithmetic,
    /// Of the device, if it is newer than the kernel needs.
    pub arch: u32,
    /// The tokens that the kernel takes, if not as few as do.
    pub tokens: Option<u32>,
    /// As a member of a group.
    pub grouped: bool,
}

impl MatrixWay {
    /// By bulk copies.
    pub const fn of(arithmetic: Arithmetic) -> Self {
        MatrixWay {
            arithmetic,
            arch: 90,
            tokens: None,
            grouped: false,
        }
    }
}

/// The matrix by `matrix_stream`.
pub const fn ring_matrix(arithmetic: Arithmetic) -> Path {
    Path::RingMatrix(MatrixWay::of(arithmetic))
}

impl Path {
    /// The device's architecture, if it is to be newer than the kernels need.
    pub fn arch(self) -> u32 {
        match self {
            Path::Stream(way) => way.arch,
            Path::RingMatrix(way) => way.arch,
            Path::Tree { kernel, .. } => kernel.variant().arch,
            _ => 0,
        }
    }

    /// The L2 of the device.
    pub fn l2_bytes(self) -> usize {
        match self {
            Path::Tree { l2_bytes, .. } => l2_bytes,
            _ => DeviceLimits::H200.l2_bytes,
        }
    }

    /// Whether rows of `Ahat` may be normalised.
    pub fn normalizes(self) -> bool {
        !matches!(self, Path::Tree { .. })
    }

    /// Error allowed of an entry: an absolute part, and one relative to the entry itself.
    ///
    /// f32 and the split arithmetics keep 22 bits or more of every operand, and sums are f32: 1e-6 on row-stochastic
    /// input. f16x2 rounds one operand of each term to 2^-11 of its value, and no term is negative, so each product
    /// moves an entry by at most 2^-11 of itself, once per layer; roundings cancel, and on none of these inputs is more
    /// than 2e-4 left.
    pub fn tolerance(self, layers: usize) -> Tolerance {
        let half = matches!(
            self,
            Path::RingMatrix(MatrixWay {
                arithmetic: Arithmetic::F16x2,
                ..
            }) | Path::Product(Arithmetic::F16x2, _)
        );
        Tolerance {
            absolute: 1e-6,
            relative: if half { layers as f64 / 2048.0 } else { 0.0 },
            most: 2e-4,
        }
    }
}

/// Error allowed of an entry.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// Times the largest magnitude of the output, if that is above 1.
    pub absolute: f64,
    /// Times the entry.
    pub relative: f64,
    /// The most that both may come to, times the same magnitude.
    pub most: f64,
}

/// How a layer lies in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lay {
    /// `[batch, heads, tokens, tokens]`.
    Contiguous,
    /// `[batch, tokens, heads, tokens + 3]`: heads within rows, rows with a gap.
    Interleaved,
}

/// One rollout to try.
#[derive(Clone, Debug)]
pub struct Case {
    pub dtype: DType,
    /// layers, batch, heads, tokens
    pub shape: [usize; 4],
    pub config: RolloutConfig,
    pub lay: Lay,
    /// Bytes between a multiple of 256 and the layer's first element.
    pub offset: usize,
    pub windows: Option<Vec<Window>>,
    /// Values are rounded to multiples of 1 / levels; 0: not.
    pub levels: u32,
    /// Entries that are something else.
    pub entries: Vec<Entry>,
    /// What launches are laid out for.
    pub multiprocessors: u32,
}

/// One entry of the maps; row and column count from the window's start.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// layer, item, head, row, column
    pub at: [usize; 5],
    pub value: f32,
}

impl Case {
    /// f16 maps, contiguous, one start row.
    pub fn new(shape: [usize; 4]) -> Self {
        Case {
            dtype: DType::F16,
            shape,
            config: RolloutConfig::default(),
            lay: Lay::Contiguous,
            offset: 0,
            windows: None,
            levels: 0,
            entries: Vec::new(),
            multiprocessors: 1,
        }
    }

    pub fn dtype(mut self, dtype: DType) -> Self {
        self.dtype = dtype;
        self
    }

    pub fn matrix(mut self) -> Self {
        self.config.output = Output::Matrix;
        self
    }

    pub fn start(mut self, rows: StartRows) -> Self {
        self.config.output = Output::Rows(rows);
        self
    }

    pub fn config(mut self, change: impl FnOnce(&mut RolloutConfig)) -> Self {
        change(&mut self.config);
        self
    }

    pub fn at(mut self, lay: Lay, offset: usize) -> Self {
        (self.lay, self.offset) = (lay, offset);
        self
    }

    pub fn windows(mut self, windows: &[(usize, usize)]) -> Self {
        let windows = windows.iter().map(|&(start, len)| Window { start, len });
        self.windows = Some(windows.collect());
        self
    }

    pub fn levels(mut self, levels: u32) -> Self {
        self.levels = levels;
        self
    }

    /// Lays launches out for so many multiprocessors.
    pub fn multiprocessors(mut self, multiprocessors: u32) -> Self {
        self.multiprocessors = multiprocessors;
        self
    }

    /// Puts `value` at (layer, item, head, row, column).
    pub fn entry(mut self, at: [usize; 5], value: f32) -> Self {
        self.entries.push(Entry { at, value });
        self
    }

    /// The problem that this case describes.
    pub fn problem(&self) -> Problem {
        let [layers, batch, heads, tokens] = self.shape;
        let shape = Shape {
            layers,
            batch,
            heads,
            tokens,
        };
        let mut builder = Problem::builder(shape, self.dtype).config(self.config.clone());
        if self.lay == Lay::Interleaved {
            let head = tokens + 3;
            builder = builder.strides(Strides {
                batch: tokens * heads * head,
                head,
                row: heads * head,
            });
        }
        if let Some(windows) = &self.windows {
            builder = builder.windows(windows.clone());
        }
        builder.build().unwrap()
    }

    /// Computes it, compares it with the reference, and does it again to see the same bits.
    pub fn check(&self, lab: &Lab, path: Path) -> Result<(), String> {
        self.run(lab, path, |_, _| {})
    }

    /// As [`check`](Self::check); tells `watch` of every launch of the first time.
    pub fn run(
        &self,
        lab: &Lab,
        path: Path,
        mut watch: impl FnMut(&Variant, &Report),
    ) -> Result<(), String> {
        let problem = self.problem();
        let layers = maps::layers(&problem, 7, self.levels, &self.entries);
        let expected = self.reference(&problem, &layers);
        let mut device = Device::new(lab, &problem, &maps::hosts(&layers), self.offset);
        device.multiprocessors = self.multiprocessors;
        let fail = |what| self.failure(path, what);
        let got = device.run(path).map_err(fail)?;
        compare(&got, &expected, path.tolerance(problem.layers().len())).map_err(fail)?;
        for (variant, report) in device.reports.borrow().iter() {
            watch(variant, report);
        }
        // Repeating is for what the order of additions could change, which no size changes.
        if problem.shape().tokens > 40 {
            return Ok(());
        }
        let mut again = Device::new(lab, &problem, &maps::hosts(&layers), self.offset);
        again.machine.seed = 11;
        let again = again.run(path).map_err(fail)?;
        if bits(&again) == bits(&got) {
            Ok(())
        } else {
            Err(fail("a second run gave other bits".to_owned()))
        }
    }

    /// Computes it, and checks which outputs are not finite: all that depend on an entry that is not (`least`), and at
    /// most those that multiply one with 0. An infinity may come out as NaN, because `x = hi + lo` makes one of it.
    pub fn check_not_finite(&self, lab: &Lab, path: Path) -> Result<(), String> {
        let problem = self.problem();
        let layers = maps::layers(&problem, 7, self.levels, &self.entries);
        let mut ahats: Vec<Vec<f64>> = problem
            .layers()
            .map(|layer| {
                let mut one = self.clone().matrix();
                one.config.layers = Some(layer..layer + 1);
                one.reference(&one.problem(), &layers)
            })
            .collect();
        let fail = |what| self.failure(path, what);
        let device = Device::new(lab, &problem, &maps::hosts(&layers), self.offset);
        let got = device.run(path).map_err(fail)?;
        let most = row_form(&problem, &ahats, |x, y| x * y);
        if self.config.causal {
            // Right of the diagonal there is nothing, also in a row whose sum is NaN.
            let tokens = problem.shape().tokens;
            for ahat in &mut ahats {
                for (row, entries) in ahat.chunks_exact_mut(tokens).enumerate() {
                    entries[row % tokens + 1..].fill(0.0);
                }
            }
        }
        let times = |x, y| if x == 0.0 || y == 0.0 { 0.0 } else { x * y };
        let least = row_form(&problem, &ahats, times);
        let Tolerance {
            absolute, relative, ..
        } = path.tolerance(ahats.len());
        for (i, &got) in got.iter().enumerate() {
            let (got, least, most) = (f64::from(got), least[i], most[i]);
            let right = if got.is_finite() {
                (got - least).abs() <= absolute + relative * least.abs()
            } else {
                !most.is_finite() && (got.is_nan() || least.is_finite() || got == least)
            };
            if !right {
                let what = format!("element {i}: expected {least} or {most}, got {got}");
                return Err(fail(what));
            }
        }
        Ok(())
    }

    /// What the problem's output is in f64.
    pub fn reference(&self, problem: &Problem, layers: &[Layer]) -> Vec<f64> {
        reference::rollout(problem, &maps::hosts(layers))
            .unwrap_or_else(|error| panic!("{self:?}: {error}"))
    }

    fn failure(&self, path: Path, what: String) -> String {
        let case: String = format!("{self:?}").chars().take(600).collect();
        format!("{path:?} of {case}: {what}")
    }
}

/// The output of `problem` from its `Ahat`, each `[batch, tokens, tokens]`: start rows, or the identity, times layer by
/// layer from the last.
fn row_form(problem: &Problem, ahats: &[Vec<f64>], times: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    let tokens = problem.shape().tokens;
    let rows = match problem.start_rows() {
        0 => tokens,
        rows => rows,
    };
    let mut out = Vec::new();
    for (item, window) in problem.windows().iter().enumerate() {
        for row in 0..rows {
            let mut state = vec![0.0; tokens];
            if problem.start_rows() > 0 {
                let mut weights = vec![0.0; window.len];
                problem.start_weights(item, row, &mut weights);
                for (state, weight) in state[window.start..].iter_mut().zip(weights) {
                    *state = f64::from(weight);
                }
            } else if (window.start..window.start + window.len).contains(&row) {
                state[row] = 1.0;
            }
            for ahat in ahats.iter().rev() {
                let map = &ahat[item * tokens * tokens..][..tokens * tokens];
                let entry = |j: usize| {
                    (0..tokens)
                        .map(|k| times(state[k], map[k * tokens + j]))
                        .sum()
                };
                state = (0..tokens).map(entry).collect();
            }
            out.extend(state);
        }
    }
    out
}

/// To compare exactly, NaN included.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Fails where an element is further from `expected` than `tolerance`, or is not finite in the same way; says where it is
/// worst.
pub fn compare(got: &[f32], expected: &[f64], tolerance: Tolerance) -> Result<(), String> {
    let finite = expected.iter().filter(|v| v.is_finite());
    let scale = finite.fold(1f64, |scale, v| scale.max(v.abs()));
    let mut worst: Option<(usize, f64)> = None;
    for (i, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let got = f64::from(got);
        let same = got == expected || (got.is_nan() && expected.is_nan());
        let error = if same { 0.0 } else { (got - expected).abs() };
        let allowed = tolerance.absolute * scale + tolerance.relative * expected.abs();
        let allowed = allowed.min(tolerance.most * scale);
        let within = same || (expected.is_finite() && error <= allowed);
        let worse = worst.is_none_or(|(_, w)| error.is_nan() || error > w);
        if !within && worse {
            worst = Some((i, error));
        }
    }
    match worst {
        None => Ok(()),
        Some((i, error)) => Err(format!(
            "element {i}: expected {}, got {}, error {error:.2e}, allowed {tolerance:?}",
            expected[i], got[i]
        )),
    }
}
