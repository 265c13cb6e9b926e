//! Plans for a pipeline of many shapes.

use std::num::NonZeroUsize;

use super::one::Plan;
use crate::cuda::options::Options;
use crate::cuda::runtime::Runtime;
use crate::error::Result;
use crate::problem::Problem;
use crate::recent::Recent;

/// The plans of the problems that were asked for last, on one [`Runtime`]. At most so many; the least recently used one
/// goes first, and its workspace with it, once the work that it has submitted is done.
///
/// ```no_run
/// use std::num::NonZeroUsize;
/// use attention_rollout::cuda::{self, Compiler, Options, PlanCache, Runtime};
/// use attention_rollout::{DType, Problem, RolloutConfig, Shape};
///
/// let runtime = Runtime::new(&cuda::context(0)?, &Compiler::default())?;
/// let sixteen = NonZeroUsize::MIN.saturating_add(15);
/// let mut plans = PlanCache::new(&runtime, &Options::default(), sixteen);
/// let shape = Shape { layers: 12, batch: 8, heads: 12, tokens: 197 };
/// let problem = Problem::new(shape, DType::F16, RolloutConfig::default())?;
/// let plan = plans.get(&problem)?;
/// # Ok::<(), attention_rollout::Error>(())
/// ```
pub struct PlanCache {
    runtime: Runtime,
    options: Options,
    plans: Recent<Plan>,
}

impl PlanCache {
    /// At most `most` plans at a time, made on `runtime` with `options`.
    pub fn new(runtime: &Runtime, options: &Options, most: NonZeroUsize) -> Self {
        PlanCache {
            runtime: runtime.clone(),
            options: options.clone(),
            plans: Recent::new(most),
        }
    }

    /// The plan of `problem`, with its windows and rows: of the same shape, element type, strides, longest window and
    /// configuration. Made where there is none; a plan that goes for it waits for the work that it has submitted.
    ///
    /// # Errors
    /// As [`Plan::on`].
    pub fn get(&mut self, problem: &Problem) -> Result<&mut Plan> {
        let PlanCache {
            runtime,
            options,
            plans,
        } = self;
        let plan = plans.get(
            |plan| plan.problem().has_plan_of(problem),
            || Plan::on(runtime, problem, options),
        )?;
        plan.restore(problem);
        Ok(plan)
    }

    /// Plans held.
    pub fn len(&self) -> usize {
        self.plans.len()
    }

    /// Whether no plan is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Lets all plans go.
    pub fn clear(&mut self) {
        self.plans.clear();
    }
}
