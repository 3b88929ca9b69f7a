//! Matrix products: rows read where they lie, times a panel of a few vectors' width that was packed before.
//!
//! Every product of this crate has this form, because one side can always be packed cheaply: the columns of a picture, a
//! tile's Winograd points, the queries of attention, the weight or the rows of a linear layer. The other side is only ever
//! read one number at a time, so it needs no packing, whatever its strides.

use std::marker::PhantomData;

use super::lanes::{Lanes, dispatched, width};

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

/// `k` rows of `columns` numbers, each padded with zeros to whole vectors: [`padded`] numbers apart.
#[derive(Clone, Copy)]
pub(super) struct Panel<'a> {
    pub(super) numbers: &'a [f32],
    pub(super) columns: usize,
}

/// Columns of a full panel: three vectors.
pub(super) fn panel_width() -> usize {
    3 * width()
}

/// The room of a panel's row: whole vectors.
pub(super) fn padded(columns: usize) -> usize {
    columns.next_multiple_of(width())
}

/// `a (m, k) · panel (k, columns)`, all sizes at least 1; `add` adds it to what is at `out`.
///
/// # Safety
/// While it runs nothing else touches the `m` rows of `columns` numbers at `out`.
pub(super) unsafe fn multiply([m, k]: [usize; 2], out: Place<'_>, a: View<'_>, panel: Panel<'_>, add: bool) {
    let columns = panel.columns;
    assert!(m > 0 && columns > 0 && k > 0, "a product has a size");
    assert!(columns <= panel_width(), "a panel has three vectors at most");
    assert!(
        (m - 1) * a.row + (k - 1) * a.column < a.numbers.len(),
        "the left matrix is whole"
    );
    assert!(k * padded(columns) <= panel.numbers.len(), "the panel is whole");
    assert!(columns <= out.row || m == 1, "the rows of a product do not overlap");
    assert!(
        out.at + (m - 1) * out.row + columns <= out.shared.len,
        "a product lies inside its result"
    );
    run(&Block {
        m,
        k,
        a,
        panel,
        // SAFETY: the place lies inside the result (asserted).
        out: unsafe { out.shared.start.add(out.at) },
        out_row: out.row,
        add,
    });
}

/// A checked product.
pub(super) struct Block<'a> {
    m: usize,
    k: usize,
    a: View<'a>,
    panel: Panel<'a>,
    out: *mut f32,
    out_row: usize,
    add: bool,
}

#[inline(always)]
unsafe fn run_any<L: Lanes>(block: &Block<'_>) {
    // SAFETY: the block was checked by `multiply`, the vectors by `dispatched`.
    unsafe { L::multiply(block) }
}
dispatched! {
    fn run(block: &Block<'_>) = run_any
}

/// Numbers of the largest block of registers: 8 rows of 3 vectors of 16.
const REGISTERS: usize = 8 * 3 * 16;

impl Block<'_> {
    /// # Safety
    /// The block is checked and the processor has the vectors.
    #[inline(always)]
    pub(super) unsafe fn run<L: Lanes, const ROWS: usize>(&self) {
        // SAFETY: passed on.
        unsafe {
            match self.panel.columns.div_ceil(L::COUNT) {
                1 => self.run_vectors::<L, ROWS, 1>(),
                2 => self.run_vectors::<L, ROWS, 2>(),
                _ => self.run_vectors::<L, ROWS, 3>(),
            }
        }
    }

    #[inline(always)]
    unsafe fn run_vectors<L: Lanes, const ROWS: usize, const VECTORS: usize>(&self) {
        let whole = self.panel.columns == VECTORS * L::COUNT;
        let mut row = 0;
        while row < self.m {
            let rows = ROWS.min(self.m - row);
            let mut left = [self.a.numbers.as_ptr(); ROWS];
            for (i, left) in left.iter_mut().enumerate() {
                // Rows beyond the last repeat it; their results are dropped.
                // SAFETY: the row is one of the matrix (checked).
                *left = unsafe { self.a.numbers.as_ptr().add((row + i.min(rows - 1)) * self.a.row) };
            }
            // SAFETY: the rows lie in the result (checked).
            let out = unsafe { self.out.add(row * self.out_row) };
            if whole && rows == ROWS {
                // SAFETY: all vectors lie within the rows.
                unsafe { self.registers::<L, ROWS, VECTORS>(left, out, self.out_row, self.add) };
            } else {
                let mut edge = [0f32; REGISTERS];
                let width = VECTORS * L::COUNT;
                // SAFETY: the buffer holds the largest block; only existing rows and columns are copied out.
                unsafe {
                    self.registers::<L, ROWS, VECTORS>(left, edge.as_mut_ptr(), width, false);
                    for i in 0..rows {
                        let line = std::slice::from_raw_parts_mut(out.add(i * self.out_row), self.panel.columns);
                        for (out, v) in line.iter_mut().zip(&edge[i * width..]) {
                            *out = if self.add { *out + *v } else { *v };
                        }
                    }
                }
            }
            row += ROWS;
        }
    }

    /// `ROWS` rows by `VECTORS` vectors, held in registers over all of `k`.
    #[inline(always)]
    unsafe fn registers<L: Lanes, const ROWS: usize, const VECTORS: usize>(
        &self,
        left: [*const f32; ROWS],
        out: *mut f32,
        out_row: usize,
        add: bool,
    ) {
        // SAFETY: the caller checked that rows, panel and result are whole.
        unsafe {
            let mut sums = [[L::splat(0.0); VECTORS]; ROWS];
            let mut panel = self.panel.numbers.as_ptr();
            let mut at = 0;
            for _ in 0..self.k {
                let mut right = [L::splat(0.0); VECTORS];
                for (v, right) in right.iter_mut().enumerate() {
                    *right = L::load(panel.add(v * L::COUNT));
                }
                for i in 0..ROWS {
                    let factor = L::splat(*left[i].add(at));
                    for v in 0..VECTORS {
                        sums[i][v] = factor.fma(right[v], sums[i][v]);
                    }
                }
                at += self.a.column;
                panel = panel.add(VECTORS * L::COUNT);
            }
            for (i, sums) in sums.iter().enumerate() {
                for (v, sum) in sums.iter().enumerate() {
                    let to = out.add(i * out_row + v * L::COUNT);
                    let sum = if add { sum.add(L::load(to)) } else { *sum };
                    sum.store(to);
                }
            }
        }
    }
}

/// Packs `k` rows of `view`'s transpose: number `(i, j)` of the panel is `view(j, i)`, times `factor`.
pub(super) fn pack_transposed(view: View<'_>, k: usize, columns: usize, factor: f32, panel: &mut [f32]) {
    let room = padded(columns);
    for (start, rows) in (0..k).step_by(16).zip(panel[..k * room].chunks_mut(16 * room)) {
        let n = rows.len() / room;
        if view.column == 1 {
            for j in 0..columns {
                let line = &view.numbers[j * view.row + start..][..n];
                for (i, v) in line.iter().enumerate() {
                    rows[i * room + j] = v * factor;
                }
            }
        } else {
            for j in 0..columns {
                for i in 0..n {
                    rows[i * room + j] = view.numbers[j * view.row + (start + i) * view.column] * factor;
                }
            }
        }
        if columns < room {
            for row in rows.chunks_exact_mut(room) {
                row[columns..].fill(0.0);
            }
        }
    }
}
