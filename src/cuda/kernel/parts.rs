//! What kernels are made of: compile-time choices that several share, by the names they have in kernel symbols.

use crate::config::HeadFusion;
use crate::dtype::DType;
use crate::problem::Problem;

/// Threads of a warp.
pub(super) const WARP: u32 = 32;

/// How heads become one map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fusion {
    /// Sum times `head_scale`.
    Mean,
    /// Largest entry.
    Max,
    /// Smallest entry.
    Min,
    /// Sum of rounded products with `head_weights`.
    Weighted,
}

impl Fusion {
    /// Every fusion.
    pub const ALL: [Fusion; 4] = [Fusion::Mean, Fusion::Max, Fusion::Min, Fusion::Weighted];

    /// Name as it stands in kernel symbols.
    pub const fn name(self) -> &'static str {
        match self {
            Fusion::Mean => "mean",
            Fusion::Max => "max",
            Fusion::Min => "min",
            Fusion::Weighted => "weighted",
        }
    }

    /// Whether entries of heads are summed, so that heads can be taken one by one.
    pub const fn sums(self) -> bool {
        matches!(self, Fusion::Mean | Fusion::Weighted)
    }

    /// The macro that chooses it.
    pub(super) fn define(self) -> (&'static str, String) {
        ("FUSION", format!("FUSION_{}", self.name()))
    }

    /// A fusion of this kind of three heads.
    pub(super) fn of_three_heads(self) -> HeadFusion {
        match self {
            Fusion::Mean => HeadFusion::Mean,
            Fusion::Max => HeadFusion::Max,
            Fusion::Min => HeadFusion::Min,
            Fusion::Weighted => HeadFusion::Weighted(vec![0.5, 0.3, 0.2]),
        }
    }
}

/// How a kernel reads maps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    /// Element type.
    pub dtype: DType,
    /// How heads become one map.
    pub fusion: Fusion,
    /// Entries are weighed by their gradients.
    pub gradients: bool,
}

impl Reading {
    /// Fused maps: the mean over their one head.
    pub const FUSED: Reading = Reading {
        dtype: DType::F32,
        fusion: Fusion::Mean,
        gradients: false,
    };

    /// Every one.
    pub(super) fn all() -> impl Iterator<Item = Reading> {
        let fusions = |dtype| Fusion::ALL.map(|fusion| (dtype, fusion));
        let readings = DType::ALL.into_iter().flat_map(fusions);
        readings.flat_map(|(dtype, fusion)| {
            [false, true].map(|gradients| Reading {
                dtype,
                fusion,
                gradients,
            })
        })
    }

    /// The layers of `problem` as its caller gives them.
    pub(in crate::cuda) fn of_layers(problem: &Problem) -> Self {
        Reading {
            dtype: problem.dtype(),
            fusion: Fusion::from(&problem.config().head_fusion),
            gradients: problem.config().gradients.is_some(),
        }
    }
}

impl From<&HeadFusion> for Fusion {
    fn from(fusion: &HeadFusion) -> Self {
        match fusion {
            HeadFusion::Mean => Fusion::Mean,
            HeadFusion::Max => Fusion::Max,
            HeadFusion::Min => Fusion::Min,
            HeadFusion::Weighted(_) => Fusion::Weighted,
        }
    }
}

/// How the products of matrices are computed. Accumulation is f32 always.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// f32 fused multiply-add: any range of values, any GPU.
    F32,
    /// Operands times `2^11` split into f16 `hi + lo`, three tensor-core products: f32 accuracy where entries are at
    /// most 1 in magnitude.
    F16x3,
    /// The same without the product with the fused map's `lo`: fused entries are rounded to f16, the state is not, two
    /// tensor-core products; entries at most 1 in magnitude.
    F16x2,
    /// Operands split into tf32 `hi + lo`, three tensor-core products: f32 accuracy at any range of values.
    Tf32x3,
}

impl Arithmetic {
    /// Every arithmetic.
    pub const ALL: [Arithmetic; 4] = [
        Arithmetic::F32,
        Arithmetic::F16x3,
        Arithmetic::F16x2,
        Arithmetic::Tf32x3,
    ];

    /// Name as it stands in kernel symbols.
    pub const fn name(self) -> &'static str {
        match self {
            Arithmetic::F32 => "f32",
            Arithmetic::F16x3 => "f16x3",
            Arithmetic::F16x2 => "f16x2",
            Arithmetic::Tf32x3 => "tf32x3",
        }
    }

    /// The macro that chooses it.
    pub(super) fn define(self) -> (&'static str, String) {
        ("ARITHMETIC", format!("ARITHMETIC_{}", self.name()))
    }

    /// The least architecture that has it, compute capability times ten.
    pub const fn arch(self) -> u32 {
        match self {
            Arithmetic::F32 => 75,
            Arithmetic::F16x3 | Arithmetic::F16x2 | Arithmetic::Tf32x3 => 80,
        }
    }

    /// Whether entries must be at most 1 in magnitude, which holds where `attention + identity <= 1` and the maps are
    /// row-stochastic, or rows are normalised.
    pub const fn needs_bounded_entries(self) -> bool {
        matches!(self, Arithmetic::F16x3 | Arithmetic::F16x2)
    }
}

/// Which factor of the product a layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// `out = state Ahat`: start rows or the whole matrix, from the last layer to the first.
    Rows,
    /// `out = Ahat state`: the matrix, from the first layer to the last, cumulative on the way.
    Matrix,
}

impl Form {
    /// Both forms.
    pub const ALL: [Form; 2] = [Form::Rows, Form::Matrix];

    /// Name as it stands in kernel symbols.
    pub const fn name(self) -> &'static str {
        match self {
            Form::Rows => "rows",
            Form::Matrix => "matrix",
        }
    }
}
