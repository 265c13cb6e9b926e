//! How each variant is launched: grid, block and dynamic shared memory from the extents of the launch. Pure functions.

use std::fmt;

use crate::cuda::chain::ChainTile;
use crate::cuda::variant::{
    DISCARD_BLOCK, FILL_BLOCK, PRODUCT_TILE, ROW_BLOCK, ROWS_WARPS, Variant,
};
use crate::dtype::DType;

const WARP: u32 = 32;
/// Rows that a `head_fusion` warp takes one after the other.
const FUSION_ROWS: u32 = 4;

/// Extents of one launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extents {
    /// Items; of `zero_fill`, pieces.
    pub batch: u32,
    /// Layers of the launch.
    pub layers: u32,
    /// Tokens of the maps.
    pub tokens: u32,
    /// Tokens of the longest window.
    pub window_len: u32,
    /// Rows of the state: start rows, or `window_len` where the state is a matrix.
    pub rows: u32,
    /// How `rollout_rows` divides the rows of an item.
    pub splits: Splits,
    /// How `rollout_rows` and `head_fusion` divide the columns.
    pub columns: Columns,
}

/// Blocks among which `rollout_rows` divides the rows of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Splits {
    /// Number of blocks.
    pub blocks: u32,
    /// The blocks are a cluster, which takes all layers in one launch. Otherwise more than one take a launch per layer.
    pub clustered: bool,
}

impl Splits {
    /// One block.
    pub const ONE: Splits = Splits {
        blocks: 1,
        clustered: false,
    };

    /// Parts of an item's sums that a launch leaves behind.
    pub const fn parts(&self) -> u32 {
        match self.clustered {
            true => 1,
            false => self.blocks,
        }
    }
}

/// Grid, block and dynamic shared memory of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block, along x.
    pub block: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// Blocks along y that the launch makes a cluster; 1: none, or those that the kernel is compiled for.
    pub cluster: u32,
}

impl Geometry {
    /// Blocks of the grid.
    pub fn blocks(&self) -> u64 {
        self.grid.iter().map(|&extent| u64::from(extent)).product()
    }
}

impl fmt::Display for Geometry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Geometry {
            grid: [x, y, z],
            block,
            shared_bytes,
            cluster,
        } = self;
        write!(f, "grid {x}x{y}x{z}")?;
        if *cluster > 1 {
            write!(f, " in clusters of {cluster}")?;
        }
        write!(f, ", block {block}, {shared_bytes} B shared")
    }
}

/// How `rollout_rows` and `head_fusion` divide the columns of a row over warps.
///
/// A lane owns the elements of 16 bytes. Where rows are not 16-byte aligned, the 32 lanes load 32 aligned granules and
/// shift them into 31.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    /// Columns of one warp (`chunk_columns` of the parameters).
    pub chunk: u32,
    /// Warps that share a row (`chunks_per_block` of the parameters).
    pub chunks_per_block: u32,
    /// Blocks that share a row. More than one: `rollout_rows` takes one layer per launch and cannot normalise.
    pub tiles: u32,
}

impl Columns {
    /// The division for rows of `window_len` columns (the longest window) of `dtype`. `aligned`: every row of every
    /// window starts at a multiple of 16 bytes.
    pub const fn new(dtype: DType, window_len: u32, aligned: bool) -> Self {
        let granule = 16 / dtype.size_bytes() as u32;
        let granules = match window_len.div_ceil(granule) {
            0 => 1,
            granules => granules,
        };
        let chunks = granules.div_ceil(if aligned { WARP } else { WARP - 1 });
        let tiles = chunks.div_ceil(ROWS_WARPS);
        Columns {
            chunk: granules.div_ceil(chunks) * granule,
            chunks_per_block: chunks.div_ceil(tiles),
            tiles,
        }
    }

    /// Rows a block works on at the same time.
    pub const fn row_groups(&self) -> u32 {
        ROWS_WARPS / self.chunks_per_block
    }

    const fn block(&self) -> u32 {
        WARP * self.row_groups() * self.chunks_per_block
    }
}

impl Variant {
    /// How to launch this variant over `extents`.
    pub fn geometry(&self, extents: &Extents) -> Geometry {
        let Extents {
            batch,
            layers,
            tokens,
            window_len,
            rows,
            splits,
            columns,
        } = *extents;
        let geometry = |y: u32, z: u32, block: u32, shared_bytes: u32| Geometry {
            grid: [batch, y, z],
            block,
            shared_bytes,
            cluster: 1,
        };
        match *self {
            Variant::RolloutRows { normalize, .. } => {
                // The relevance, the next relevance in this block's columns (a cluster's of two layers), and scales and
                // partial sums of rows.
                let cluster = if splits.clustered { splits.blocks } else { 1 };
                let turns = if cluster > 1 { 2 } else { 1 };
                let scales = if normalize { tokens + ROWS_WARPS } else { 0 };
                let sums = turns * columns.chunk * columns.chunks_per_block;
                let floats = rows * (tokens + sums) + scales;
                Geometry {
                    cluster,
                    ..geometry(splits.blocks, columns.tiles, columns.block(), 4 * floats)
                }
            }
            Variant::RolloutChain {
                dtype,
                arithmetic,
                tokens,
                ..
            } => {
                let tile = ChainTile::new(dtype, arithmetic, tokens);
                Geometry {
                    grid: [batch * tile.cluster, 1, 1],
                    block: tile.block(),
                    shared_bytes: tile.shared_bytes,
                    cluster: 1,
                }
            }
            Variant::HeadFusion { .. } => geometry(
                window_len.div_ceil(columns.row_groups() * FUSION_ROWS),
                layers * columns.tiles,
                columns.block(),
                0,
            ),
            Variant::ZeroFill => geometry(1, 1, FILL_BLOCK, 0),
            Variant::Discard => geometry(layers, 1, DISCARD_BLOCK, 0),
            Variant::RowScales | Variant::RolloutFirst => {
                geometry(window_len.div_ceil(ROW_BLOCK / WARP), 1, ROW_BLOCK, 0)
            }
            Variant::RolloutProduct { arithmetic, .. } => geometry(
                rows.div_ceil(PRODUCT_TILE),
                window_len.div_ceil(PRODUCT_TILE),
                arithmetic.product_block(),
                0,
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_cover_the_window_and_fit_the_warps() {
        for dtype in DType::ALL {
            for aligned in [false, true] {
                let granule = 16 / dtype.size_bytes() as u32;
                for len in 1..5000 {
                    let columns = Columns::new(dtype, len, aligned);
                    let Columns {
                        chunk,
                        chunks_per_block,
                        tiles,
                    } = columns;
                    assert!(chunk * chunks_per_block * tiles >= len);
                    assert_eq!(chunk % granule, 0);
                    assert!(chunk / granule <= if aligned { 32 } else { 31 });
                    assert!((1..=ROWS_WARPS).contains(&chunks_per_block));
                    assert!(columns.block() <= 256);
                }
            }
        }
    }
}
