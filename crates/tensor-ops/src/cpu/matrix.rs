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
    let room = padded(panel.columns);
    // SAFETY: passed on.
    unsafe { multiply_in_place([m, k], out, a, (panel, room), add) }
}

/// The same with a panel whose rows lie `room` numbers apart; [`padded`] numbers of each row can be read, and only the
/// panel's columns of them count.
///
/// # Safety
/// As [`multiply`].
pub(super) unsafe fn multiply_in_place(
    [m, k]: [usize; 2],
    out: Place<'_>,
    a: View<'_>,
    (panel, room): (Panel<'_>, usize),
    add: bool,
) {
    let columns = panel.columns;
    assert!(m > 0 && columns > 0 && k > 0, "a product has a size");
    assert!(columns <= panel_width(), "a panel has three vectors at most");
    assert!(
        (m - 1) * a.row + (k - 1) * a.column < a.numbers.len(),
        "the left matrix is whole"
    );
    assert!(
        (k - 1) * room + padded(columns) <= panel.numbers.len(),
        "the panel is whole"
    );
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
        room,
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
    /// Numbers between the panel's rows.
    room: usize,
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

/// Numbers of a thin panel's column that are laid out at once.
const THIN: usize = 1024;
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
                _ if 4 * self.panel.columns <= L::COUNT && self.a.column == 1 => self.run_thin::<L>(),
                1 => self.run_vectors::<L, ROWS, 1>(),
                2 => self.run_vectors::<L, ROWS, 2>(),
                _ => self.run_vectors::<L, ROWS, 3>(),
            }
        }
    }

    /// Few columns: each number of the result as a sum along vectors of `k`, for which the columns are laid out first.
    #[inline(always)]
    unsafe fn run_thin<L: Lanes>(&self) {
        let mut line = [0f32; THIN];
        for column in 0..self.panel.columns {
            for from in (0..self.k).step_by(THIN) {
                let n = THIN.min(self.k - from);
                // SAFETY: the panel and the left matrix are whole (checked), `line` holds `n` numbers, and whole vectors end
                // within them.
                unsafe {
                    for (i, v) in line[..n].iter_mut().enumerate() {
                        *v = *self.panel.numbers.as_ptr().add((from + i) * self.room + column);
                    }
                    for row in 0..self.m {
                        let left = self.a.numbers.as_ptr().add(row * self.a.row + from);
                        let mut sums = [L::splat(0.0); 2];
                        let mut at = 0;
                        while at + 2 * L::COUNT <= n {
                            for (half, sum) in sums.iter_mut().enumerate() {
                                let at = at + half * L::COUNT;
                                *sum = L::load(left.add(at)).fma(L::load(line.as_ptr().add(at)), *sum);
                            }
                            at += 2 * L::COUNT;
                        }
                        let mut parts = [0f32; 16];
                        sums[0].add(sums[1]).store(parts.as_mut_ptr());
                        let rest: f32 = (at..n).map(|i| *left.add(i) * line[i]).sum();
                        let mut half = parts.len() / 2;
                        while half > 0 {
                            for i in 0..half {
                                parts[i] += parts[i + half];
                            }
                            half /= 2;
                        }
                        let out = self.out.add(row * self.out_row + column);
                        let before = if self.add || from > 0 { *out } else { 0.0 };
                        *out = before + parts[0] + rest;
                    }
                }
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
                panel = panel.wrapping_add(self.room);
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
