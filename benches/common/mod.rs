//! What the benchmarks measure: shapes people use, and what they ask of them.

use attention_rollout::{DType, Discard, DiscardScope, Output, RolloutConfig, Shape, StartRows};

/// A model's attention: its extents for one item of the batch.
pub struct Model {
    pub name: &'static str,
    pub layers: usize,
    pub heads: usize,
    pub tokens: usize,
}

impl Model {
    pub fn shape(&self, batch: usize) -> Shape {
        Shape {
            layers: self.layers,
            batch,
            heads: self.heads,
            tokens: self.tokens,
        }
    }
}

const fn model(name: &'static str, layers: usize, heads: usize, tokens: usize) -> Model {
    Model {
        name,
        layers,
        heads,
        tokens,
    }
}

pub const VIT_B16: Model = model("vit-b16", 12, 12, 197);
pub const DEIT_TI: Model = model("deit-ti", 12, 3, 197);
pub const BERT_128: Model = model("bert-128", 12, 12, 128);
pub const BERT_512: Model = model("bert-512", 12, 12, 512);
pub const VIT_L14: Model = model("vit-l14-336", 24, 16, 577);
/// A decoder at 2048 tokens, four of its layers and heads: enough to be bound as the whole is.
pub const CAUSAL_2K: Model = model("causal-2k", 4, 4, 2048);

/// Long sequences that are not causal, for queries and keys.
pub const SEQUENCE_2K: Model = model("sequence-2k", 6, 4, 2048);

/// Attention of a small clinical transformer: layers and tokens of each of its features, 4 heads, batch 256.
pub const CLINICAL: [(usize, usize); 6] = [(3, 100), (2, 60), (3, 40), (2, 24), (1, 48), (1, 3)];
pub const CLINICAL_HEADS: usize = 4;
pub const CLINICAL_BATCH: usize = 256;

/// What is asked for, by the name it has in the benchmark.
pub fn config(name: &str) -> RolloutConfig {
    let default = RolloutConfig::default();
    match name {
        "rows" => default,
        "normalized" => RolloutConfig {
            normalize_rows: true,
            ..default
        },
        "discard" => RolloutConfig {
            discard: Some(Discard {
                ratio: 0.9,
                scope: DiscardScope::Map,
            }),
            ..default
        },
        "last" => RolloutConfig {
            causal: true,
            output: Output::Rows(StartRows::Last),
            ..default
        },
        "causal-matrix" => RolloutConfig {
            causal: true,
            output: Output::Matrix,
            ..default
        },
        "matrix" => RolloutConfig {
            output: Output::Matrix,
            ..default
        },
        "cumulative" => RolloutConfig {
            output: Output::Cumulative,
            ..default
        },
        _ => unreachable!("no configuration is called {name}"),
    }
}

/// One benchmark over random maps of one model.
pub struct Spec {
    pub model: &'static Model,
    pub batch: usize,
    pub dtype: DType,
    pub config: &'static str,
}

impl Spec {
    /// The benchmark's name, in parts that a filter can select.
    pub fn name(&self) -> String {
        let Spec {
            model,
            batch,
            dtype,
            config,
        } = self;
        format!("{config}/{}/b{batch}/{dtype}", model.name)
    }
}

const ALL: [&str; 5] = ["rows", "normalized", "matrix", "cumulative", "discard"];

/// Collects benchmarks.
#[derive(Default)]
struct Specs(Vec<Spec>);

impl Specs {
    fn add(&mut self, model: &'static Model, batch: usize, dtype: DType, configs: &[&'static str]) {
        self.0.extend(configs.iter().map(|&config| Spec {
            model,
            batch,
            dtype,
            config,
        }));
    }
}

/// Every benchmark over one model on the CPU.
pub fn cpu_specs() -> Vec<Spec> {
    let mut specs = Specs::default();
    let mut add =
        |model, batch, dtype, configs: &[&'static str]| specs.add(model, batch, dtype, configs);
    for batch in [1, 2, 8, 32] {
        add(&VIT_B16, batch, DType::F32, &["rows", "matrix"]);
    }
    add(&VIT_B16, 8, DType::F32, &ALL[1..2]);
    add(&VIT_B16, 8, DType::F32, &ALL[3..]);
    for dtype in [DType::F16, DType::Bf16] {
        add(&VIT_B16, 8, dtype, &["rows", "matrix", "discard"]);
        add(&BERT_512, 2, dtype, &["rows", "matrix"]);
    }
    add(&DEIT_TI, 16, DType::F32, &["rows", "matrix"]);
    add(&BERT_128, 16, DType::F32, &["rows", "matrix"]);
    add(&BERT_512, 2, DType::F32, &["rows", "matrix", "discard"]);
    add(&VIT_L14, 1, DType::F32, &["rows", "matrix"]);
    add(&CAUSAL_2K, 1, DType::F32, &["last", "causal-matrix"]);
    specs.0
}

/// Every benchmark over one model on a GPU: what the CPU is measured with, and batches that fill the device.
#[cfg(feature = "cuda")]
pub fn gpu_specs() -> Vec<Spec> {
    let mut specs = Specs(cpu_specs());
    let mut add =
        |model, batch, dtype, configs: &[&'static str]| specs.add(model, batch, dtype, configs);
    for batch in [1, 2, 4, 16, 32] {
        add(&VIT_B16, batch, DType::F16, &["rows", "matrix"]);
    }
    for dtype in [DType::F32, DType::F16, DType::Bf16] {
        add(&VIT_B16, 64, dtype, &ALL);
    }
    for model in [&DEIT_TI, &BERT_128, &BERT_512] {
        for batch in [1, 8, 64] {
            add(model, batch, DType::F16, &["rows", "matrix"]);
        }
    }
    for batch in [1, 4, 16] {
        add(&VIT_L14, batch, DType::F16, &["rows", "matrix"]);
    }
    add(&CAUSAL_2K, 8, DType::F16, &["last", "causal-matrix"]);
    specs.0
}
