//! What the host hands to each kernel, byte for byte: the mirror of `kernels/params.cuh`, where every field is
//! described. Device pointers are `u64`, strides count elements, flags are 0 or 1.
//!
//! `tests/kernels_abi.rs` compares sizes and offsets with the device side.
#![allow(missing_docs)] // The fields' one description is in params.cuh.

use bytemuck::{Pod, Zeroable};

use crate::layout;

/// Layers one launch can take.
pub const MAX_LAYERS_PER_LAUNCH: usize = 64;

/// Addresses one grouped launch can take, the first of which is 0.
pub const MAX_GROUP_ADDRESSES: usize = 509;

/// Declares `#[repr(C)]` plain data and lists its fields, so that a test can compare them with the device side.
macro_rules! params {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[repr(C)]
            #[derive(Clone, Copy, Debug, Zeroable, Pod)]
            pub struct $name {
                $(pub $field: $type,)*
            }
        )*

        /// Name, size in bytes and fields with their offsets of every struct, in the order of `params.cuh`.
        pub const LAYOUTS: &[StructLayout] = &[$(
            StructLayout {
                name: stringify!($name),
                bytes: size_of::<$name>(),
                fields: &[$((stringify!($field), std::mem::offset_of!($name, $field)),)*],
            },
        )*];
    };
}

/// Layout of one struct: see [`LAYOUTS`].
#[derive(Clone, Copy, Debug)]
pub struct StructLayout {
    /// The struct's name, the same on both sides.
    pub name: &'static str,
    /// Its size.
    pub bytes: usize,
    /// Its fields and their offsets in bytes.
    pub fields: &'static [(&'static str, usize)],
}

params! {
    /// The valid tokens of one item.
    Window {
        start: u32,
        len: u32,
    }

    /// The maps of one layer and its residual weights.
    LayerMaps {
        base: u64,
        stride_batch: i64,
        stride_head: i64,
        stride_row: i64,
        attention: f32,
        identity: f32,
    }

    /// The maps of a launch's layers and how they become fused entries.
    Maps {
        windows: u64,
        head_weights: u64,
        cuts: u64,
        batch: u32,
        heads: u32,
        tokens: u32,
        layers: u32,
        head_scale: f32,
        window_local: u32,
        causal: u32,
        discard_first: u32,
        discard_spares_origin: u32,
        reserved: u32,
        layer: [LayerMaps; MAX_LAYERS_PER_LAUNCH],
    }

    /// One of the members of a grouped launch.
    GroupMember {
        first_block: u32,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        threads: u32,
        first_word: u32,
        words: u32,
        reserved: u32,
    }

    /// 8 bytes of a member's parameters.
    GroupWord {
        value: u64,
        address: u32,
        reserved: u32,
    }

    /// Parameters of every grouped kernel.
    GroupParams {
        member: u64,
        word: u64,
        members: u32,
        reserved: u32,
        address: [u64; MAX_GROUP_ADDRESSES],
    }

    /// Parameters of `zero_fill`.
    ZeroFillParams {
        out: u64,
        len: u64,
    }

    /// Parameters of `rollout_rows`.
    RolloutRowsParams {
        start: u64,
        start_stride_batch: i64,
        partials_in: u64,
        partials_out: u64,
        out: u64,
        start_rows: u32,
        splits_in: u32,
        chunk_columns: u32,
        chunks_per_block: u32,
        maps: Maps,
    }

    /// Parameters of `rollout_chain`.
    RolloutChainParams {
        state: u64,
        out: u64,
        maps: Maps,
    }

    /// Parameters of `head_fusion`.
    HeadFusionParams {
        fused: u64,
        stride_layer: i64,
        stride_batch: i64,
        stride_row: i64,
        chunk_columns: u32,
        chunks_per_block: u32,
        maps: Maps,
    }

    /// Parameters of `discard`.
    DiscardParams {
        fused: u64,
        stride_layer: i64,
        stride_batch: i64,
        stride_row: i64,
        windows: u64,
        counts: u64,
        cuts: u64,
        batch: u32,
        layers: u32,
        causal: u32,
        discard_first: u32,
    }

    /// One layer of fused maps with all that turns them into `Ahat`.
    FusedMaps {
        base: u64,
        stride_batch: i64,
        stride_row: i64,
        windows: u64,
        cuts: u64,
        scales: u64,
        attention: f32,
        identity: f32,
        tokens: u32,
        causal: u32,
        discard_first: u32,
        discard_spares_origin: u32,
    }

    /// Parameters of `row_scales`.
    RowScalesParams {
        maps: FusedMaps,
        scales: u64,
    }

    /// One f32 matrix per item.
    Matrices {
        base: u64,
        stride_batch: i64,
        stride_row: i64,
    }

    /// Parameters of `rollout_first`.
    RolloutFirstParams {
        maps: FusedMaps,
        out: Matrices,
        out_windowed: u32,
        reserved: u32,
    }

    /// Parameters of `rollout_product`.
    RolloutProductParams {
        maps: FusedMaps,
        state: Matrices,
        out: Matrices,
        rows: u32,
        out_windowed: u32,
    }
}

// Every driver accepts 4 KB of kernel parameters.
const _: () = {
    let mut i = 0;
    while i < LAYOUTS.len() {
        assert!(LAYOUTS[i].bytes <= 4096);
        i += 1;
    }
};

impl From<layout::Window> for Window {
    fn from(window: layout::Window) -> Self {
        Window {
            start: window.start as u32,
            len: window.len as u32,
        }
    }
}
