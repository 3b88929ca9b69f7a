//! Memory: what a plan of tiles promises against what is taken. A binary of its own, because it counts every byte that is
//! allocated.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::Device;
use imaging::Picture;
use vision::Weights;
use vision::upscale::{Tiling, Upscaler};

struct Counting;

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

#[global_allocator]
static COUNTING: Counting = Counting;

const FAMILIES: [(&str, &str); 5] = [
    ("models/alchemy/esrgan_x4.safetensors", "RRDBNet"),
    ("models/alchemy/compact_x4.safetensors", "SRVGGNetCompact"),
    ("cases/own/span_x2.safetensors", "SPAN"),
    ("cases/own/plksr_dysample_x4.safetensors", "RealPLKSR"),
    ("cases/own/dat_x2.safetensors", "DAT"),
];

fn upscaler(name: &str) -> Upscaler {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let weights = Weights::open(&path, &Device::Cpu).unwrap();
    Upscaler::load(&weights.unwrapped(&["net"])).unwrap()
}

fn picture(width: u32, height: u32) -> Picture {
    let bytes = (0..width * height * 3).map(|i| (i * 31 % 251) as u8).collect();
    Picture::from_rgb(width, height, bytes).unwrap()
}

/// Most bytes that the kernels take for themselves, whatever the tile.
const KERNEL_SCRATCH: usize = 1 << 20;

/// Bytes that were promised and bytes that were taken, the picture given not counted.
fn promised_and_taken(net: &Upscaler, side: u32, tiling: Tiling) -> (usize, usize) {
    let source = picture(side, side);
    let promised = net.plan(side, side, tiling).peak_bytes();
    let before = NOW.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    drop(net.upscale(&source, tiling, &mut |_, _| true).unwrap());
    (promised, MOST.load(Ordering::Relaxed) - before)
}

#[test]
fn no_family_takes_more_than_its_plan_promises() {
    let _alone = ONE_AT_A_TIME.lock().unwrap();
    let mut wrong = Vec::new();
    for (name, family) in FAMILIES {
        let net = upscaler(name);
        assert_eq!(net.architecture(), family);
        let tiling = Tiling {
            tile: 128,
            overlap: 16,
            context: 0,
            max_bytes: usize::MAX,
        };
        let (promised, taken) = promised_and_taken(&net, 160, tiling);
        if taken > promised || promised > 4 * taken {
            wrong.push(format!("{family}: promised {promised}, taken {taken}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn a_tight_bound_makes_tiles_smaller_and_less_is_taken() {
    let _alone = ONE_AT_A_TIME.lock().unwrap();
    for (name, family) in FAMILIES {
        let net = upscaler(name);
        let with = |max_bytes| {
            let tiling = Tiling {
                tile: 128,
                overlap: 16,
                context: 0,
                max_bytes,
            };
            promised_and_taken(&net, 128, tiling)
        };
        let (roomy, roomy_taken) = with(usize::MAX);
        let (tight, tight_taken) = with(roomy / 8);
        assert!(tight < roomy, "{family}: {tight} is promised instead of {roomy}");
        assert!(
            tight_taken <= tight + KERNEL_SCRATCH && tight_taken < roomy_taken,
            "{family}: {tight_taken} taken of {tight}, {roomy_taken} of {roomy}"
        );
    }
}
