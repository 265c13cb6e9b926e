//! The kernels: of each its compile-time choices, its parameters, its grid and how it is launched, in the file that has
//! the name of its twin in `kernels/`.
//!
//! A kernel here is a value, the choices it is compiled with. It gives a [`Variant`](super::variant::Variant), which
//! says what to compile, and [launches](super::launch::Launch). Everything is a pure function: no driver, no NVRTC.

mod fused;
mod grouped;
mod maps;
mod parts;
mod read_floor;
mod run_inputs;
mod scores;
mod window;

use super::launch::MAX_WORDS;
use super::parameters::{Layout, Parameters};
use super::variant::Variant;
use crate::config::{self, DiscardScope};
use crate::dtype::DType;
use crate::error::Result;
use crate::layout::Shape;
use crate::problem::Problem;

pub use fused::{Fused, FusedMaps, Matrices, padded};
pub use grouped::{
    GroupMember, GroupParams, GroupWord, MAX_BLOCKS, MAX_GROUP_ADDRESSES, MemberLaunch, MemberTable,
};
pub use maps::{Columns, LayerMaps, MAX_LAYERS_PER_LAUNCH, MAX_WARPS, MapSource, Maps};
pub use parts::{Arithmetic, Form, Fusion, Reading};
pub use read_floor::ReadFloor;
pub use run_inputs::{RunInputsParams, TakeInputs, given_bytes, write_given};
pub use scores::{
    HeadScores, LayerScores, MAX_SCORE_LAYERS, Mass, Probe, RowSum, ScoreOperands, Scores,
};
pub use window::Window;

pub(super) use scores::{PROBED_ROWS, SCORES_ARCH, sum_floats};

/// A kernel that takes part in rollouts, with its compile-time choices made.
pub trait Kernel: Send + Sync {
    /// What it is compiled to.
    fn variant(&self) -> Variant;

    /// A problem of `layers` layers that the kernel can take part in, of about `tokens` tokens unless it asks for
    /// others.
    ///
    /// # Errors
    /// As [`ProblemBuilder::build`](crate::ProblemBuilder::build).
    fn example(&self, layers: usize, tokens: usize) -> Result<Problem>;
}

/// Names the kernels: their files, types and parameters.
macro_rules! kernels {
    ($($stem:ident: $kernel:ident, $params:ident;)*) => {
        $(mod $stem;)*
        $(pub use $stem::{$kernel, $params};)*

        /// Every kernel with every choice.
        pub fn all() -> Vec<Box<dyn Kernel>> {
            let mut all: Vec<Box<dyn Kernel>> = Vec::new();
            $(all.extend($stem::all().into_iter().map(|kernel| Box::new(kernel) as Box<dyn Kernel>));)*
            all
        }

        /// The parameters of every kernel, and what they are made of.
        pub const LAYOUTS: &[Layout] = &[
            Window::LAYOUT,
            LayerMaps::LAYOUT,
            Maps::LAYOUT,
            Matrices::LAYOUT,
            FusedMaps::LAYOUT,
            LayerScores::LAYOUT,
            HeadScores::LAYOUT,
            RowSum::LAYOUT,
            Probe::LAYOUT,
            Mass::LAYOUT,
            Scores::LAYOUT,
            GroupMember::LAYOUT,
            GroupWord::LAYOUT,
            GroupParams::LAYOUT,
            RunInputsParams::LAYOUT,
            FactorProduct::LAYOUT,
            $($params::LAYOUT,)*
        ];

        /// Sizes of the parameters of the kernels.
        const PARAMS_BYTES: &[usize] = &[$(size_of::<$params>(),)*];
    };
}

kernels! {
    rollout_rows: RolloutRows, RolloutRowsParams;
    rows_stream: RowsStream, RowsStreamParams;
    matrix_stream: MatrixStream, MatrixStreamParams;
    head_fusion: FuseHeads, HeadFusionParams;
    score_sums: SumScores, ScoreSumsParams;
    score_fusion: FuseScores, ScoreFusionParams;
    score_masses: SumRows, ScoreMassesParams;
    score_rows: ScoreRows, ScoreRowsParams;
    score_stream: ScoreStream, ScoreStreamParams;
    score_short: ShortScores, ScoreShortParams;
    score_residual: AddResidual, ScoreResidualParams;
    zero_fill: ZeroFill, ZeroFillParams;
    discard: FindCuts, DiscardParams;
    exclusion: Exclude, ExclusionParams;
    row_scales: RowScales, RowScalesParams;
    rollout_first: RolloutFirst, RolloutFirstParams;
    rollout_product: RolloutProduct, RolloutProductParams;
    split_product: SplitProduct, SplitProductParams;
}

pub use discard::CutBlocks;
pub use matrix_stream::{MatrixRing, RingMatrix};
pub use rollout_rows::{RowsOperands, Splits};
pub use rows_stream::{Exchange, Ring, RingOperands, RingRows, Sets};
pub use score_residual::ResidualOperands;
pub use score_rows::{MAX_SCORE_ROWS, ScoreSplits};
pub use score_short::ShortRows;
pub use score_stream::{ScoreSets, StreamedRow};
pub use split_product::{Factor, FactorProduct, MAX_PRODUCTS};

/// Static shared memory that a grouped kernel takes at most for its parameters.
pub const SHARED_PARAMS: usize = {
    let (mut largest, mut i) = (0, 0);
    while i < PARAMS_BYTES.len() {
        if PARAMS_BYTES[i] > largest {
            largest = PARAMS_BYTES[i];
        }
        i += 1;
    }
    largest.next_multiple_of(16)
};

// Every driver accepts 4 KB of kernel parameters.
const _: () = assert!(SHARED_PARAMS <= 8 * MAX_WORDS && size_of::<GroupParams>() <= 8 * MAX_WORDS);

/// The kernel of that symbol.
pub fn find(symbol: &str) -> Option<Box<dyn Kernel>> {
    let mut all = all().into_iter();
    all.find(|kernel| kernel.variant().symbol == symbol)
}

/// What a kernel that fuses heads is compiled for: element type, fusion, and whether entries are discarded. Discard takes
/// the fused maps that `head_fusion` wrote: f32, one head.
fn map_readers() -> impl Iterator<Item = (DType, Fusion, bool)> {
    let fusions = |dtype| Fusion::ALL.map(|fusion| (dtype, fusion, false));
    let readers = DType::ALL.into_iter().flat_map(fusions);
    readers.chain([(DType::F32, Fusion::Mean, true)])
}

/// The shape of an example.
fn example_shape(layers: usize, tokens: usize) -> Shape {
    Shape {
        layers,
        batch: 2,
        heads: 3,
        tokens,
    }
}

/// The discard of an example.
fn example_discard(discards: bool) -> Option<config::Discard> {
    let scope = DiscardScope::Map;
    discards.then_some(config::Discard { ratio: 0.4, scope })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_are_distinct_and_found() {
        let symbols: Vec<String> = all().iter().map(|kernel| kernel.variant().symbol).collect();
        for (i, symbol) in symbols.iter().enumerate() {
            let found = find(symbol).map(|kernel| kernel.variant().symbol);
            assert_eq!(found.as_ref(), Some(symbol));
            assert!(!symbols[..i].contains(symbol), "{symbol} is listed twice");
        }
        assert!(find("rollout_rows_f8_f32_m1_mean").is_none());
    }

    #[test]
    fn symbols_name_everything_in_one_order() {
        let rows = RolloutRows {
            dtype: crate::DType::F16,
            rows: 1,
            fusion: Fusion::Mean,
            gradients: false,
            normalize: true,
            discard: false,
        };
        let symbol = rows.variant().symbol;
        assert_eq!(symbol, "rollout_rows_f16_f32_m1_mean_normalize");
        let product = RolloutProduct {
            arithmetic: Arithmetic::F16x3,
            form: Form::Matrix,
            discard: true,
        };
        let symbol = product.variant().symbol;
        assert_eq!(symbol, "rollout_product_f32_f16x3_matrix_discard");
    }
}
