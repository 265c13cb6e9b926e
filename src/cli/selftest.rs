//! `selftest`: every kernel variant on a GPU, by both of its entries, against the f64 reference.

use std::sync::Arc;

use attention_rollout::cuda::cudarc::driver::{CudaSlice, CudaStream, DriverError};
use attention_rollout::cuda::kernel::{self, Arithmetic, Kernel};
use attention_rollout::cuda::variant::Entry;
use attention_rollout::cuda::{DeviceTensor, GroupItem, GroupPlan, Options, Plan, Runtime};
use attention_rollout::{DType, HostTensor, Problem, measure::Inputs, reference};
use clap::Args;
use half::{bf16, f16};
use rayon::prelude::*;

use crate::backend::{self, DeviceArg, DeviceArgs, PrecisionArg};
use crate::error::{Error, Result};
use crate::report;
use crate::verify::{self, half_budget};

/// Run every kernel that the GPU can run on random maps, alone and grouped, and compare with the f64 reference.
///
/// Exit status 1 where a kernel fails or exceeds its error budget.
#[derive(Args, Debug)]
pub struct SelftestArgs {
    /// cuda | cuda:N
    #[arg(long, default_value = "cuda")]
    device: DeviceArg,

    /// Only kernels whose symbol contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
}

/// Absolute error allowed on entries of at most 1, except where operands are rounded to f16.
const BUDGET: f64 = 1e-6;

/// Tokens of the problems, unless the kernel asks for others; and of those whose rows are divided among blocks, on
/// devices that have clusters among one of them.
const TOKENS: usize = 61;
const DIVIDED_TOKENS: usize = 125;

/// Kernels that are made ready at a time, for each thread.
const SUBJECTS_PER_THREAD: usize = 2;

/// Runs the subcommand.
pub fn run(args: &SelftestArgs) -> Result<()> {
    let device = |error: attention_rollout::Error| Error::Device {
        device: args.device.to_string(),
        reason: error.to_string(),
    };
    let gpu = DeviceArgs {
        device: args.device,
        precision: PrecisionArg::F32,
        tune: false,
        threads: None,
        prefetch: None,
    };
    let (runtimes, options) = backend::cuda_runtimes(&gpu).map_err(device)?;
    let runtime = &runtimes[0];
    let kernels = kernel::all();
    let subjects = kernels.iter().flat_map(|kernel| {
        let kernel = kernel.as_ref();
        let entries = kernel.variant().entries().iter();
        entries.map(move |&entry| Subject { entry, kernel })
    });
    let subjects: Vec<Subject> = subjects
        .filter(|subject| subject.symbol().contains(&args.only))
        .filter(|subject| subject.kernel.variant().runs_on(runtime.limits()))
        .collect();
    let (total, mut failed) = (subjects.len(), 0);
    // Compiling and the reference take long: many at a time, on all cores.
    for some in subjects.chunks(SUBJECTS_PER_THREAD * rayon::current_num_threads()) {
        let prepared: Vec<_> = some
            .par_iter()
            .map(|subject| subject.prepare(runtime, &options))
            .collect();
        for (subject, prepared) in some.iter().zip(prepared) {
            let verdict = match prepared.and_then(|prepared| prepared.max_error(runtime)) {
                Ok((error, budget)) if error <= budget => format!("{error:.2e}  ok"),
                Ok((error, budget)) => format!("{error:.2e}  FAILED, the budget is {budget:.2e}"),
                Err(error) => format!("FAILED: {error}"),
            };
            failed += usize::from(verdict.contains("FAILED"));
            report::line(format_args!("{:62}  {verdict}", subject.symbol()))?;
        }
    }
    if total == 0 {
        return Err(Error::argument(
            "--only",
            "part of a kernel's symbol",
            args.only.clone(),
        ));
    }
    let ordinal = runtime.context().ordinal();
    report::line(format_args!(
        "cuda:{ordinal}: {} of {total} kernels are right",
        total - failed
    ))?;
    match failed {
        0 => Ok(()),
        failed => Err(Error::Verify { failed, total }),
    }
}

/// A kernel, by one of its entries.
struct Subject<'a> {
    entry: Entry,
    kernel: &'a dyn Kernel,
}

/// Problems that a kernel takes part in, one by one or as a group, ready to be run.
struct ReadySubject {
    plans: Plans,
    inputs: Vec<Inputs>,
    /// What the reference computes of each.
    want: Vec<Vec<f64>>,
    /// The most that an entry of each may be off.
    budgets: Vec<f64>,
}

enum Plans {
    Alone(Vec<Plan>),
    Grouped(Box<GroupPlan>),
}

type Anything<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

impl Subject<'_> {
    fn symbol(&self) -> String {
        self.entry.symbol(&self.kernel.variant())
    }

    fn prepare(&self, runtime: &Runtime, options: &Options) -> Anything<ReadySubject> {
        let mut problems = vec![self.kernel.example(3, TOKENS)?];
        let another = match self.entry {
            Entry::Alone => self.kernel.example(3, DIVIDED_TOKENS)?,
            Entry::Grouped => self.kernel.example(2, TOKENS)?,
        };
        // Some kernels ask for tokens of their own.
        if another.shape() != problems[0].shape() {
            problems.push(another);
        }
        let symbol = self.kernel.variant().symbol;
        let is_half = symbol.contains(Arithmetic::F16x2.name());
        let options = Options {
            variant: Some(symbol),
            ..options.clone()
        };
        let plans = match self.entry {
            Entry::Alone => {
                let plans = problems.iter().map(|p| Plan::on(runtime, p, &options));
                Plans::Alone(plans.collect::<attention_rollout::Result<_>>()?)
            }
            Entry::Grouped => {
                Plans::Grouped(Box::new(GroupPlan::on(runtime, &problems, &options)?))
            }
        };
        let random = |problem: &Problem| Inputs::random(problem, 1);
        let inputs: Vec<Inputs> = problems.iter().map(random).collect::<Result<_, _>>()?;
        let of_each = problems.iter().zip(&inputs);
        let want: Vec<Vec<f64>> = of_each
            .map(|(problem, inputs)| reference::rollout(problem, &inputs.layers()))
            .collect::<Result<_, _>>()?;
        let budget = |(problem, want): (&Problem, &Vec<f64>)| match is_half {
            true => half_budget(problem, want),
            false => BUDGET,
        };
        Ok(ReadySubject {
            plans,
            inputs,
            budgets: problems.iter().zip(&want).map(budget).collect(),
            want,
        })
    }
}

impl ReadySubject {
    /// The largest absolute error, NaN where the kernel left NaN, and the most it may be.
    fn max_error(self, runtime: &Runtime) -> Anything<(f64, f64)> {
        let stream = runtime.context().default_stream();
        let upload = |inputs: &Inputs| {
            let layers = inputs.layers();
            let upload = |tensor| Buffer::upload(&stream, tensor);
            let buffers = layers.iter().map(|layer| layer.try_map(upload));
            buffers.collect::<Result<Vec<_>, DriverError>>()
        };
        let buffers = self.inputs.iter().map(upload);
        let buffers = buffers.collect::<Result<Vec<_>, _>>()?;
        let layers: Vec<Vec<_>> = buffers
            .iter()
            .map(|buffers| {
                let layers = buffers.iter();
                layers.map(|layer| layer.map(Buffer::tensor)).collect()
            })
            .collect();
        // What a kernel forgets to write stays NaN.
        let unset = |want: &Vec<f64>| stream.clone_htod(&vec![f32::NAN; want.len()]);
        let outs = self.want.iter().map(unset);
        let mut outs = outs.collect::<Result<Vec<_>, DriverError>>()?;
        match self.plans {
            Plans::Alone(plans) => {
                for ((mut plan, layers), out) in plans.into_iter().zip(&layers).zip(&mut outs) {
                    plan.run(&stream, layers, out)?;
                }
            }
            Plans::Grouped(mut plan) => {
                let items = layers.iter().zip(&mut outs);
                let mut items: Vec<_> = items
                    .map(|(layers, out)| GroupItem::new(layers, out))
                    .collect();
                plan.run(&stream, &mut items)?;
            }
        }
        let mut worst = (0.0, BUDGET);
        for ((want, budget), out) in self.want.iter().zip(self.budgets).zip(&outs) {
            let error = verify::max_error(&stream.clone_dtoh(out)?, want);
            // NaN is worse than anything.
            if error.is_nan() || error / budget > worst.0 / worst.1 {
                worst = (error, budget);
            }
        }
        Ok(worst)
    }
}

/// A tensor in device memory.
enum Buffer {
    F32(CudaSlice<f32>),
    F16(CudaSlice<f16>),
    Bf16(CudaSlice<bf16>),
}

impl Buffer {
    fn upload(stream: &Arc<CudaStream>, tensor: &HostTensor<'_>) -> Result<Self, DriverError> {
        match tensor.dtype() {
            DType::F32 => stream
                .clone_htod(tensor.as_slice().unwrap_or_default())
                .map(Buffer::F32),
            DType::F16 => stream
                .clone_htod(tensor.as_slice().unwrap_or_default())
                .map(Buffer::F16),
            DType::Bf16 => stream
                .clone_htod(tensor.as_slice().unwrap_or_default())
                .map(Buffer::Bf16),
        }
    }

    fn tensor(&self) -> DeviceTensor<'_> {
        match self {
            Buffer::F32(elements) => elements.into(),
            Buffer::F16(elements) => elements.into(),
            Buffer::Bf16(elements) => elements.into(),
        }
    }
}
