//! Plans for a pipeline of many shapes.

use std::num::NonZeroUsize;
use std::sync::Arc;

use crate::cpu::team::Team;
use crate::cpu::{Options, Plan, Prefetch};
use crate::error::Result;
use crate::problem::Problem;
use crate::recent::Recent;

/// The plans of the problems that were asked for last, all on one team of threads. At most so many; the least recently
/// used one goes first.
///
/// ```
/// use std::num::NonZeroUsize;
/// use attention_rollout::{DType, Problem, RolloutConfig, Shape, cpu};
///
/// let mut plans = cpu::PlanCache::new(&cpu::Options::default(), NonZeroUsize::MIN)?;
/// for tokens in [4, 4, 8] {
///     let shape = Shape { layers: 1, batch: 1, heads: 1, tokens };
///     let problem = Problem::new(shape, DType::F32, RolloutConfig::default())?;
///     let relevance = plans.get(&problem)?.run_to_vec(&[vec![0.25; tokens * tokens].as_slice().into()])?;
///     assert_eq!(relevance.len(), tokens);
/// }
/// # Ok::<(), attention_rollout::Error>(())
/// ```
pub struct PlanCache {
    team: Arc<Team>,
    prefetch: Option<Prefetch>,
    plans: Recent<Plan>,
}

impl PlanCache {
    /// Starts the threads. There will be at most `most` plans at a time.
    ///
    /// # Errors
    /// [`Error::Threads`](crate::Error::Threads).
    pub fn new(options: &Options, most: NonZeroUsize) -> Result<Self> {
        Ok(PlanCache {
            team: Arc::new(Team::new(options.threads)?),
            prefetch: options.prefetch,
            plans: Recent::new(most),
        })
    }

    /// The plan of `problem`, with its windows and rows: of the same shape, element type, strides, longest window and
    /// configuration. Made where there is none.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn get(&mut self, problem: &Problem) -> Result<&mut Plan> {
        let (team, prefetch) = (&self.team, self.prefetch);
        let plan = self.plans.get(
            |plan| plan.problem().has_plan_of(problem),
            || Plan::of_team(team, problem, prefetch),
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
