//! Sound pictures that are unlike most, through the whole life of a job, for every form: what comes of one is, to the byte, what
//! comes of the same picture as a plain PNG. Reliability F086–F091.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use imaging::{Filter, Limits, Picture, decode};
use serde_json::Value;
use test_support::longer_animation;

use crate::bad_input::reason;
use crate::crafted::{
    exif, fixture, interlaced, jpeg_of, plain, png_of, png16, profile, turned, webp_of, with_chunk, with_profile,
    with_segment, with_webp_chunk,
};
use crate::models;
use crate::world::{Ended, World};

/// What a form gives for plain pictures, asked once.
struct Twins {
    world: World,
    forms: Vec<String>,
    known: BTreeMap<(String, Vec<u8>), Ended>,
}

/// What was told of a form, the format's name left out.
fn told(ended: &Ended) -> (&str, Value) {
    let mut result = ended.result.clone();
    if let Some(described) = result.get_mut("describe").and_then(Value::as_object_mut) {
        described.remove("format");
    }
    (&ended.state, result)
}

impl Twins {
    async fn new(state: &tempfile::TempDir, models: &tempfile::TempDir) -> Self {
        let (world, forms) = World::with_every_form(state.path(), models.path(), 16).await;
        assert!(forms.len() >= 23, "{forms:?}");
        let known = BTreeMap::new();
        Self { world, forms, known }
    }

    async fn run(&mut self, form: &str, bytes: &[u8]) -> Ended {
        self.world.source("picture.png", bytes.to_vec());
        let request = self.world.file(form, "picture.png", Value::Null);
        self.world.ended(&request).await
    }

    /// Every form gives the same for both files, and takes no more than a fault's time longer for the strange one.
    async fn alike(&mut self, name: &str, strange: &[u8], twin: &[u8]) {
        for form in self.forms.clone() {
            let key = (form.clone(), twin.to_vec());
            if !self.known.contains_key(&key) {
                let ended = self.run(&form, twin).await;
                assert_eq!(ended.state, "ok", "{form}: {name}, plain: {}", reason(&ended));
                self.known.insert(key.clone(), ended);
            }
            let ended = self.run(&form, strange).await;
            let expected = &self.known[&key];
            assert_eq!(ended.state, "ok", "{form}: {name}: {}", reason(&ended));
            assert_eq!(told(&ended), told(expected), "{form}: {name}");
            assert!(ended.picture == expected.picture, "{form}: {name}: another picture");
            let most = expected.cpu + Duration::from_millis(250);
            assert!(
                ended.cpu <= most,
                "{form}: {name}: {:?} instead of {:?}",
                ended.cpu,
                expected.cpu
            );
        }
    }
}

/// Looks otherwise after every turn.
fn uneven() -> Picture {
    let data = (0..36 * 24 * 3u32).map(|at| (at * at / 40 % 256) as u8);
    Picture::from_rgb(36, 24, data.collect()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_picture_that_lies_on_its_side_is_turned_once_for_every_form() {
    let (models, state) = (models::all(), tempfile::tempdir().unwrap());
    let mut twins = Twins::new(&state, &models).await;
    let jpeg = jpeg_of(&uneven(), 90);
    let stored = decode(&jpeg, &Limits::tiles(16)).unwrap();
    let (png, webp) = (imaging::encode_png(&stored).unwrap(), webp_of(&stored));
    let turns: BTreeSet<Vec<u8>> = (1..=8).map(|n| turned(&stored, n).data().to_vec()).collect();
    assert_eq!(turns.len(), 8);
    for n in 1..=8 {
        let twin = imaging::encode_png(&turned(&stored, n)).unwrap();
        let segment = [b"Exif\0\0", &exif(n, n % 2 == 0)[..]].concat();
        for (name, strange) in [
            ("PNG", with_chunk(&png, b"eXIf", &exif(n, false))),
            ("JPEG", with_segment(&jpeg, 0xe1, &segment)),
            ("WebP", with_webp_chunk(&webp, 0x08, b"EXIF", &exif(n, true))),
        ] {
            // One that stands upright and one that lies on its side will do for the third.
            if name != "WebP" || [1, 7].contains(&n) {
                twins.alike(&format!("{name} turned by {n}"), &strange, &twin).await;
            }
        }
    }
    twins.world.finish().await;
}

/// Flavours of colour, and the PNG each is told by.
fn flavours() -> Vec<(String, Vec<u8>, Vec<u8>)> {
    // What Pillow makes of the lossless ones.
    let kept = [
        "grey.png",
        "grey_alpha.png",
        "grey16.png",
        "palette.png",
        "palette_trns.png",
        "bilevel.png",
        "rgba.png",
        "interlaced_source.webp",
    ];
    let mut rows: Vec<(String, Vec<u8>, Vec<u8>)> = kept
        .map(|name| (name.to_owned(), fixture(name), fixture(&format!("{name}.expected.png"))))
        .into();
    // The room that decodes holds the others against Pillow.
    for name in [
        "lossy.webp",
        "lossy_alpha.webp",
        "rgb.jpg",
        "grey.jpg",
        "cmyk.jpg",
        "cmyk_plain.jpg",
        "ycck.jpg",
        "passes.jpg",
        "restarts.jpg",
    ] {
        rows.push((name.to_owned(), fixture(name), plain(&fixture(name))));
    }
    let mut add = |name: &str, strange: Vec<u8>, twin: Vec<u8>| rows.push((name.to_owned(), strange, twin));
    let samples: Vec<u16> = (0..24 * 16 * 4u32).map(|n| (n * 1040 % 65_536) as u16).collect();
    let eight: Vec<u8> = samples.iter().map(|v| ((u32::from(*v) + 128) / 257) as u8).collect();
    let rgb = Picture::from_rgb(24, 16, eight[..24 * 16 * 3].to_vec()).unwrap();
    let rgb = imaging::encode_png(&rgb).unwrap();
    let rgba = imaging::encode_png(&Picture::from_rgba(24, 16, eight.clone()).unwrap()).unwrap();
    add(
        "RGB of 16 bits",
        png16(24, 16, 2, &samples[..24 * 16 * 3], &[]),
        rgb.clone(),
    );
    add("RGBA of 16 bits", png16(24, 16, 6, &samples, &[]), rgba);
    let both = eight[..24 * 16 * 2]
        .chunks_exact(2)
        .flat_map(|p| [p[0], p[0], p[0], p[1]]);
    let both = Picture::from_rgba(24, 16, both.collect()).unwrap();
    add(
        "grey of 16 bits with alpha",
        png16(24, 16, 4, &samples[..24 * 16 * 2], &[]),
        imaging::encode_png(&both).unwrap(),
    );
    // Rec. 2100 PQ, and how bright the screen it was made on is: told and not applied.
    let bright = [
        test_support::png_chunk(b"cICP", &[9, 16, 0, 1]),
        test_support::png_chunk(b"mDCv", &[0x3f; 24]),
        test_support::png_chunk(b"cLLi", &[0, 1, 0, 0, 0, 1, 0, 0]),
    ];
    add("HDR", png16(24, 16, 2, &samples[..24 * 16 * 3], &bright.concat()), rgb);
    add(
        "interlaced",
        interlaced(&uneven()),
        imaging::encode_png(&uneven()).unwrap(),
    );
    let cmyk = with_profile(&fixture("cmyk.jpg"), &profile(b"CMYK", 557_168));
    add("CMYK with a profile", cmyk, plain(&fixture("cmyk.jpg")));
    let rgb = fixture("rgb.jpg");
    add(
        "JPEG with a profile",
        with_profile(&rgb, &profile(b"RGB ", 3144)),
        plain(&rgb),
    );
    let packed = png_of(&[], &[], &profile(b"RGB ", 3144));
    let packed = [b"p\0\0", &packed[8..packed.len() - 16]].concat();
    add(
        "PNG with a profile",
        with_chunk(&fixture("rgb.png"), b"iCCP", &packed),
        fixture("rgb.png"),
    );
    let webp = fixture("interlaced_source.webp");
    let strange = with_webp_chunk(&webp, 0x20, b"ICCP", &profile(b"RGB ", 3144));
    add("WebP with a profile", strange, plain(&webp));
    rows
}

#[tokio::test(start_paused = true)]
async fn every_flavour_of_colour_is_the_same_picture_for_every_form() {
    let (models, state) = (models::all(), tempfile::tempdir().unwrap());
    let mut twins = Twins::new(&state, &models).await;
    for (name, strange, twin) in flavours() {
        twins.alike(&name, &strange, &twin).await;
    }
    twins.world.finish().await;
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_frames_and_what_hides_behind_a_picture_are_only_the_first_for_every_form() {
    let (models, state) = (models::all(), tempfile::tempdir().unwrap());
    let mut twins = Twins::new(&state, &models).await;
    for name in ["animated.gif", "animated.png", "animated.webp"] {
        let long = longer_animation(&fixture(name), 10_000);
        twins
            .alike(name, &long, &fixture(&format!("{name}.expected.png")))
            .await;
    }
    let [png, jpeg, gif] = ["rgb.png", "rgb.jpg", "flat.gif"].map(fixture);
    let second = jpeg_of(&Picture::filled(300, 200, [1, 2, 3]), 50);
    let bomb = png_of(&png[..33], &[], &vec![0; 320 << 20]);
    let first_rows = png_of(&png[..33], &[], &[0; 16 * 73]);
    for (name, strange, twin) in [
        (
            "an archive behind a PNG",
            [&png[..], b"PK\x03\x04picture.png"].concat(),
            plain(&png),
        ),
        (
            "a page in a PNG",
            with_chunk(&png, b"tEXt", b"a\0<html><script>alert(1)</script>"),
            plain(&png),
        ),
        (
            "a script in a JPEG",
            with_segment(&jpeg, 0xfe, b"<?php system('id'); ?>"),
            plain(&jpeg),
        ),
        (
            "a document behind a JPEG",
            [&jpeg[..], b"%PDF-1.7\n1 0 obj"].concat(),
            plain(&jpeg),
        ),
        (
            "a brighter picture behind a JPEG",
            [&jpeg[..], &second].concat(),
            plain(&jpeg),
        ),
        ("a page behind a GIF", [&gif[..], b"<html>"].concat(), plain(&gif)),
        ("more pixels than the header says", bomb, plain(&first_rows)),
    ] {
        twins.alike(name, &strange, &twin).await;
    }
    twins.world.finish().await;
}

#[tokio::test(start_paused = true)]
async fn the_smallest_and_the_narrowest_pictures_are_served_by_every_form() {
    let (models, state) = (models::all(), tempfile::tempdir().unwrap());
    let mut twins = Twins::new(&state, &models).await;
    for (width, height) in [(1, 1), (1, 2), (1, 20), (20, 1), (3, 60), (60, 3), (2, 2)] {
        let shown = uneven().resized(width, height, Filter::Bicubic);
        let png = imaging::encode_png(&shown).unwrap();
        twins
            .alike(&format!("{width}x{height}"), &interlaced(&shown), &png)
            .await;
    }
    let dot = Picture::filled(1, 1, [255, 0, 0]);
    // One pixel of a palette of two.
    let gif = b"GIF89a\x01\0\x01\0\x80\0\0\xff\0\0\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;";
    let webp = imaging::encode_webp(&dot, imaging::WebpOptions::default()).unwrap();
    for (name, strange) in [("JPEG", jpeg_of(&dot, 90)), ("WebP", webp), ("GIF", gif.to_vec())] {
        twins
            .alike(&format!("{name} of one pixel"), &strange, &plain(&strange))
            .await;
    }
    twins.world.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_flipped_bit_is_a_fault_or_the_picture_that_can_still_be_read_for_every_form() {
    let (models, state) = (models::all(), tempfile::tempdir().unwrap());
    let mut twins = Twins::new(&state, &models).await;
    let (mut n_refused, mut n_read) = (0, 0);
    for name in ["rgb.png", "passes.jpg", "restarts.jpg", "lossy.webp", "animated.gif"] {
        let whole = fixture(name);
        let mut place = 12_345u32;
        for _ in 0..3 {
            place = place.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Behind the headers, which others look at.
            let bit = whole.len() * 4 + (place >> 8) as usize % (whole.len() * 4);
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let name = format!("{name} with bit {bit} flipped");
            if decode(&flipped, &Limits::tiles(16)).is_ok() {
                n_read += 1;
                twins.alike(&name, &flipped, &plain(&flipped)).await;
                continue;
            }
            n_refused += 1;
            for form in twins.forms.clone() {
                let ended = twins.run(&form, &flipped).await;
                assert_eq!(ended.state, "faulted", "{form}: {name}: {ended:?}");
                assert!(
                    reason(&ended).contains("the source was refused"),
                    "{form}: {name}: {}",
                    reason(&ended)
                );
                assert!(
                    ended.cpu <= Duration::from_millis(250),
                    "{form}: {name}: {:?}",
                    ended.cpu
                );
            }
        }
    }
    assert!(n_refused >= 3 && n_read >= 3, "{n_refused} refused, {n_read} read");
    twins.world.finish().await;
}
