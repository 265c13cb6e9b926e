//! `matrix_stream`: all layers of an item multiplied in one block, or in one cluster of blocks, as fast as the maps can be
//! read.

use std::ops::{Range, RangeInclusive};

use super::parts::WARP;
use super::{Arithmetic, Fusion, Kernel, MapSource, Maps, example_shape};
use crate::config::{Output, RolloutConfig};
use crate::cuda::address::Address;
use crate::cuda::launch::{Geometry, Launch};
use crate::cuda::parameters::params;
use crate::cuda::variant::{Variant, symbol};
use crate::dtype::DType;
use crate::error::Result;
use crate::problem::Problem;

params! {
    /// Parameters of `matrix_stream`.
    MatrixStreamParams {
        out: Address,
        stages: u32,
        stage_bytes: u32,
        tile_rows: u32,
        normalize: u32,
        maps: Maps,
    }
}

/// Rows of a slab, and of P that go together.
const GROUP_ROWS: u32 = 16;
/// Most tokens whose P one block holds.
const BLOCK_TOKENS: u32 = 128;
/// Static shared memory: barriers and tiles, and of a grouped launch three copies of the parameters.
const STATIC_SHARED_BYTES: u32 = 12 << 10;
/// Slabs that are under way.
const SLABS: u32 = 3;
/// The fewest stages with which copies run ahead, and the most (`MAX_STAGES`).
const STAGES: RangeInclusive<u32> = 2..=16;
/// Stages that are worth more than tiles of more rows.
const ENOUGH_STAGES: u32 = 4;
/// Bytes of a stage of a grouped launch, whose members all have the same stages; less where blocks share a multiprocessor.
const GROUPED_STAGE_BYTES: u32 = 16 << 10;

/// The kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MatrixStream {
    /// Element type of the maps.
    pub dtype: DType,
    /// How products are computed; not [`Arithmetic::F32`].
    pub arithmetic: Arithmetic,
    /// Most tokens of a window ([`MatrixStream::TOKENS`]); above 128 by clusters of blocks.
    pub tokens: u32,
    /// How heads become one map.
    pub fusion: Fusion,
}

/// How the warps of a block are divided.
struct Division {
    /// Multiplying warps that share 16 rows.
    column_parts: u32,
    /// Warps that fuse.
    fusers: u32,
}

/// The ring of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixRing {
    /// Its stages.
    pub stages: u32,
    /// Bytes of each.
    pub stage_bytes: u32,
    /// Rows of a tile at most.
    pub tile_rows: u32,
    /// Blocks that share a multiprocessor.
    pub blocks: u32,
}

/// How `matrix_stream` is launched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RingMatrix {
    /// The kernel.
    pub kernel: MatrixStream,
    /// Blocks, or clusters, each of which takes an item at a time.
    pub sets: u32,
    /// The ring of each block.
    pub ring: MatrixRing,
}

/// All there are.
pub(super) fn all() -> impl IntoIterator<Item = MatrixStream> {
    let fused = |dtype| Fusion::ALL.map(|fusion| (dtype, fusion));
    let computed = MatrixStream::ARITHMETICS
        .into_iter()
        .flat_map(|arithmetic| MatrixStream::TOKENS.map(|tokens| (arithmetic, tokens)));
    let computed =
        computed.filter(|&(arithmetic, tokens)| MatrixStream::exists(arithmetic, tokens));
    let readers = DType::ALL.into_iter().flat_map(fused);
    readers.flat_map(move |(dtype, fusion)| {
        let kernel = move |(arithmetic, tokens)| MatrixStream {
            dtype,
            arithmetic,
            tokens,
            fusion,
        };
        computed.clone().map(kernel)
    })
}

impl MatrixStream {
    /// Token limits of the variants.
    pub const TOKENS: [u32; 3] = [64, 128, 208];

    /// What products are computed by.
    const ARITHMETICS: [Arithmetic; 3] = [Arithmetic::F16x3, Arithmetic::F16x2, Arithmetic::Tf32x3];

    /// Whether there is a variant: the slabs of tf32 leave clusters no room for a ring.
    pub fn exists(arithmetic: Arithmetic, tokens: u32) -> bool {
        let clustered = tokens > BLOCK_TOKENS;
        MatrixStream::ARITHMETICS.contains(&arithmetic)
            && !(clustered && arithmetic == Arithmetic::Tf32x3)
    }

    /// Blocks that compute an item together.
    pub const fn cluster(&self) -> u32 {
        if self.tokens <= BLOCK_TOKENS { 1 } else { 2 }
    }

    /// How the warps of a block are divided: as registers allow.
    const fn division(&self) -> Division {
        let (column_parts, fusers) = match (self.tokens, self.arithmetic) {
            (64, _) | (BLOCK_TOKENS, Arithmetic::Tf32x3) => (1, 3),
            (BLOCK_TOKENS, _) => (1, 7),
            _ => (2, 4),
        };
        Division {
            column_parts,
            fusers,
        }
    }

    /// Blocks that share a multiprocessor where they find room.
    const fn blocks(&self) -> u32 {
        if self.tokens == 64 { 2 } else { 1 }
    }

    /// Groups of rows of P that a block holds.
    const fn block_groups(&self) -> u32 {
        (self.tokens / GROUP_ROWS).div_ceil(self.cluster())
    }

    /// Threads of a block: those that multiply, that fuse, and the warp that fills the ring.
    const fn threads(&self) -> u32 {
        let division = self.division();
        let multipliers = self.block_groups() * division.column_parts;
        WARP * (multipliers + division.fusers + 1)
    }

    /// Dynamic shared memory of a block but for the ring: its rows of D, slabs, scales, diagonals, and the number of each
    /// warp's item.
    const fn fixed_bytes(&self) -> u32 {
        let tokens = self.tokens;
        let (state_row, slab_row) = match self.arithmetic {
            Arithmetic::F32 | Arithmetic::Tf32x3 => (4 * (tokens + 8), 2 * 4 * (tokens + 4)),
            Arithmetic::F16x2 => (2 * 2 * (tokens + 8), 2 * (tokens + 8)),
            Arithmetic::F16x3 => (2 * 2 * (tokens + 8), 2 * 2 * (tokens + 8)),
        };
        let diagonals = 4 * self.division().column_parts;
        let state = self.block_groups() * GROUP_ROWS * (state_row + diagonals);
        let numbers = 4 * self.threads() / WARP;
        (state + SLABS * GROUP_ROWS * (slab_row + 4) + numbers).next_multiple_of(16)
    }

    /// The ring of a block on windows of up to so many `tokens`, of so many `heads`, in `shared_bytes` of shared memory; none
    /// where rows of all heads have no place.
    pub fn ring(
        &self,
        [tokens, heads]: [u32; 2],
        shared_bytes: usize,
        grouped: bool,
    ) -> Option<MatrixRing> {
        let element = self.dtype.size_bytes() as u32;
        // The granules at both ends of a row, and of a plane.
        let stage = |rows: u32| {
            let plane = (rows * tokens.max(1) * element).checked_add(2 * 16)?;
            let bytes = heads.checked_mul(plane)?.checked_add(16)?;
            bytes.checked_next_multiple_of(16)
        };
        // Stages of so many bytes that fit a block, of which so many share a multiprocessor.
        let stages = |blocks: u32, bytes: u32| {
            let taken = STATIC_SHARED_BYTES + self.fixed_bytes();
            let room = (shared_bytes as u32 / blocks).checked_sub(taken)?;
            Some((room / bytes).min(*STAGES.end())).filter(|stages| STAGES.contains(stages))
        };
        let most_rows = GROUP_ROWS / self.cluster();
        let sharing = [self.blocks(), 1];
        if grouped {
            let stage_bytes = GROUPED_STAGE_BYTES / self.blocks() / 16 * 16;
            let mut fit = (1..=most_rows).rev();
            let tile_rows = fit.find(|&rows| stage(rows).is_some_and(|bytes| bytes <= stage_bytes));
            let mut shared = sharing.into_iter().filter_map(|blocks| {
                let stages = stages(blocks, stage_bytes)?;
                Some((blocks, stages))
            });
            let (blocks, stages) = shared.next()?;
            return Some(MatrixRing {
                stages,
                stage_bytes,
                tile_rows: tile_rows?,
                blocks,
            });
        }
        let ring = |(blocks, tile_rows)| {
            let stage_bytes = stage(tile_rows)?;
            Some(MatrixRing {
                stages: stages(blocks, stage_bytes)?,
                stage_bytes,
                tile_rows,
                blocks,
            })
        };
        let rows = sharing.into_iter().flat_map(|blocks| {
            let rows = (1..=most_rows).rev();
            rows.map(move |rows| (blocks, rows))
        });
        let enough = rows
            .filter_map(ring)
            .find(|ring| ring.stages >= ENOUGH_STAGES);
        enough.or_else(|| ring((1, 1)))
    }
}

impl RingMatrix {
    /// The matrix of `problem`, of not more layers than a launch takes, for `items` of a run.
    pub fn launch(
        &self,
        problem: &Problem,
        source: MapSource,
        items: &Range<usize>,
        out: Address,
    ) -> Launch {
        let RingMatrix { kernel, sets, ring } = *self;
        let params = MatrixStreamParams {
            out,
            stages: ring.stages,
            stage_bytes: ring.stage_bytes,
            tile_rows: ring.tile_rows,
            normalize: problem.config().normalize_rows.into(),
            maps: Maps::new(problem, source, &problem.layers(), items),
        };
        let geometry = Geometry {
            grid: [sets.min(items.len() as u32), kernel.cluster(), 1],
            block: kernel.threads(),
            shared_bytes: kernel.fixed_bytes() + ring.stages * ring.stage_bytes,
            cluster: 1,
            cooperative: false,
        };
        let unused = params.maps.unused_bytes();
        Launch::new(kernel.variant(), geometry, &params, unused)
    }
}

impl Kernel for MatrixStream {
    fn variant(&self) -> Variant {
        let MatrixStream {
            dtype,
            arithmetic,
            tokens,
            fusion,
        } = *self;
        let limit = format!("n{tokens}");
        let division = self.division();
        let parts = [dtype.name(), arithmetic.name(), &limit, fusion.name()];
        Variant {
            stem: "matrix_stream",
            symbol: symbol("matrix_stream", &parts, &[]),
            defines: vec![
                ("ELEMENT", dtype.name().to_owned()),
                arithmetic.define(),
                fusion.define(),
                ("MAX_TOKENS", tokens.to_string()),
                ("CLUSTER", self.cluster().to_string()),
                ("COLUMN_PARTS", division.column_parts.to_string()),
                ("COLUMNS", tokens.div_ceil(WARP).to_string()),
                ("FUSERS", division.fusers.to_string()),
                ("BLOCKS", self.blocks().to_string()),
                ("SLABS", SLABS.to_string()),
                ("FIXED_BYTES", self.fixed_bytes().to_string()),
            ],
            arguments: &[0],
            arch: if self.cluster() > 1 { 90 } else { 80 },
            block: self.threads(),
            blocks_per_multiprocessor: self.blocks(),
            grouped_blocks_per_multiprocessor: self.blocks(),
            static_shared_bytes: STATIC_SHARED_BYTES,
            shared_bytes: self.fixed_bytes(),
            cluster: self.cluster(),
            queues: true,
        }
    }

    fn example(&self, layers: usize, _: usize) -> Result<Problem> {
        let config = RolloutConfig {
            head_fusion: self.fusion.of_three_heads(),
            output: Output::Matrix,
            ..RolloutConfig::default()
        };
        let shape = example_shape(layers, self.tokens as usize - 3);
        Problem::new(shape, self.dtype, config)
    }
}
