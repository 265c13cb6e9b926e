//! The kernel suite: every entry computes whole rollouts with one family of kernels and compares them with the f64
//! reference. An entry takes any [`Lab`], so that kernels with seeded faults can be put through it too.

use attention_rollout::cuda::variant::{Arithmetic, Form, Variant};
use attention_rollout::{
    DType, Discard, DiscardScope, HeadFusion, Output, Problem, Residual, ResidualWeights,
    RolloutConfig, Shape, StartRows, Strides, Window, reference,
};

use ptxemu::Report;

use crate::group;
use crate::lab::Lab;
use crate::maps;
use crate::pipeline::Device;

/// How a rollout is computed.
#[derive(Clone, Copy, Debug)]
pub enum Path {
    /// `rollout_rows` with that many splits.
    Rows(u32),
    /// `rollout_chain`.
    Chain(Arithmetic),
    /// `head_fusion` and `rollout_product`.
    Product(Arithmetic, Form),
}

impl Path {
    /// Error allowed of an entry: an absolute part, and one relative to the entry itself.
    ///
    /// f32 and the split arithmetics keep 22 bits or more of every operand, and sums are f32: 1e-6 on row-stochastic
    /// input. f16x2 rounds one operand of each term to 2^-11 of its value, and no term is negative, so each product
    /// moves an entry by at most 2^-11 of itself, once per layer.
    pub fn tolerance(self, layers: usize) -> Tolerance {
        let half = matches!(
            self,
            Path::Chain(Arithmetic::F16x2) | Path::Product(Arithmetic::F16x2, _)
        );
        Tolerance {
            absolute: 1e-6,
            relative: if half { layers as f64 / 2048.0 } else { 0.0 },
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
        let fail = |what: String| {
            let case: String = format!("{self:?}").chars().take(600).collect();
            format!("{path:?} of {case}: {what}")
        };
        let problem = self.problem();
        let layers = maps::layers(&problem, 7, self.levels);
        let hosts: Vec<_> = layers.iter().map(|layer| layer.host()).collect();
        let expected = reference::rollout(&problem, &hosts).map_err(|e| fail(e.to_string()))?;
        let device = Device::new(lab, &problem, &layers, self.offset);
        let got = device.run(path).map_err(fail)?;
        compare(&got, &expected, path.tolerance(problem.layers().len())).map_err(fail)?;
        for (variant, report) in device.reports.borrow().iter() {
            watch(variant, report);
        }
        // Repeating is for what the order of additions could change, which no size changes.
        if problem.shape().tokens > 40 {
            return Ok(());
        }
        let again = Device::new(lab, &problem, &layers, self.offset);
        let again = again.run(path).map_err(fail)?;
        if bits(&again) == bits(&got) {
            Ok(())
        } else {
            Err(fail("a second run gave other bits".to_owned()))
        }
    }
}

/// To compare exactly, NaN included.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Fails where an element is further from `expected` than `tolerance`; says where it is worst.
pub fn compare(got: &[f32], expected: &[f64], tolerance: Tolerance) -> Result<(), String> {
    let scale = expected.iter().fold(1f64, |scale, v| scale.max(v.abs()));
    let mut worst: Option<(usize, f64)> = None;
    for (i, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(got) - expected).abs();
        let allowed = tolerance.absolute * scale + tolerance.relative * expected.abs();
        let within = error <= allowed;
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

/// Named entries of the suite, each with the kernels (by stem) it exercises.
pub struct Entry {
    pub name: &'static str,
    pub kernels: &'static [&'static str],
    /// Short ones are run with every NVRTC there is, the others with the first.
    pub short: bool,
    pub run: fn(&Lab) -> Result<(), String>,
}

/// Head weights that are neither equal nor a probability.
fn head_weights(heads: usize) -> HeadFusion {
    HeadFusion::Weighted((0..heads).map(|h| 0.7 / (h + 1) as f32).collect())
}

fn fusions(heads: usize) -> [HeadFusion; 4] {
    [
        HeadFusion::Mean,
        HeadFusion::Max,
        HeadFusion::Min,
        head_weights(heads),
    ]
}

/// Windows for a batch of three items of `tokens` (at least 5): right padding, left padding, one token.
fn three_windows(tokens: usize) -> [(usize, usize); 3] {
    [(0, tokens - 2), (3, tokens - 3), (2, 1)]
}

fn discard(ratio: f64, scope: DiscardScope) -> Option<Discard> {
    Some(Discard { ratio, scope })
}

/// Residual weights that differ from layer to layer and leave each row of `Ahat` with a sum of 1.
fn per_layer(layers: usize) -> ResidualWeights {
    let weight = |l: usize| 0.3 + 0.4 * l as f32 / layers as f32;
    ResidualWeights::PerLayer(
        (0..layers)
            .map(|l| Residual::new(weight(l), 1.0 - weight(l)))
            .collect(),
    )
}

fn weights(rows: usize, tokens: usize) -> StartRows {
    let weight = |i: usize| {
        if i % 3 == 1 {
            0.0
        } else {
            (i % 7) as f32 / (4 * tokens) as f32
        }
    };
    StartRows::Weights {
        rows,
        weights: (0..rows * tokens).map(weight).collect(),
    }
}

/// The features every path has, for `path`, at `tokens` (at least 8) with M start rows where the path takes them.
fn features(
    lab: &Lab,
    path: Path,
    tokens: usize,
    base: impl Fn(Case) -> Case,
) -> Result<(), String> {
    let shape = [2, 3, 3, tokens];
    for dtype in DType::ALL {
        for fusion in fusions(3) {
            base(Case::new([2, 1, 3, tokens]).dtype(dtype))
                .config(|c| c.head_fusion = fusion)
                .check(lab, path)?;
        }
    }
    let windows = three_windows(tokens);
    for normalize in [false, true] {
        let case = |shape| base(Case::new(shape)).config(|c| c.normalize_rows = normalize);
        case(shape).windows(&windows).check(lab, path)?;
        case(shape)
            .config(|c| c.causal = true)
            .windows(&windows)
            .at(Lay::Interleaved, 6)
            .check(lab, path)?;
        for scope in [
            DiscardScope::Map,
            DiscardScope::Patches { special_tokens: 2 },
        ] {
            case(shape)
                .config(|c| c.discard = discard(0.8, scope))
                .levels(64)
                .windows(&windows)
                .check(lab, path)?;
        }
        case([2, 1, 2, tokens])
            .config(|c| {
                c.causal = true;
                c.discard = discard(0.6, DiscardScope::Map);
            })
            .check(lab, path)?;
    }
    // Most rows are 0, and so are their sums.
    base(Case::new([2, 1, 2, tokens]))
        .config(|c| {
            c.normalize_rows = true;
            c.residual = ResidualWeights::Uniform(Residual::new(1.0, 0.0));
        })
        .levels(2)
        .check(lab, path)?;
    base(Case::new([3, 2, 2, tokens]))
        .config(|c| c.residual = per_layer(3))
        .at(Lay::Contiguous, 2)
        .check(lab, path)
}

pub const ENTRIES: &[Entry] = &[
    group::MANY,
    group::ROWS,
    group::CHAIN,
    group::PRODUCT,
    Entry {
        name: "rows_sizes",
        kernels: &["rollout_rows"],
        short: false,
        run: |lab| {
            for tokens in [1, 2, 3, 5, 7, 8, 13, 17, 31, 33, 40, 64, 65] {
                Case::new([3, 2, 3, tokens]).check(lab, Path::Rows(1))?;
            }
            for (tokens, dtype) in [
                (127, DType::F32),
                (128, DType::Bf16),
                (129, DType::F32),
                (197, DType::F16),
            ] {
                Case::new([2, 1, 2, tokens])
                    .dtype(dtype)
                    .check(lab, Path::Rows(1))?;
            }
            Case::new([2, 1, 1, 331]).check(lab, Path::Rows(1))?;
            Case::new([24, 1, 5, 9]).check(lab, Path::Rows(1))
        },
    },
    Entry {
        name: "rows_features",
        kernels: &["rollout_rows", "head_fusion", "discard"],
        short: false,
        run: |lab| {
            features(lab, Path::Rows(1), 33, |case| case.start(StartRows::Mean))?;
            features(lab, Path::Rows(3), 19, |case| case.start(StartRows::Last))
        },
    },
    Entry {
        name: "rows_start_rows",
        kernels: &["rollout_rows"],
        short: true,
        run: |lab| {
            for rows in 1..=8 {
                Case::new([2, 2, 3, 21])
                    .start(weights(rows, 21))
                    .check(lab, Path::Rows(if rows % 2 == 0 { 1 } else { 2 }))?;
            }
            Case::new([3, 2, 2, 150])
                .dtype(DType::F32)
                .start(weights(5, 150))
                .config(|c| c.normalize_rows = true)
                .check(lab, Path::Rows(2))?;
            Case::new([3, 3, 2, 20])
                .start(StartRows::PerItem(vec![0, 7, 19]))
                .check(lab, Path::Rows(1))
        },
    },
    Entry {
        name: "rows_many_layers",
        kernels: &["rollout_rows"],
        short: false,
        run: |lab| {
            Case::new([66, 1, 1, 5]).check(lab, Path::Rows(1))?;
            // More columns than the warps of a block: two tiles, so one layer per launch.
            Case::new([2, 1, 1, 1000])
                .dtype(DType::F32)
                .check(lab, Path::Rows(2))
        },
    },
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
        // More than 31 granules of 4 entries: two warps share a row.
        name: "fused_rows_of_two_warps",
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
    Entry {
        name: "chain_sizes",
        kernels: &["rollout_chain"],
        short: false,
        run: |lab| {
            for tokens in [1, 2, 3, 5, 7, 8, 13, 17, 31, 33, 40, 63, 64] {
                Case::new([3, 2, 3, tokens])
                    .matrix()
                    .check(lab, Path::Chain(Arithmetic::F16x3))?;
            }
            for (tokens, dtype) in [
                (65, DType::F32),
                (97, DType::F16),
                (127, DType::Bf16),
                (128, DType::F16),
            ] {
                Case::new([2, 1, 2, tokens])
                    .dtype(dtype)
                    .matrix()
                    .check(lab, Path::Chain(Arithmetic::F16x3))?;
            }
            Ok(())
        },
    },
    Entry {
        name: "chain_features",
        kernels: &["rollout_chain"],
        short: false,
        run: |lab| {
            features(lab, Path::Chain(Arithmetic::F16x3), 35, Case::matrix)?;
            Case::new([24, 1, 5, 9])
                .matrix()
                .check(lab, Path::Chain(Arithmetic::F16x3))?;
            Case::new([66, 1, 1, 5])
                .matrix()
                .check(lab, Path::Chain(Arithmetic::F16x3))
        },
    },
    Entry {
        // Windows of at most 128 tokens leave half of the warps without maps to read.
        name: "chain_cluster_sizes",
        kernels: &["rollout_chain"],
        short: false,
        run: |lab| {
            for (tokens, dtype) in [
                (129, DType::F32),
                (144, DType::Bf16),
                (197, DType::F16),
                (255, DType::F16),
                (256, DType::F32),
            ] {
                Case::new([2, 1, 2, tokens])
                    .dtype(dtype)
                    .matrix()
                    .check(lab, Path::Chain(Arithmetic::F16x3))?;
            }
            Case::new([2, 4, 2, 150])
                .matrix()
                .windows(&[(0, 150), (22, 128), (3, 1), (0, 0)])
                .check(lab, Path::Chain(Arithmetic::F16x3))?;
            Case::new([66, 1, 1, 129])
                .matrix()
                .check(lab, Path::Chain(Arithmetic::F16x3))
        },
    },
    Entry {
        name: "chain_cluster_features",
        kernels: &["rollout_chain"],
        short: false,
        run: |lab| features(lab, Path::Chain(Arithmetic::F16x3), 135, Case::matrix),
    },
    Entry {
        name: "chain_cluster_arithmetics",
        kernels: &["rollout_chain"],
        short: true,
        run: |lab| {
            for (arithmetic, dtype) in [
                (Arithmetic::F16x2, DType::F16),
                (Arithmetic::Tf32x3, DType::F32),
                (Arithmetic::Tf32x3, DType::F16),
            ] {
                Case::new([2, 1, 2, 133])
                    .dtype(dtype)
                    .matrix()
                    .config(|c| c.normalize_rows = arithmetic == Arithmetic::Tf32x3)
                    .check(lab, Path::Chain(arithmetic))?;
            }
            Ok(())
        },
    },
    Entry {
        name: "chain_arithmetics",
        kernels: &["rollout_chain"],
        short: true,
        run: |lab| {
            for arithmetic in [Arithmetic::F16x2, Arithmetic::Tf32x3] {
                for (tokens, dtype) in [(19, DType::F32), (64, DType::F16), (101, DType::F16)] {
                    Case::new([3, 1, 2, tokens])
                        .dtype(dtype)
                        .matrix()
                        .config(|c| c.normalize_rows = tokens == 101)
                        .check(lab, Path::Chain(arithmetic))?;
                }
            }
            Case::new([4, 1, 2, 23])
                .matrix()
                .config(|c| c.residual = ResidualWeights::Uniform(Residual::new(1.0, 1.0)))
                .check(lab, Path::Chain(Arithmetic::Tf32x3))
        },
    },
    Entry {
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
