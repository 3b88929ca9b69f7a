//! An allocator that counts every byte, for tests that hold what a plan promises against what is taken.
//!
//! A test binary of its own installs it: `#[global_allocator] static COUNTING: Counting = Counting;`.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

/// The system's allocator with a count beside it.
pub struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn grown(bytes: usize) {
    let now = NOW.fetch_add(bytes, Ordering::Relaxed) + bytes;
    MOST.fetch_max(now, Ordering::Relaxed);
}

// SAFETY: every call is handed on unchanged to the system's allocator; only sizes are counted beside.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        grown(size);
        // SAFETY: as above.
        unsafe { System.realloc(place, layout, size) }
    }
}

/// Held by a test while it counts: the count is the whole process's.
pub fn alone() -> MutexGuard<'static, ()> {
    // What a failed test left behind is only a mark that it failed.
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes held now.
pub fn held() -> usize {
    NOW.load(Ordering::Relaxed)
}

/// The most bytes held during `work`, above what was held before, and what it gave.
pub fn most_during<T>(work: impl FnOnce() -> T) -> (usize, T) {
    let before = held();
    MOST.store(before, Ordering::Relaxed);
    let value = work();
    (MOST.load(Ordering::Relaxed).saturating_sub(before), value)
}
