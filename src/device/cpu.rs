//! The CPU as a device.

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::thread::available_parallelism;

use super::{Backend, Chunked, Device};
use crate::chunk::{self, CHUNK_BYTES, Chunk};
use crate::config::Output;
use crate::cpu::{Choice, Form, Options, Plan, Prefetch, Simd};
use crate::error::{Error, Result};
use crate::layer::HostLayer;
use crate::layout::Window;
use crate::problem::Problem;

struct Cpu {
    options: Options,
    /// How to compute, where the plan shall not choose.
    choice: Option<Choice>,
}

impl Device {
    /// The CPU.
    pub fn cpu(options: &Options) -> Self {
        Device::new(Cpu {
            options: options.clone(),
            choice: None,
        })
    }
}

impl Backend for Cpu {
    fn name(&self) -> String {
        "cpu".to_owned()
    }

    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let threads = self.threads();
        let plural = if threads.get() == 1 { "" } else { "s" };
        write!(f, "cpu, {threads} thread{plural}")
    }

    fn model(&self) -> String {
        std::env::consts::ARCH.to_owned()
    }

    fn threads(&self) -> NonZeroUsize {
        let threads = self.options.threads;
        threads
            .or_else(|| available_parallelism().ok())
            .unwrap_or(NonZeroUsize::MIN)
    }

    fn is_half(&self) -> bool {
        false
    }

    fn candidates(&self, problem: &Problem) -> Result<Vec<Device>> {
        let forms: &[Form] = match problem.config().output {
            Output::Rows(_) => &[Form::Rows, Form::Product],
            Output::Matrix | Output::Cumulative => &[Form::Product],
        };
        let prefetch = self.options.prefetch.unwrap_or_else(Prefetch::of_machine);
        let choices = forms.iter().flat_map(|&form| {
            Simd::available().flat_map(move |simd| {
                [false, true].map(|share_rest| Choice {
                    form,
                    simd,
                    share_rest,
                    prefetch,
                })
            })
        });
        let with = |threads, choice| {
            Device::new(Cpu {
                options: Options {
                    threads: Some(threads),
                    prefetch: Some(prefetch),
                },
                choice,
            })
        };
        let mut threads = vec![NonZeroUsize::MIN, self.threads()];
        threads.dedup();
        let mut candidates: Vec<Device> = threads.into_iter().map(|n| with(n, None)).collect();
        candidates.extend(choices.map(|choice| with(self.threads(), Some(choice))));
        Ok(candidates)
    }

    fn check(&self, _: &Problem) -> Result<()> {
        Ok(())
    }

    fn plan(
        &self,
        problem: &Problem,
        items_per_chunk: Option<NonZeroUsize>,
    ) -> Result<Box<dyn Chunked>> {
        let chunk = items_per_chunk.map(NonZeroUsize::get);
        let of_options = || Choice::with(problem, self.options.prefetch);
        let choice = self.choice.unwrap_or_else(of_options);
        Ok(Box::new(CpuChunks {
            plan: Plan::with_choice(problem, &self.options, choice)?,
            chunk: chunk.unwrap_or_else(|| chunk::items_per_chunk(problem, CHUNK_BYTES)),
            items: 0..0,
            pushed: 0,
            popped: 0,
            out: Vec::new(),
        }))
    }

    #[cfg(feature = "measure")]
    fn case(
        &self,
        members: Vec<(Problem, crate::measure::Inputs)>,
    ) -> Result<crate::measure::Case> {
        crate::measure::Case::cpu(members, self.threads(), self.options.prefetch)
    }
}

/// A plan that computes a chunk when it is pushed.
struct CpuChunks {
    plan: Plan,
    chunk: usize,
    /// Items of the run under way.
    items: Range<usize>,
    /// One past the last of them that is computed.
    pushed: usize,
    /// One past the last whose output has been taken.
    popped: usize,
    /// The output of a chunk.
    out: Vec<f32>,
}

impl Chunked for CpuChunks {
    fn variant(&self) -> String {
        let Choice {
            form,
            simd,
            share_rest,
            prefetch,
        } = self.plan.choice();
        let sharing = match share_rest && self.plan.threads() > 1 {
            true => ", items shared",
            false => "",
        };
        format!("{form}, {simd}, {prefetch}{sharing}")
    }

    fn workspace_bytes(&self) -> usize {
        self.plan.workspace_bytes()
    }

    fn items_per_chunk(&self) -> usize {
        self.chunk
    }

    fn set_windows(&mut self, windows: &[Window]) -> Result<()> {
        self.plan.set_windows(windows)
    }

    fn set_rows(&mut self, rows: &[usize]) -> Result<()> {
        self.plan.set_rows(rows)
    }

    fn restart(&mut self, items: Range<usize>) -> Result<()> {
        let problem = self.plan.problem();
        problem.check_items(&items)?;
        problem.check_rows_of(items.clone())?;
        (self.pushed, self.popped) = (items.start, items.start);
        self.items = items;
        Ok(())
    }

    fn wants(&self) -> Option<Range<usize>> {
        let end = self.items.end;
        let has_room = self.pushed == self.popped && self.pushed < end;
        has_room.then(|| self.pushed..end.min(self.pushed + self.chunk))
    }

    fn push(&mut self, layers: &[HostLayer<'_>]) -> Result<()> {
        let Some(items) = self.wants() else {
            return Ok(());
        };
        let problem = self.plan.problem();
        let len = problem.output_len() / problem.shape().batch * items.len();
        self.out.clear();
        self.out
            .try_reserve_exact(len)
            .map_err(|_| Error::HostMemory {
                what: "rollout",
                required: len.saturating_mul(size_of::<f32>()),
            })?;
        // What is not written is told by a number that no rollout is.
        self.out.resize(len, f32::NAN);
        self.plan.run_items(items.clone(), layers, &mut self.out)?;
        self.pushed = items.end;
        Ok(())
    }

    fn pop(&mut self) -> Result<Option<Chunk<'_>>> {
        let items = self.popped..self.pushed;
        if items.is_empty() {
            return Ok(None);
        }
        self.popped = self.pushed;
        let run = self.items.clone();
        Ok(Some(Chunk::new(self.plan.problem(), run, items, &self.out)))
    }
}

impl fmt::Display for CpuChunks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.plan.fmt(f)
    }
}
