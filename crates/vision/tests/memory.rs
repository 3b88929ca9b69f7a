//! Memory: what a plan of tiles promises against what is taken. A binary of its own, because it counts every byte that is
//! allocated.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

#[path = "it/made_up.rs"]
mod made_up;

use std::path::Path;

use candle_core::Device;
use imaging::Picture;
use test_support::{Counting, alone, most_during};
use vision::upscale::{Tiling, Upscaler};
use vision::{VisionError, Weights};

#[global_allocator]
static COUNTING: Counting = Counting;

const FAMILIES: [(&str, &str); 5] = [
    ("models/alchemy/esrgan_x4.safetensors", "RRDBNet"),
    ("models/alchemy/compact_x4.safetensors", "SRVGGNetCompact"),
    ("cases/own/span_x2.safetensors", "SPAN"),
    ("cases/own/plksr_dysample_x4.safetensors", "RealPLKSR"),
    ("own/dat_x2", "DAT"),
];

fn upscaler(name: &str) -> Upscaler {
    if name.starts_with("own/") {
        return Upscaler::load(&Weights::from_tensors(made_up::case(name).0, &Device::Cpu)).unwrap();
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let weights = Weights::open(&path, &Device::Cpu).unwrap();
    Upscaler::load(&weights.unwrapped(&["net"])).unwrap()
}

fn picture(width: u32, height: u32, has_alpha: bool) -> Picture {
    let channels = if has_alpha { 4 } else { 3 };
    let bytes = (0..width * height * channels).map(|i| (i * 31 % 251) as u8).collect();
    if has_alpha {
        Picture::from_rgba(width, height, bytes).unwrap()
    } else {
        Picture::from_rgb(width, height, bytes).unwrap()
    }
}

/// Most bytes that the kernels take for themselves, whatever the tile.
const KERNEL_SCRATCH: usize = 1 << 20;

/// Bytes that were promised and bytes that were taken, the picture given not counted.
fn promised_and_taken(net: &Upscaler, source: &Picture, tiling: Tiling) -> (usize, usize) {
    let (width, height) = (source.width(), source.height());
    let promised = net
        .plan(width, height, source.has_alpha(), tiling)
        .unwrap()
        .peak_bytes();
    let (taken, _) = most_during(|| drop(net.upscale(source, tiling, &mut |_, _| true).unwrap()));
    (promised, taken)
}

#[test]
fn no_family_takes_more_than_its_plan_promises() {
    let _alone = alone();
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
        for has_alpha in [false, true] {
            let (promised, taken) = promised_and_taken(&net, &picture(160, 160, has_alpha), tiling);
            if taken > promised || promised > 4 * taken {
                wrong.push(format!(
                    "{family}, alpha {has_alpha}: promised {promised}, taken {taken}"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn a_tight_bound_makes_tiles_smaller_and_less_is_taken() {
    let _alone = alone();
    for (name, family) in FAMILIES {
        let net = upscaler(name);
        let with = |max_bytes| {
            let tiling = Tiling {
                tile: 128,
                overlap: 16,
                context: 0,
                max_bytes,
            };
            promised_and_taken(&net, &picture(128, 128, false), tiling)
        };
        let (roomy, roomy_taken) = with(usize::MAX);
        let Err(VisionError::NoRoom { needed_bytes, .. }) = net.plan(
            128,
            128,
            false,
            Tiling {
                max_bytes: 0,
                ..Tiling::default()
            },
        ) else {
            panic!("{family} fits into nothing");
        };
        let (tight, tight_taken) = with(needed_bytes);
        assert!(
            tight <= needed_bytes && needed_bytes < roomy,
            "{family}: {tight} is promised instead of {roomy}"
        );
        assert!(
            tight_taken <= tight + KERNEL_SCRATCH && tight_taken < roomy_taken,
            "{family}: {tight_taken} taken of {tight}, {roomy_taken} of {roomy}"
        );
    }
}

/// What reading the dearest header that is believed may hold: its tensors' names, shapes and places.
const HEADER_BYTES: usize = 32 << 20;

#[test]
fn a_hostile_header_holds_no_more_than_a_bound_and_an_impossible_one_nothing() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.safetensors");
    let held = |header: &[u8], length: u64| {
        std::fs::write(&path, [&length.to_le_bytes()[..], header].concat()).unwrap();
        let (most, opened) = most_during(|| Weights::open(&path, &Device::Cpu));
        (most, opened.is_ok())
    };
    for length in [u64::MAX, 1 << 60, 1 << 32, 2 << 20] {
        let (most, is_open) = held(b"{}", length);
        assert!(most <= 16 << 10 && !is_open, "a header of {length} bytes held {most}");
    }
    let tensors = |of: &dyn Fn(usize) -> String| {
        let mut header = "{".to_owned();
        for n in 0.. {
            let one = of(n);
            if header.len() + one.len() > 1 << 20 {
                break;
            }
            header += &one;
        }
        header.pop();
        header + "}"
    };
    // As many tensors as fit; names alone; one shape of very many axes; a note of very many pairs.
    let empty = |n: usize| format!(r#""{n}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}},"#);
    let axes = format!(
        r#"{{"a":{{"dtype":"U8","shape":[{}0],"data_offsets":[0,0]}}}}"#,
        "1,".repeat((512 << 10) - 50)
    );
    let notes = format!(r#"{{"__metadata__":{{{}"a":""}}}}"#, r#""a":"","#.repeat(125_000));
    for header in [tensors(&empty), axes, notes] {
        let (most, _) = held(header.as_bytes(), header.len() as u64);
        assert!(most <= HEADER_BYTES, "{}… held {most} bytes", &header[..40]);
    }
}
