//! Checked matrix views over the GEMM crate, single-threaded: the team is the parallelism.

use std::marker::PhantomData;

use crate::cpu::team::Shared;

/// A row-major matrix to read.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    data: &'a [f32],
    stride: usize,
    rows: usize,
    columns: usize,
}

/// A row-major matrix to write.
pub(crate) struct MatrixMut<'a> {
    /// The first entry; nobody else reads or writes the entries for `'a`.
    data: *mut f32,
    stride: usize,
    rows: usize,
    columns: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

fn check(len: usize, stride: usize, rows: usize, columns: usize) {
    assert!(columns <= stride);
    assert!(rows == 0 || (rows - 1) * stride + columns <= len);
}

impl<'a> Matrix<'a> {
    /// `[rows, columns]` with `stride` elements from row to row.
    ///
    /// # Panics
    /// Where `data` is too short.
    pub fn new(data: &'a [f32], stride: usize, rows: usize, columns: usize) -> Self {
        check(data.len(), stride, rows, columns);
        Matrix {
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
        // SAFETY: `data` is borrowed mutably for as long as the view lives.
        unsafe { Self::of_shared(Shared::new(data), stride, rows, columns) }
    }

    /// The same of a slice of which others may write other entries.
    ///
    /// # Safety
    /// Nobody else reads or writes the entries of the view until it is gone and a barrier has been passed.
    ///
    /// # Panics
    /// Where `data` is too short.
    pub unsafe fn of_shared(data: Shared<'a>, stride: usize, rows: usize, columns: usize) -> Self {
        check(data.len(), stride, rows, columns);
        MatrixMut {
            data: data.as_mut_ptr(),
            stride,
            rows,
            columns,
            lifetime: PhantomData,
        }
    }
}

/// `to = left * right`, or `to += left * right` where `add`.
///
/// # Panics
/// Where the extents do not fit each other.
pub(crate) fn multiply(to: MatrixMut<'_>, add: bool, left: Matrix<'_>, right: Matrix<'_>) {
    assert_eq!(left.columns, right.rows);
    assert_eq!((to.rows, to.columns), (left.rows, right.columns));
    // SAFETY: the views were checked to hold their extents, and the entries of `to` are its own, so nothing aliases them.
    // Strides are below `isize::MAX` since they index slices.
    unsafe {
        gemm::gemm(
            to.rows,
            to.columns,
            left.columns,
            to.data,
            1,
            to.stride as isize,
            add,
            left.data.as_ptr(),
            1,
            left.stride as isize,
            right.data.as_ptr(),
            1,
            right.stride as isize,
            f32::from(u8::from(add)),
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
