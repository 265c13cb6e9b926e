//! Bytes as a command line, an argument a line: `run` computes what the reference does on a small file, or refuses it
//! with a message of one line and status 2.

use std::ffi::OsString;
use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStringExt;
use std::sync::OnceLock;

use attention_rollout::cpu::{self, Plan};
use clap::Parser;
use half::f16;
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};

use super::{change, compare};
use crate::common::generate::{Random, convert, softmax_row};
use crate::error::Result;
use crate::job::{Job, jobs};
use crate::options::OutputKind;
use crate::run::RunArgs;
use crate::sink::Outputs;
use crate::tensors::InputFile;
use crate::{Cli, Command};

/// Parses and runs a command line, but for its files and its device.
pub fn check(bytes: &[u8]) {
    let lines = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let args = lines.split(|&byte| byte == b'\n').map(<[u8]>::to_vec);
    let args = args.map(OsString::from_vec);
    let cli = match Cli::try_parse_from(
        [OsString::from("attention-rollout")]
            .into_iter()
            .chain(args),
    ) {
        Ok(cli) => cli,
        Err(error) => {
            assert!(matches!(error.exit_code(), 0 | 2));
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let Command::Run(args) = cli.command else {
        return;
    };
    if let Err(error) = run(&args) {
        let text = error.to_string();
        assert_eq!(error.exit_status(), 2, "{text}");
        assert!(!text.chars().any(char::is_control), "{text:?}");
        assert!(text.len() < 16_384, "{text}");
    }
}

/// Weights for which f32 neither overflows nor cancels in the layers of the file.
const WEIGHTS: std::ops::RangeInclusive<f32> = 1e-3..=1e3;

/// Pixels that pictures are made with.
const MOST_PIXELS: usize = 1 << 12;

fn run(args: &RunArgs) -> Result<()> {
    args.check()?;
    let tensors = input().tensors()?;
    let jobs = jobs(&tensors, &args.select, &args.config, args.output_kind)?;
    for job in &jobs {
        args.relevance.check(job, args.config.special_tokens())?;
        Outputs::new(&args.relevance, args.expand, &tensors, job)?;
        let out = compute(args, job);
        if args.output_kind == OutputKind::Rows {
            finish(args, job, &out)?;
        }
    }
    Ok(())
}

fn compute(args: &RunArgs, job: &Job<'_>) -> Vec<f32> {
    let problem = &job.problem;
    let maps = job.feature.layers(0..problem.shape().batch);
    let maps = maps.expect("the file is small");
    let layers: Vec<_> = maps.iter().map(|maps| maps.host_layer()).collect();
    let options = cpu::Options {
        threads: NonZeroUsize::new(1),
        ..cpu::Options::default()
    };
    let mut out = vec![f32::NAN; problem.output_len()];
    let mut plan = Plan::new(problem, &options).expect("the file is small");
    plan.run(&layers, &mut out).expect("the layers fit");
    let weights = [&args.config.attention_weight, &args.config.identity_weight];
    if weights
        .into_iter()
        .flatten()
        .all(|weight| WEIGHTS.contains(weight))
    {
        compare("run", problem, &layers, &out);
    }
    out
}

/// What comes after the rollout.
fn finish(args: &RunArgs, job: &Job<'_>, out: &[f32]) -> Result<()> {
    let shape = job.problem.shape();
    let (relevance, items) = (&args.relevance, 0..shape.batch);
    let left = relevance.apply(&job.problem, &items, out);
    let left = left.expect("what can be wrong was checked");
    let extents = relevance.shape(&job.problem);
    assert_eq!(left.len(), extents.iter().product::<usize>());
    let is_small = |to: crate::extents::Extents| to.height * to.width <= MOST_PIXELS;
    if relevance.upsample.is_some_and(is_small) {
        for (item, rows) in left.chunks_exact(left.len() / shape.batch).enumerate() {
            relevance.pictures(&job.problem, item, rows, args.config.special_tokens())?;
        }
    }
    Ok(())
}

/// A file with two features: one with all that stands beside layers, and one of a single fused map.
fn input() -> &'static InputFile {
    static INPUT: OnceLock<InputFile> = OnceLock::new();
    INPUT.get_or_init(|| {
        let mut random = Random::new(1);
        let mut rows = |rows: usize, len: usize| {
            let mut maps = vec![0.0; rows * len];
            maps.chunks_exact_mut(len)
                .for_each(|row| softmax_row(&mut random, row));
            maps
        };
        let bytes = |values: &[f32]| bytemuck::cast_slice(values).to_vec();
        let maps = vec![2, 2, 5, 5];
        let mut tensors: Vec<(&str, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
        for name in ["layer.0", "layer.1", "gradient.0", "gradient.1"] {
            tensors.push((name, Dtype::F32, maps.clone(), bytes(&rows(20, 5))));
        }
        let mask = vec![1, 1, 1, 1, 1, 0, 1, 1, 0, 0];
        tensors.push(("attention_mask", Dtype::U8, vec![2, 5], mask.clone()));
        tensors.push(("value", Dtype::U8, vec![2, 5], mask));
        tensors.push(("rows", Dtype::U8, vec![2], vec![4, 1]));
        tensors.push(("heads", Dtype::F32, vec![2], bytes(&[0.75, 0.5])));
        let fused = convert::<f16>(&rows(3, 3));
        let fused = bytemuck::cast_slice(&fused).to_vec();
        tensors.push(("text/b/layer.0", Dtype::F16, vec![1, 3, 3], fused));
        let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
            let view = TensorView::new(*dtype, shape.clone(), bytes);
            (*name, view.expect("as many bytes as its shape says"))
        });
        let file = serialize(views, None).expect("the names differ");
        let directory = tempfile::tempdir().expect("there is room");
        let path = directory.path().join("input.safetensors");
        fs::write(&path, file).expect("there is room");
        InputFile::open(&path).expect("it was written just now")
    })
}

/// Arguments, a line each.
const PIECES: [&str; 48] = [
    "--rows\n0\n",
    "--rows\nlast\n",
    "--rows\nmean\n",
    "--rows\nmean:2\n",
    "--rows\n0,1,1\n",
    "--rows\ntensor:rows\n",
    "--rows\ncount:value\n",
    "--rows=tensor:heads\n",
    "--rows-for\ntext=last\n",
    "--rows-for\ntext/b=1\n",
    "--rows-for\n=0\n",
    "--head-fusion\nmax\n",
    "--head-fusion\nmin\n",
    "--head-fusion\nweights:heads\n",
    "--gradients\nheads\n",
    "--gradients\nfused\n",
    "--exclude-attention\n0\n",
    "--exclude-attention\n0,1,2\n",
    "--attention-weight\n1,0.25\n",
    "--identity-weight\n1\n",
    "--attention-weight\n-1\n",
    "--identity-weight\nnan\n",
    "--attention-weight\n1e38\n",
    "--normalize-rows\n",
    "--discard-ratio\n0.9\n",
    "--discard-ratio\n0.5\n",
    "--discard-ratio\n1\n",
    "--discard-scope\npatches\n",
    "--special-tokens\n0\n",
    "--special-tokens\n18446744073709551615\n",
    "--causal\n",
    "--layers\n1..\n",
    "--layers\n..1\n",
    "--layers\n1..1\n",
    "--no-mask\n",
    "--feature\ntext\n",
    "--feature\n\n",
    "--output-kind\nmatrix\n",
    "--output-kind\ncumulative\n",
    "--columns\n1..3\n",
    "--columns\n0..18446744073709551615\n",
    "--exclude-relevance\n1\n",
    "--upsample\n7x5\n",
    "--upsample\n18446744073709551615x1\n",
    "--grid\n1x4\n",
    "--grid\n4294967296x4294967296\n",
    "--expand\n",
    "--heatmap\np\n",
];

/// A command line of the corpus with some places changed.
pub fn mutate(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut line = corpus[random.below(corpus.len())].clone();
    for _ in 0..random.below(5) {
        let mut args: Vec<&[u8]> = line.split_inclusive(|&byte| byte == b'\n').collect();
        let at = 1 + random.below(args.len());
        if random.below(8) == 0 && at < args.len() {
            args.remove(at);
        }
        let piece = PIECES[random.below(PIECES.len())].as_bytes();
        args.insert(at.min(args.len()), piece);
        line = args.concat();
    }
    if random.below(4) == 0 {
        change(random, &mut line, 0, &PIECES);
    }
    line
}
