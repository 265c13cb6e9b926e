//! The kernel variants: every kernel symbol there is, what it is compiled with and where it runs.
//!
//! A variant's name is its symbol: `<stem>_<dtype>_<arithmetic>_<tile>_<flags>`, parts that do not apply left out; the
//! stem is the file in `kernels/`. Everything here is a pure function: no driver, no NVRTC.

use std::fmt;
use std::str::FromStr;

use super::chain::ChainTile;
use super::limits::DeviceLimits;
use crate::config::HeadFusion;
use crate::dtype::DType;

/// How heads become one map, as a compile-time property of a kernel.
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

    /// Threads of a `rollout_product` block: 16 entries of the tile each, or a quarter of it per warp.
    pub(super) const fn product_block(self) -> u32 {
        match self {
            Arithmetic::F32 => PRODUCT_TILE * PRODUCT_TILE / 16,
            _ => 4 * 32,
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

/// One kernel, as compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    /// Start rows times all layers in one pass over the maps.
    RolloutRows {
        /// Element type of the maps.
        dtype: DType,
        /// Start rows it holds: 1 or 8 ([`Variant::ROWS`]).
        rows: u32,
        /// How heads become one map.
        fusion: Fusion,
        /// Rows of `Ahat` are divided by their sums.
        normalize: bool,
        /// Fused f32 maps (`heads = 1`, mean) with cuts.
        discard: bool,
    },
    /// All layers of an item multiplied in one block, or in one cluster of blocks.
    RolloutChain {
        /// Element type of the maps.
        dtype: DType,
        /// How products are computed; not [`Arithmetic::F32`].
        arithmetic: Arithmetic,
        /// Most tokens of a window: 64, 128 or, with clusters of blocks, 256 ([`Variant::CHAIN_TOKENS`]).
        tokens: u32,
        /// How heads become one map.
        fusion: Fusion,
        /// Rows of `Ahat` are divided by their sums.
        normalize: bool,
        /// Fused f32 maps (`heads = 1`, mean) with cuts.
        discard: bool,
    },
    /// Fused f32 maps.
    HeadFusion {
        /// Element type of the maps.
        dtype: DType,
        /// How heads become one map.
        fusion: Fusion,
    },
    /// Zeros.
    ZeroFill,
    /// The cut between discarded and kept entries of each fused map.
    Discard,
    /// Reciprocal row sums of `Ahat` from fused maps.
    RowScales,
    /// `Ahat` of one layer from fused maps: the first step of a product.
    RolloutFirst,
    /// One step of the product, from fused maps.
    RolloutProduct {
        /// How products are computed.
        arithmetic: Arithmetic,
        /// Which factor the layer is.
        form: Form,
        /// Fused maps have cuts.
        discard: bool,
    },
}

/// Warps of a `rollout_rows` or `head_fusion` block.
pub(super) const ROWS_WARPS: u32 = 8;
/// Threads of a `zero_fill` block.
pub(super) const FILL_BLOCK: u32 = 256;
/// Threads of a `discard` block.
pub(super) const DISCARD_BLOCK: u32 = 512;
/// Threads of a `row_scales` or `rollout_first` block; a warp takes a row.
pub(super) const ROW_BLOCK: u32 = 256;
/// Rows and columns of the output tile of a `rollout_product` block.
pub(super) const PRODUCT_TILE: u32 = 64;

impl Variant {
    /// Start rows that a `rollout_rows` variant holds.
    pub const ROWS: [u32; 2] = [1, 8];
    /// Token limits of the `rollout_chain` variants.
    pub const CHAIN_TOKENS: [u32; 3] = [64, 128, 256];
    /// Entries that a `zero_fill` block writes.
    pub const FILL_PIECE: u32 = 16 * FILL_BLOCK;

    /// The file in `kernels/`, without extension.
    pub const fn stem(&self) -> &'static str {
        match self {
            Variant::RolloutRows { .. } => "rollout_rows",
            Variant::RolloutChain { .. } => "rollout_chain",
            Variant::HeadFusion { .. } => "head_fusion",
            Variant::ZeroFill => "zero_fill",
            Variant::Discard => "discard",
            Variant::RowScales => "row_scales",
            Variant::RolloutFirst => "rollout_first",
            Variant::RolloutProduct { .. } => "rollout_product",
        }
    }

    /// The kernel's symbol, which is the variant's name. Entered grouped, it ends in `_group`: see
    /// [`Entry`](super::entry::Entry).
    pub fn symbol(&self) -> String {
        self.to_string()
    }

    /// The macros it is compiled with, besides those of its [`Entry`](super::entry::Entry).
    pub fn defines(&self) -> Vec<(&'static str, String)> {
        let flag = |on: bool| u32::from(on).to_string();
        let fusion_define = |fusion: Fusion| ("FUSION", format!("FUSION_{}", fusion.name()));
        let dtype_define = |dtype: DType| ("ELEMENT", dtype.name().to_owned());
        let arithmetic_define =
            |arithmetic: Arithmetic| ("ARITHMETIC", format!("ARITHMETIC_{}", arithmetic.name()));
        let mut defines = Vec::new();
        match *self {
            Variant::RolloutRows {
                dtype,
                rows,
                fusion,
                normalize,
                discard,
            } => defines.extend([
                dtype_define(dtype),
                fusion_define(fusion),
                ("START_ROWS", rows.to_string()),
                ("MAX_WARPS", ROWS_WARPS.to_string()),
                ("NORMALIZE", flag(normalize)),
                ("DISCARD", flag(discard)),
            ]),
            Variant::RolloutChain {
                dtype,
                arithmetic,
                tokens,
                fusion,
                normalize,
                discard,
            } => {
                let tile = ChainTile::new(dtype, arithmetic, tokens);
                defines.extend([
                    dtype_define(dtype),
                    arithmetic_define(arithmetic),
                    fusion_define(fusion),
                    ("MAX_TOKENS", tokens.to_string()),
                    ("CLUSTER", tile.cluster.to_string()),
                    ("COLUMN_PARTS", tile.column_parts.to_string()),
                    ("RING", ChainTile::RING.to_string()),
                    ("SHARED_BYTES", tile.shared_bytes.to_string()),
                    ("NORMALIZE", flag(normalize)),
                    ("DISCARD", flag(discard)),
                ]);
            }
            Variant::HeadFusion { dtype, fusion } => defines.extend([
                dtype_define(dtype),
                fusion_define(fusion),
                ("HEADS_IN_FLIGHT", 4.to_string()),
                ("MAX_WARPS", ROWS_WARPS.to_string()),
            ]),
            Variant::ZeroFill => defines.extend([
                ("BLOCK_THREADS", FILL_BLOCK.to_string()),
                ("PIECE", Variant::FILL_PIECE.to_string()),
            ]),
            Variant::Discard => defines.push(("BLOCK_THREADS", DISCARD_BLOCK.to_string())),
            Variant::RowScales | Variant::RolloutFirst => {
                defines.push(("BLOCK_THREADS", ROW_BLOCK.to_string()));
            }
            Variant::RolloutProduct {
                arithmetic,
                form,
                discard,
            } => defines.extend([
                arithmetic_define(arithmetic),
                ("BLOCK_THREADS", arithmetic.product_block().to_string()),
                ("TILE", PRODUCT_TILE.to_string()),
                ("MAP_IS_LEFT", flag(form == Form::Matrix)),
                ("DISCARD", flag(discard)),
            ]),
        }
        defines
    }

    /// Least compute capability, `(major, minor)`.
    pub fn compute_capability(&self) -> (u32, u32) {
        match self {
            Variant::RolloutChain { .. } if self.cluster() > 1 => (9, 0),
            Variant::RolloutChain { .. } => (8, 0),
            Variant::RolloutProduct { arithmetic, .. }
                if !matches!(arithmetic, Arithmetic::F32) =>
            {
                (8, 0)
            }
            _ => (7, 5),
        }
    }

    /// Blocks that are compiled to be a cluster; 1: none.
    pub fn cluster(&self) -> u32 {
        self.chain_tile().map_or(1, |tile| tile.cluster)
    }

    /// Whether a device has what the kernel needs.
    pub fn runs_on(&self, limits: &DeviceLimits) -> bool {
        let (major, minor) = self.compute_capability();
        limits.arch >= 10 * major + minor && self.chain_tile().is_none_or(|tile| tile.fits(limits))
    }

    fn chain_tile(&self) -> Option<ChainTile> {
        match *self {
            Variant::RolloutChain {
                dtype,
                arithmetic,
                tokens,
                ..
            } => Some(ChainTile::new(dtype, arithmetic, tokens)),
            _ => None,
        }
    }

    /// Every variant.
    pub fn all() -> Vec<Variant> {
        const BOTH: [bool; 2] = [false, true];
        let mut all = Vec::new();
        // Discard takes the fused maps that head_fusion wrote: f32, one head.
        let sources = || {
            DType::ALL
                .into_iter()
                .flat_map(|dtype| Fusion::ALL.map(|fusion| (dtype, fusion, false)))
                .chain([(DType::F32, Fusion::Mean, true)])
        };
        for (dtype, fusion, discard) in sources() {
            for normalize in BOTH {
                all.extend(Variant::ROWS.map(|rows| Variant::RolloutRows {
                    dtype,
                    rows,
                    fusion,
                    normalize,
                    discard,
                }));
                for arithmetic in [Arithmetic::F16x3, Arithmetic::F16x2, Arithmetic::Tf32x3] {
                    all.extend(Variant::CHAIN_TOKENS.map(|tokens| Variant::RolloutChain {
                        dtype,
                        arithmetic,
                        tokens,
                        fusion,
                        normalize,
                        discard,
                    }));
                }
            }
            if !discard {
                all.push(Variant::HeadFusion { dtype, fusion });
            }
        }
        all.extend([
            Variant::ZeroFill,
            Variant::Discard,
            Variant::RowScales,
            Variant::RolloutFirst,
        ]);
        for arithmetic in Arithmetic::ALL {
            for form in Form::ALL {
                all.extend(BOTH.map(|discard| Variant::RolloutProduct {
                    arithmetic,
                    form,
                    discard,
                }));
            }
        }
        all
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.stem())?;
        let (mut normalized, mut discards) = (false, false);
        match *self {
            Variant::RolloutRows {
                dtype,
                rows,
                fusion,
                normalize,
                discard,
            } => {
                write!(f, "_{dtype}_f32_m{rows}_{}", fusion.name())?;
                (normalized, discards) = (normalize, discard);
            }
            Variant::RolloutChain {
                dtype,
                arithmetic,
                tokens,
                fusion,
                normalize,
                discard,
            } => {
                write!(
                    f,
                    "_{dtype}_{}_n{tokens}_{}",
                    arithmetic.name(),
                    fusion.name()
                )?;
                (normalized, discards) = (normalize, discard);
            }
            Variant::HeadFusion { dtype, fusion } => write!(f, "_{dtype}_{}", fusion.name())?,
            Variant::ZeroFill | Variant::Discard | Variant::RowScales | Variant::RolloutFirst => {
                f.write_str("_f32")?
            }
            Variant::RolloutProduct {
                arithmetic,
                form,
                discard,
            } => {
                write!(f, "_f32_{}_{}", arithmetic.name(), form.name())?;
                discards = discard;
            }
        }
        for (on, name) in [(normalized, "_normalize"), (discards, "_discard")] {
            if on {
                f.write_str(name)?;
            }
        }
        Ok(())
    }
}

impl FromStr for Variant {
    type Err = String;

    /// The variant of that symbol.
    fn from_str(symbol: &str) -> Result<Self, String> {
        Variant::all()
            .into_iter()
            .find(|variant| variant.symbol() == symbol)
            .ok_or_else(|| format!("no kernel variant is called {symbol}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_are_distinct_and_parse() {
        let all = Variant::all();
        for (i, variant) in all.iter().enumerate() {
            assert_eq!(variant.symbol().parse(), Ok(*variant));
            assert!(!all[..i].contains(variant), "{variant} is listed twice");
        }
    }

    #[test]
    fn symbols_name_everything_in_one_order() {
        let rows = Variant::RolloutRows {
            dtype: DType::F16,
            rows: 1,
            fusion: Fusion::Mean,
            normalize: true,
            discard: false,
        };
        assert_eq!(rows.symbol(), "rollout_rows_f16_f32_m1_mean_normalize");
        let product = Variant::RolloutProduct {
            arithmetic: Arithmetic::F16x3,
            form: Form::Matrix,
            discard: true,
        };
        assert_eq!(product.symbol(), "rollout_product_f32_f16x3_matrix_discard");
        assert!("rollout_rows_f8_f32_m1_mean".parse::<Variant>().is_err());
    }
}
