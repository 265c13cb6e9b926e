//! Running the binary, and making and reading safetensors files.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;

/// A file of `tests/data`.
pub fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

/// An empty directory and the binary to run in it.
pub struct Bench {
    pub directory: TempDir,
    /// Variables that the binary sees beside this process's own.
    pub environment: Vec<(&'static str, OsString)>,
}

impl Bench {
    pub fn new() -> Self {
        Bench {
            directory: tempfile::tempdir().unwrap(),
            environment: Vec::new(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs `attention-rollout` with these arguments.
    pub fn command<S: AsRef<std::ffi::OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Run {
        let output = Command::new(env!("CARGO_BIN_EXE_attention-rollout"))
            .args(arguments)
            .current_dir(self.directory.path())
            .envs(self.environment.iter().cloned())
            .output()
            .unwrap();
        Run::new(output)
    }

    /// `run INPUT --output out.safetensors` and these options (split at spaces).
    pub fn run(&self, input: &Path, options: &str) -> Run {
        let fixed = ["run".as_ref(), input.as_os_str()].into_iter();
        let output = ["--output", "out.safetensors"].into_iter();
        self.command(fixed.chain(output.chain(options.split_whitespace()).map(str::as_ref)))
    }

    /// As [`run`](Bench::run), which must succeed; returns what it wrote.
    pub fn run_ok(&self, input: &Path, options: &str) -> HashMap<String, Tensor> {
        self.run(input, options).expect_status(0);
        read(&self.path("out.safetensors"))
    }

    /// Names of all files in the directory, temporary ones too.
    pub fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.directory.path()).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Writes `tensors` to a file of the directory.
    pub fn write(&self, name: &str, tensors: &[(&str, Tensor)]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, serialize(tensors)).unwrap();
        path
    }
}

/// A file of f32 maps of one item and head, all zeros, that takes no room on the disk.
pub fn sparse(path: &Path, layers: usize, tokens: usize) {
    let bytes = 4 * tokens * tokens;
    let layer = |l: usize| {
        let (start, end) = (l * bytes, (l + 1) * bytes);
        format!(
            r#""layer.{l}":{{"dtype":"F32","shape":[1,{tokens},{tokens}],"data_offsets":[{start},{end}]}}"#
        )
    };
    let entries: Vec<String> = (0..layers).map(layer).collect();
    let mut header = format!("{{{}}}", entries.join(","));
    while header.len() % 8 != 0 {
        header.push(' ');
    }
    let length = (header.len() as u64).to_le_bytes();
    std::fs::write(path, [&length[..], header.as_bytes()].concat()).unwrap();
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_len((8 + header.len() + layers * bytes) as u64)
        .unwrap();
}

/// Says that this test did nothing.
pub fn skipped(why: &str) {
    use std::io::Write;
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    // Not through `eprintln`, which the test harness keeps to itself when a test passes.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {why}");
}

/// A safetensors file of these tensors.
pub fn serialize(tensors: &[(&str, Tensor)]) -> Vec<u8> {
    let views = tensors.iter().map(|(name, tensor)| {
        let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes);
        (*name, view.unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

/// How a run of the binary ended.
pub struct Run {
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    fn new(output: Output) -> Self {
        Run {
            status: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    pub fn expect_status(self, status: i32) -> Self {
        assert_eq!(self.status, Some(status), "stderr: {}", self.stderr);
        self
    }

    /// Checks that the run failed with `status` and a message that holds all of `parts`.
    pub fn expect_failure(self, status: i32, parts: &[&str]) {
        let run = self.expect_status(status);
        for part in parts {
            assert!(run.stderr.contains(part), "{part:?} not in {}", run.stderr);
        }
    }
}

/// A tensor as it lies in a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Tensor {
    pub fn f32(shape: &[usize], values: impl IntoIterator<Item = f32>) -> Self {
        let bytes = values.into_iter().flat_map(f32::to_le_bytes).collect();
        Tensor::raw(Dtype::F32, shape, bytes)
    }

    pub fn i64(shape: &[usize], values: impl IntoIterator<Item = i64>) -> Self {
        let bytes = values.into_iter().flat_map(i64::to_le_bytes).collect();
        Tensor::raw(Dtype::I64, shape, bytes)
    }

    pub fn raw(dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Self {
        let shape = shape.to_vec();
        Tensor {
            dtype,
            shape,
            bytes,
        }
    }

    /// Rows that sum to 1 and differ everywhere: `[batch, heads, tokens, tokens]`.
    pub fn maps(batch: usize, heads: usize, tokens: usize, seed: usize) -> Self {
        let mut values = Vec::new();
        for row in 0..batch * heads * tokens {
            let raw: Vec<f32> = (0..tokens)
                .map(|column| {
                    let mixed = (row * tokens + column + 1).wrapping_mul(2_654_435_761 + 97 * seed);
                    ((mixed >> 7) % 1000) as f32 + 1.0
                })
                .collect();
            let sum: f32 = raw.iter().sum();
            values.extend(raw.iter().map(|v| v / sum));
        }
        Tensor::f32(&[batch, heads, tokens, tokens], values)
    }

    /// The elements, of any dtype the files in `tests/data` have for results.
    pub fn values(&self) -> Vec<f64> {
        match self.dtype {
            Dtype::F32 => {
                let number = |b: &[u8; 4]| f64::from(f32::from_le_bytes(*b));
                self.bytes.as_chunks().0.iter().map(number).collect()
            }
            Dtype::F64 => {
                let number = |b: &[u8; 8]| f64::from_le_bytes(*b);
                self.bytes.as_chunks().0.iter().map(number).collect()
            }
            other => panic!("no values of type {other}"),
        }
    }
}

/// All tensors of the file at `path`.
pub fn read(path: &Path) -> HashMap<String, Tensor> {
    let file = std::fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap().tensors();
    tensors
        .into_iter()
        .map(|(name, view)| {
            let tensor = Tensor::raw(view.dtype(), view.shape(), view.data().to_vec());
            (name, tensor)
        })
        .collect()
}

/// Checks two lists element by element; NaN fails.
pub fn assert_close(what: &str, got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}: length");
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (got - expected).abs();
        assert!(
            error <= tolerance,
            "{what}: element {index} is {got}, expected {expected}"
        );
    }
}
