//! Matrix products on strided views, and a result that threads fill together.

use std::marker::PhantomData;

/// A result written by several threads, each at places of its own.
pub(super) struct Shared<'a> {
    start: *mut f32,
    len: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: all access goes through `slice` and `multiply`, whose callers promise that threads use separate places.
unsafe impl Send for Shared<'_> {}
// SAFETY: as for `Send`.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(super) fn new(numbers: &'a mut [f32]) -> Self {
        Self {
            start: numbers.as_mut_ptr(),
            len: numbers.len(),
            borrow: PhantomData,
        }
    }

    /// The `n` numbers from `at` on.
    ///
    /// # Safety
    /// While the slice lives nothing else touches these numbers.
    #[expect(clippy::mut_from_ref, reason = "the caller promises that slices do not overlap")]
    pub(super) unsafe fn slice(&self, at: usize, n: usize) -> &mut [f32] {
        assert!(
            at <= self.len && n <= self.len - at,
            "a kernel writes inside its result"
        );
        // SAFETY: the range lies in the borrowed numbers (asserted); the caller keeps it unshared.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), n) }
    }
}

/// A matrix in memory: element `(i, j)` is `numbers[i * row + j * column]`.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) numbers: &'a [f32],
    pub(super) row: usize,
    pub(super) column: usize,
}

/// Where a product goes: element `(i, j)` to `at + i * row + j`.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) shared: &'a Shared<'a>,
    pub(super) at: usize,
    pub(super) row: usize,
}

/// `a (m, k) · b (k, n)` for `[m, n, k]`, all at least 1, over `threads` threads.
///
/// # Safety
/// While it runs nothing else touches the `m` rows of `n` numbers at `out`.
pub(super) unsafe fn multiply([m, n, k]: [usize; 3], out: Place<'_>, a: View<'_>, b: View<'_>, threads: usize) {
    assert!(m > 0 && n > 0 && k > 0, "a product has a size");
    assert!(
        (m - 1) * a.row + (k - 1) * a.column < a.numbers.len(),
        "the left matrix is whole"
    );
    assert!(
        (k - 1) * b.row + (n - 1) * b.column < b.numbers.len(),
        "the right matrix is whole"
    );
    assert!(n <= out.row || m == 1, "the rows of a product do not overlap");
    assert!(
        out.at + (m - 1) * out.row + n <= out.shared.len,
        "a product lies inside its result"
    );
    let parallelism = if threads > 1 {
        gemm::Parallelism::Rayon(threads)
    } else {
        gemm::Parallelism::None
    };
    // SAFETY: the asserts above keep every element that is read or written inside its slice; strides are smaller than
    // slices and so fit isize; the caller keeps the result unshared.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.shared.start.add(out.at),
            1,
            out.row as isize,
            false,
            a.numbers.as_ptr(),
            a.column as isize,
            a.row as isize,
            b.numbers.as_ptr(),
            b.column as isize,
            b.row as isize,
            0.0f32,
            1.0f32,
            false,
            false,
            false,
            parallelism,
        );
    }
}
