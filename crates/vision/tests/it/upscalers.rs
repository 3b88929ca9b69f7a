use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Tensor};
use imaging::{Mask, Picture, Planar};
use vision::upscale::{Tiling, Upscaler};
use vision::{VisionError, Weights};

use crate::fidelity::root;
use crate::{made_up, runner};

/// A network and the rest of its case, with its weights stored or made up.
fn own(name: &str) -> (BTreeMap<String, Tensor>, HashMap<String, Tensor>) {
    if root().join(format!("cases/{name}.json")).is_file() {
        return made_up::case(name);
    }
    let tensors =
        candle_core::safetensors::load(root().join(format!("cases/{name}.safetensors")), &Device::Cpu).unwrap();
    let net = tensors
        .iter()
        .filter_map(|(key, t)| Some((key.strip_prefix("net.")?.to_owned(), t.clone())))
        .collect();
    (net, tensors)
}

fn check(name: &str, architecture: &str, scale: usize) {
    let (net, tensors) = own(&format!("own/{name}"));
    let upscaler = Upscaler::load(&Weights::from_tensors(net, &Device::Cpu)).unwrap();
    assert_eq!((upscaler.architecture(), upscaler.scale()), (architecture, scale));
    let (_, c, h, w) = tensors["x"].dims4().unwrap();
    let values = |t: &Tensor| {
        t.to_dtype(DType::F32)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap()
    };
    let source = Planar::new(c, w as u32, h as u32, values(&tensors["x"])).unwrap();
    let got = upscaler.forward(&source).unwrap();
    let expected = values(&tensors["y"]);
    let most = got
        .data()
        .iter()
        .zip(&expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert_eq!(got.data().len(), expected.len());
    let range = expected.iter().fold(1.0f32, |most, v| most.max(v.abs()));
    assert!(most <= 1e-4 * range, "{name} differs by {most} in a range of {range}");
}

#[test]
fn real_plksr_gives_the_references_numbers() {
    check("plksr_x4", "RealPLKSR", 4);
}

#[test]
fn real_plksr_with_dysample_and_layer_norm_gives_the_references_numbers() {
    check("plksr_dysample_x4", "RealPLKSR", 4);
}

#[test]
fn span_gives_the_references_numbers() {
    check("span_x2", "SPAN", 2);
}

#[test]
fn dat_gives_the_references_numbers() {
    check("dat_x2", "DAT", 2);
}

#[test]
fn a_folded_x1_network_gives_the_references_numbers() {
    check("esrgan_x1", "RRDBNet", 1);
}

fn source(width: u32, height: u32) -> Picture {
    let bytes = (0..width * height * 3).map(|i| (i * 31 % 251) as u8).collect();
    Picture::from_rgb(width, height, bytes).unwrap()
}

#[test]
fn old_and_new_keys_are_one_network() {
    let open = |name: &str| Upscaler::load(&runner::open(&root().join("models/alchemy").join(name)).unwrap()).unwrap();
    let source = source(12, 9).to_planar();
    let new = open("esrgan_x4.safetensors").forward(&source).unwrap();
    let old = open("esrgan_x4_oldkeys.pth").forward(&source).unwrap();
    let most = new
        .data()
        .iter()
        .zip(old.data())
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!(most <= 1e-6, "differs by {most}");
}

/// Tiles see nothing beyond their edge, so near it their values are a little off; the overlap fades that out, the
/// better the more is shared. This network's values near an edge of nothing are far off, trained ones' are not.
#[test]
fn tiles_fade_into_each_other() {
    let net = Upscaler::load(&runner::open(&root().join("models/alchemy/compact_x4.safetensors")).unwrap()).unwrap();
    let smooth = source(9, 7).resized(90, 70, imaging::Filter::Bicubic);
    let run = |tile, overlap| {
        net.upscale(
            &smooth,
            Tiling {
                tile,
                overlap,
                context: overlap * 3 / 8,
                max_bytes: usize::MAX,
            },
            &mut |_, _| true,
        )
        .unwrap()
    };
    let whole = run(512, 0);
    let apart = |overlap| {
        let tiled = run(64, overlap);
        let steps = whole
            .data()
            .iter()
            .zip(tiled.data())
            .map(|(a, b)| f64::from(a.abs_diff(*b)));
        steps.sum::<f64>() / whole.data().len() as f64
    };
    let (none, some, much) = (apart(0), apart(8), apart(32));
    assert!(
        much < some && some < none,
        "mean difference {none} without overlap, {some} with 8, {much} with 32"
    );
    assert!(much < 0.5, "mean difference {much} of 255");
}

/// How far the difference of two pictures steps from one column to the next on average, in steps of 255: where tiles fade
/// into each other, and elsewhere.
fn roughness(whole: &Picture, tiled: &Picture, fades: impl Fn(usize) -> bool) -> [f64; 2] {
    let row = whole.width() as usize * 3;
    let apart: Vec<i32> = (whole.data().iter().zip(tiled.data()))
        .map(|(a, b)| i32::from(*b) - i32::from(*a))
        .collect();
    let (mut sums, mut counts) = ([0.0; 2], [0.0; 2]);
    for row in apart.chunks_exact(row) {
        for (at, (left, right)) in row.iter().zip(&row[3..]).enumerate() {
            let kind = usize::from(!fades(at / 3));
            sums[kind] += f64::from((right - left).abs());
            counts[kind] += 1.0;
        }
    }
    [sums[0] / counts[0], sums[1] / counts[1]]
}

/// Mean and largest difference of 255 that docs/PERFORMANCE.md states, for tiny networks with tiles of 48 of which 16 are
/// shared and 6 left out. RealPLKSR's group norms and DAT's attention over channels take their statistics from a whole tile;
/// their difference is everywhere alike and no rougher where tiles meet.
#[test]
fn tiled_differs_from_whole_by_no_more_than_is_stated_and_without_a_seam_in_every_family() {
    const TILE: usize = 48;
    const SHARED: usize = 16;
    const LEFT_OUT: usize = 6;
    let apart = |name: &str, family: &str| {
        let net = if name.starts_with("models/") {
            Upscaler::load(&runner::open(&root().join(name)).unwrap()).unwrap()
        } else {
            Upscaler::load(&Weights::from_tensors(own(name).0, &Device::Cpu)).unwrap()
        };
        assert_eq!(net.architecture(), family);
        let picture = source(9, 7).resized(96, 72, imaging::Filter::Bicubic);
        let run = |tile, overlap, context| {
            let tiling = Tiling {
                tile,
                overlap,
                context,
                max_bytes: usize::MAX,
            };
            net.upscale(&picture, tiling, &mut |_, _| true).unwrap()
        };
        let (whole, tiled) = (run(512, 0, 0), run(TILE, SHARED, LEFT_OUT));
        let steps = || whole.data().iter().zip(tiled.data()).map(|(a, b)| a.abs_diff(*b));
        let mean = steps().map(f64::from).sum::<f64>() / whole.data().len() as f64;
        let fades = |x: usize| {
            let inside = x / net.scale() % (TILE - SHARED);
            x / net.scale() >= TILE - SHARED && (LEFT_OUT..SHARED - LEFT_OUT).contains(&inside)
        };
        (mean, steps().max().unwrap(), roughness(&whole, &tiled, fades))
    };
    let stated = [
        ("models/alchemy/esrgan_x4.safetensors", "RRDBNet", 0.01, 1),
        ("models/alchemy/compact_x4.safetensors", "SRVGGNetCompact", 0.01, 1),
        ("own/span_x2", "SPAN", 0.01, 1),
        ("own/plksr_x4", "RealPLKSR", 6.0, 120),
        ("own/dat_x2", "DAT", 5.0, 70),
    ];
    let mut beyond = Vec::new();
    for (name, family, most_mean, most) in stated {
        let (mean, worst, [in_fades, elsewhere]) = apart(name, family);
        if mean > most_mean || worst > most || in_fades > 1.25 * elsewhere + 0.01 {
            beyond.push(format!(
                "{family}: mean {mean}, largest {worst}, steps {in_fades} and {elsewhere}"
            ));
        }
    }
    assert!(beyond.is_empty(), "{beyond:?}");
}

#[test]
fn alpha_has_no_seam_and_what_nobody_sees_leaves_no_trace() {
    let net = Upscaler::load(&runner::open(&root().join("models/alchemy/compact_x4.safetensors")).unwrap()).unwrap();
    let tiling = Tiling {
        tile: 16,
        overlap: 6,
        context: 2,
        max_bytes: usize::MAX,
    };
    let (width, height) = (45, 38);
    let values = (0..width * height).map(|i| if i % width < 20 { 0 } else { (i * 7 % 256) as u8 });
    let alpha = Mask::new(width, height, values.collect()).unwrap();
    let visible = source(width, height).with_alpha(&alpha);
    let mut hidden = visible.clone();
    for pixel in hidden.data_mut().chunks_exact_mut(4).filter(|p| p[3] == 0) {
        pixel[..3].fill(255);
    }
    let enlarged = [&visible, &hidden].map(|p| net.upscale(p, tiling, &mut |_, _| true).unwrap());
    assert_eq!(enlarged[0], enlarged[1]);
    let whole = alpha.resized(4 * width, 4 * height, imaging::Filter::Bicubic);
    assert_eq!(enlarged[0].alpha(), Some(whole));
    let opaque = net
        .upscale(&visible.with_hidden_filled(), tiling, &mut |_, _| true)
        .unwrap();
    assert_eq!(enlarged[0].to_rgb(), opaque);
}

#[test]
fn progress_counts_the_steps_of_all_tiles_and_a_refusal_ends_the_work_at_once() {
    let mut networks: Vec<Upscaler> = ["esrgan_x4", "compact_x4"]
        .map(|name| {
            Upscaler::load(&runner::open(&root().join(format!("models/alchemy/{name}.safetensors"))).unwrap()).unwrap()
        })
        .into();
    for name in ["own/span_x2", "own/plksr_x4", "own/dat_x2"] {
        networks.push(Upscaler::load(&Weights::from_tensors(own(name).0, &Device::Cpu)).unwrap());
    }
    let picture = source(60, 40);
    let tiling = Tiling {
        tile: 32,
        overlap: 8,
        context: 2,
        max_bytes: usize::MAX,
    };
    for net in networks {
        let family = net.architecture();
        let n_tiles = net.plan(60, 40, false, tiling).unwrap().n_tiles();
        assert!(n_tiles > 3, "{family}");
        let mut told = Vec::new();
        net.upscale(&picture, tiling, &mut |done, total| {
            told.push((done, total));
            true
        })
        .unwrap();
        let total = told.len();
        assert!(total % n_tiles == 0 && total >= 2 * n_tiles, "{family}: {total} steps");
        assert!(
            told.iter().copied().eq((1..=total).map(|done| (done, total))),
            "{family}: {told:?}"
        );
        for last in [1, total / 2, total] {
            let mut n_told = 0;
            let ended = net.upscale(&picture, tiling, &mut |done, _| {
                n_told = done;
                done < last
            });
            assert!(matches!(ended, Err(VisionError::Cancelled)), "{family}");
            assert_eq!(n_told, last, "{family}");
        }
    }
}

#[test]
fn too_little_memory_and_too_large_results_are_refused_before_any_work() {
    let net = Upscaler::load(&runner::open(&root().join("models/alchemy/compact_x4.safetensors")).unwrap()).unwrap();
    let tight = Tiling {
        max_bytes: 10_000,
        ..Tiling::default()
    };
    let mut worked = false;
    let mut refused = |picture: Picture, tiling| {
        net.upscale(&picture, tiling, &mut |_, _| {
            worked = true;
            true
        })
        .err()
        .unwrap()
    };
    let error = refused(source(40, 40), tight);
    assert!(
        matches!(error, VisionError::NoRoom { .. }) && !error.is_of_request(),
        "{error}"
    );
    assert!(error.to_string().contains("\nhint: "), "{error}");
    let error = refused(Picture::filled(3072, 3072, [0; 3]), Tiling::default());
    assert!(
        matches!(error, VisionError::TooLarge { .. }) && error.is_of_request(),
        "{error}"
    );
    assert!(!worked);
}

#[test]
fn alpha_is_kept_and_odd_sizes_of_a_folded_network_work() {
    let net = Upscaler::load(&runner::open(&root().join("models/alchemy/realesrgan_x2.pth")).unwrap()).unwrap();
    let alpha = Mask::new(7, 5, (0..35).map(|i| i * 7).collect()).unwrap();
    let picture = source(7, 5).with_alpha(&alpha);
    let enlarged = net.upscale(&picture, Tiling::default(), &mut |_, _| true).unwrap();
    assert_eq!((enlarged.width(), enlarged.height()), (14, 10));
    assert!(enlarged.alpha().is_some());
}
