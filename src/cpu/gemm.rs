//! Checked matrix views over the GEMM crate, single-threaded: the team is the parallelism.
//!
//! Of square matrices of 128 to 1,024 rows, one thread of an EPYC of family 26, minima of 31 products: gemm 225 to 262
//! GFLOP/s, faer 218 to 264, matrixmultiply 164 to 225, PyTorch (MKL) 102 to 116. Of 128 to 577 rows, one thread of one of
//! family 25, minima of 240 and of 48: gemm 82 to 88, private-gemm-x86 (faer's) 76 to 86, matrixmultiply 65 to 77.

use std::cell::Cell;

use dyn_stack::{MemBuffer, StackReq};
use gemm_common::Parallelism;
use gemm_common::cache::CACHE_INFO;
use gemm_common::gemm::{CACHELINE_ALIGN, L2_SLAB};

use crate::error::{Error, Result};

/// Rows of the left factor to be multiplied at a time, where nothing asks for fewer, by a right one that is kept in panels.
///
/// Of up to 48 the GEMM crate reads the right factor where it lies, of more it packs it first. With AVX-512, where its kernel
/// takes 64 columns at a time, the former is faster; with AVX2, where it takes 16, it is not, presumably since one row of a panel
/// lies so far from the next that few sets of a first-level cache hold them. Products of 128, 197, 512 and 577 rows on a 2-core EPYC of
/// family 25 (Zen 3), whose multiply-adds alone are 100 GFLOP/s, panels of 128 columns, minima of 240 and of 48 products: 48
/// rows at a time 82, 81, 72 and 72 GFLOP/s, all of them 88, 87, 87 and 78.
pub(crate) fn rows_at_once() -> usize {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512f") {
        return 48;
    }
    usize::MAX
}

/// A row-major matrix to read.
#[derive(Clone, Copy)]
pub(crate) struct MatrixRef<'a> {
    data: &'a [f32],
    stride: usize,
    rows: usize,
    columns: usize,
}

/// A row-major matrix to write.
pub(crate) struct MatrixMut<'a> {
    data: &'a mut [f32],
    stride: usize,
    rows: usize,
    columns: usize,
}

fn check(len: usize, stride: usize, rows: usize, columns: usize) {
    assert!(columns <= stride);
    assert!(rows == 0 || (rows - 1) * stride + columns <= len);
}

impl<'a> MatrixRef<'a> {
    /// `[rows, columns]` with `stride` elements from row to row.
    ///
    /// # Panics
    /// Where `data` is too short.
    pub fn new(data: &'a [f32], stride: usize, rows: usize, columns: usize) -> Self {
        check(data.len(), stride, rows, columns);
        MatrixRef {
            data,
            stride,
            rows,
            columns,
        }
    }
}

impl<'a> MatrixMut<'a> {
    /// `[rows, columns]` with `stride` elements from row to row.
    ///
    /// # Panics
    /// Where `data` is too short.
    pub fn new(data: &'a mut [f32], stride: usize, rows: usize, columns: usize) -> Self {
        check(data.len(), stride, rows, columns);
        MatrixMut {
            data,
            stride,
            rows,
            columns,
        }
    }
}

/// Gives this thread the buffer, as large as a second-level cache, that the GEMM crate multiplies in. The crate would make it
/// in the thread's first product, where nothing can be returned: it ends the process when there is no memory. What it
/// takes beside that, where neither factor is packed, is a few bytes.
///
/// # Errors
/// [`Error::HostMemory`].
pub(crate) fn prepare_thread() -> Result<()> {
    thread_local! {
        static IS_PREPARED: Cell<bool> = const { Cell::new(false) };
    }
    if IS_PREPARED.get() {
        return Ok(());
    }
    let bytes = CACHE_INFO[1].cache_bytes;
    let buffer = MemBuffer::try_new(StackReq::new_aligned::<u8>(bytes, CACHELINE_ALIGN));
    L2_SLAB.set(buffer.map_err(|_| Error::HostMemory {
        what: "the buffer of a thread's matrix products",
        required: bytes,
    })?);
    IS_PREPARED.set(true);
    Ok(())
}

/// `to = left * right`, or `to += left * right` where `add`.
///
/// # Panics
/// Where the extents do not fit each other.
pub(crate) fn multiply(to: MatrixMut<'_>, add: bool, left: MatrixRef<'_>, right: MatrixRef<'_>) {
    assert_eq!(left.columns, right.rows);
    assert_eq!((to.rows, to.columns), (left.rows, right.columns));
    // In columns, as the crate's kernels would have them: the transpose of the product is that of the factors' transposes
    // in the other order.
    //
    // SAFETY: the views were checked to hold their extents, and `to` is borrowed mutably, so nothing aliases it. Strides
    // are below `isize::MAX` since they index slices.
    unsafe {
        gemm_f32::gemm::f32::get_gemm_fn()(
            to.columns,
            to.rows,
            left.columns,
            to.data.as_mut_ptr(),
            to.stride as isize,
            1,
            add,
            right.data.as_ptr(),
            right.stride as isize,
            1,
            left.data.as_ptr(),
            left.stride as isize,
            1,
            f32::from(u8::from(add)),
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
