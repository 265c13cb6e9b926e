//! How to compute on a GPU: the choices that a caller may make, for a plan and for the compiler behind it.

use super::nvrtc::{Cache, Nvrtc};
use super::pipeline::Pipeline;
use super::plan::Workspace;

/// How exactly matrices are multiplied. The row form is f32 whatever this is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// f32 accuracy: within 1e-6 of f64 on rows of probabilities.
    #[default]
    F32,
    /// Fused maps rounded to f16, which moves an entry by at most `2^-11` of itself per layer; the rollout so far and all
    /// sums in f32. On the sentences of `tests/data` 1.7e-4 from f64. Problems whose values may leave the range of f16
    /// ([`Problem::growth_bound`](crate::Problem::growth_bound)) are computed as with [`F32`](Precision::F32).
    Half,
}

/// What kernels are compiled to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ImageKind {
    /// Machine code for the device; PTX where NVRTC does not know the device's architecture.
    #[default]
    Cubin,
    /// PTX, which the driver compiles again when it loads it.
    Ptx,
}

/// In which order layers are pushed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LayerOrder {
    /// The first one first, as a model computes them.
    #[default]
    Forward,
    /// The last one first, for relevance rows: one layer at a time is all that is kept of any. So queries and keys, or maps,
    /// can come from host memory or from disk.
    TopDown,
}

/// How a plan computes.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// How exactly matrices are multiplied.
    pub precision: Precision,
    /// Symbol of a kernel variant that must take part. `None` leaves the choice to [`choose`](super::choose()), unless the
    /// environment variable `ROLLOUT_VARIANT` names one.
    pub variant: Option<String>,
    /// The way of computing to take, one of [`candidates`](super::candidates()), of a group each member's; `None` leaves the
    /// choice to [`choose`](super::choose()).
    pub pipeline: Option<Pipeline>,
    /// Of the ways of computing that are left open, the one that is fastest on the device by the clock, not by its estimate:
    /// it is [timed](super::tune()) when the first plan of such a problem is made, and remembered. Which way that is decides
    /// over the last bits of results. Of streams and of groups, estimates choose.
    pub tune: bool,
    /// How [`StreamingPlan`](super::StreamingPlan)s take their layers; others take all at once.
    pub layer_order: LayerOrder,
    /// Where runs work; in memory that the plan allocates unless it borrows some.
    pub workspace: Workspace,
}

impl Options {
    /// These options, with what they leave open taken from the environment.
    pub(crate) fn with_environment(&self) -> Self {
        let mut options = self.clone();
        options.variant = options.variant.or_else(|| set("ROLLOUT_VARIANT"));
        options
    }
}

/// How a [`Runtime`](super::Runtime) comes to its kernels.
#[derive(Clone, Debug, Default)]
pub struct Compiler {
    /// What kernels are compiled to. The environment variable `ROLLOUT_PTX=1` asks for PTX too.
    pub image: ImageKind,
    /// The compiler to use; `None` finds one ([`Nvrtc::load_for_driver`]) when the first kernel is compiled.
    pub nvrtc: Option<Nvrtc>,
    /// Where compiled kernels are kept; `None` is [`Cache::from_env`].
    pub cache: Option<Cache>,
}

impl Compiler {
    /// This compiler, with what it leaves open taken from the environment.
    pub(super) fn with_environment(&self) -> Self {
        let mut compiler = self.clone();
        if set("ROLLOUT_PTX").is_some_and(|value| value != "0") {
            compiler.image = ImageKind::Ptx;
        }
        compiler
    }
}

/// What an environment variable says, where it says anything.
fn set(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
