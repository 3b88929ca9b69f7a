use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use imaging::Picture;
use vision::background::BackgroundRemover;
use vision::face::{FaceDetector, FaceRestorer};
use vision::post::{Networks, chain};
use vision::upscale::{Tiling, Upscaler};
use vision::{Result, VisionError, Weights};

use crate::fidelity::root;
use crate::runner;

#[derive(Default)]
struct Tiny {
    asked: AtomicUsize,
}

fn open(name: &str) -> Weights {
    runner::open(&root().join("models").join(name)).unwrap()
}

impl Networks for Tiny {
    fn faces(&self, name: &str) -> Result<(Arc<FaceDetector>, Arc<FaceRestorer>)> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if name == "CodeFormers" {
            return Err(VisionError::Missing { key: name.to_owned() });
        }
        let detector = FaceDetector::load(&open("retinaface_mobilenet0.25.safetensors"))?;
        let restorer = FaceRestorer::load(&open("alchemy/gfpgan_64.safetensors"))?;
        Ok((Arc::new(detector), Arc::new(restorer)))
    }

    fn upscaler(&self, _: &str) -> Result<Arc<Upscaler>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(Upscaler::load(&open("alchemy/compact_x4.safetensors"))?))
    }

    fn remover(&self) -> Result<Arc<BackgroundRemover>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(BackgroundRemover::load(&open(
            "alchemy/u2netp_tiny.safetensors",
        ))?))
    }
}

/// A bright square on a dark ground.
fn square(side: u32) -> Picture {
    let mut picture = Picture::filled(side, side, [20, 40, 60]);
    let inside = |n: u32| (side / 4..side * 3 / 4).contains(&n);
    for (n, pixel) in picture.data_mut().chunks_exact_mut(3).enumerate() {
        if inside(n as u32 % side) && inside(n as u32 / side) {
            pixel.copy_from_slice(&[220, 180, 90]);
        }
    }
    picture
}

#[test]
fn a_chain_enlarges_every_picture_and_cuts_it_out_last() {
    let mut seen = Vec::new();
    let names = ["strip_background", "RealESRGAN_x4plus", "GFPGAN"];
    let pictures = chain(
        &names,
        vec![square(24), square(40)],
        &Tiny::default(),
        0.5,
        &mut |done, total| {
            seen.push((done, total));
            true
        },
    )
    .unwrap();
    let sizes: Vec<_> = pictures
        .iter()
        .map(|p| (p.width(), p.height(), p.has_alpha()))
        .collect();
    assert_eq!(sizes, [(96, 96, true), (160, 160, true)]);
    assert!(seen.is_sorted_by_key(|(done, _)| *done), "{seen:?}");
    assert_eq!(seen.last(), Some(&(600, 600)));
}

#[test]
fn one_upscaler_in_a_chain_gives_what_it_gives_alone() {
    let networks = Tiny::default();
    let alone = networks
        .upscaler("NMKD_Siax")
        .unwrap()
        .upscale(&square(40), Tiling::default(), &mut |_, _| true)
        .unwrap();
    let chained = chain(&["NMKD_Siax"], vec![square(40)], &networks, 1.0, &mut |_, _| true).unwrap();
    assert_eq!(chained[0].data(), alone.data());
}

#[test]
fn no_names_leave_the_pictures_as_they_are() {
    let names: [&str; 0] = [];
    let same = chain(&names, vec![square(40)], &Tiny::default(), 1.0, &mut |_, _| true).unwrap();
    assert_eq!(same[0].data(), square(40).data());
}

#[test]
fn what_cannot_end_well_is_refused_before_any_work() {
    let mut worked = false;
    let mut run = |names: &[&str], picture: Picture, networks: &Tiny| {
        chain(names, vec![picture], networks, 1.0, &mut |_, _| {
            worked = true;
            true
        })
        .err()
        .unwrap()
    };
    let networks = Tiny::default();
    let error = run(&["GFPGAN", "sharpen"], square(40), &networks);
    assert!(matches!(error, VisionError::Input(_)), "{error}");
    assert_eq!(networks.asked.load(Ordering::Relaxed), 0);
    let error = run(
        &["RealESRGAN_x4plus"],
        Picture::filled(3072, 3072, [0; 3]),
        &Tiny::default(),
    );
    assert!(error.to_string().contains("12288x12288"), "{error}");
    let error = run(&["NMKD_Siax", "CodeFormers"], square(40), &Tiny::default());
    assert!(matches!(error, VisionError::Missing { .. }), "{error}");
    assert!(!worked);
}

#[test]
fn a_chain_stops_when_told() {
    let error = chain(
        &["NMKD_Siax", "strip_background"],
        vec![square(40)],
        &Tiny::default(),
        1.0,
        &mut |_, _| false,
    )
    .err()
    .unwrap();
    assert!(matches!(error, VisionError::Cancelled), "{error}");
}
