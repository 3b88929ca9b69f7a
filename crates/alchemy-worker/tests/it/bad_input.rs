//! What strangers send, through the whole life of a job, for every form: reliability F085–F091, F110, F111, F115.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::crafted::{empty_gif, empty_jpeg, empty_png, empty_webp, fixture};
use crate::models;
use crate::world::{Ended, World};

/// Anything that can be refused by its first bytes or its address: time and memory it may cost.
const WITHIN: Duration = Duration::from_millis(250);
const MEMORY_BYTES: u64 = 300 << 20;

/// What can be refused before a pixel is decoded, and a word of the reason.
fn refused_by_header() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let narrow = "20 times longer";
    let mut rows = vec![
        ("png of 65535x65535", empty_png(65_535, 65_535), "65535x65535"),
        ("png of 2^31", empty_png(0x7fff_ffff, 0x7fff_ffff), "refused"),
        (
            "webp of 16383x16383 in 40 bytes",
            empty_webp(16_383, 16_383),
            "16383x16383",
        ),
        ("jpeg of 65500x65500", empty_jpeg(65_500, 65_500), "65500x65500"),
        ("gif of 65535x65535", empty_gif(65_535, 65_535), "65535x65535"),
        ("no pixel", empty_png(0, 7), "empty picture"),
        ("png of 1x16383", empty_png(1, 16_383), narrow),
        ("png of 16383x1", empty_png(16_383, 1), narrow),
        ("webp of 1x16383", empty_webp(1, 16_383), narrow),
        ("webp of 16383x1", empty_webp(16_383, 1), narrow),
        ("jpeg of 1x16383", empty_jpeg(1, 16_383), narrow),
        ("jpeg of 16383x1", empty_jpeg(16_383, 1), narrow),
        ("gif of 1x16383", empty_gif(1, 16_383), narrow),
        ("gif of 16383x1", empty_gif(16_383, 1), narrow),
        ("half a header", empty_png(64, 64)[..20].to_vec(), "broken PNG header"),
        (
            "a page that begins as a PNG",
            b"\x89PNG\r\n\x1a\n<html>a picture</html>".to_vec(),
            "broken PNG",
        ),
        (
            "a page that begins as a JPEG",
            b"\xff\xd8\xff<html>a picture</html>".to_vec(),
            "broken JPEG",
        ),
        (
            "a sound that begins as a WebP",
            b"RIFF\x24\0\0\0WEBPfmt \x10\0\0\0".to_vec(),
            "broken WebP",
        ),
        (
            "a script that begins as a GIF",
            b"GIF89a/*\xff\xff*/=alert(1)//".to_vec(),
            "larger than",
        ),
    ];
    let other: [(&str, &[u8]); 24] = [
        ("nothing", b""),
        ("a page", b"<!doctype html><html>not a picture</html>"),
        ("a page with a PNG in it", b"<!-- \x89PNG\r\n\x1a\n\0\0\0\x0dIHDR -->"),
        (
            "a drawing",
            b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        ),
        (
            "a drawing with a declaration",
            b"<?xml version='1.0'?><!DOCTYPE svg [<!ENTITY a 'b'>]><svg>&a;</svg>",
        ),
        ("a packed drawing", b"\x1f\x8b\x08\0\0\0\0\0\0\x03"),
        ("a tiff", b"II*\0\x08\0\0\0"),
        ("a tiff the other way round", b"MM\0*\0\0\0\x08"),
        ("an avif", b"\0\0\0\x20ftypavif\0\0\0\0avifmif1"),
        ("a heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
        ("a film", b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2"),
        ("an exr", b"v/1\x01\x02\0\0\0channels\0"),
        ("a radiance file", b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 8 +X 8\n"),
        ("a jpeg xl", b"\xff\x0a\xfa\x1f"),
        ("a jpeg xl in boxes", b"\0\0\0\x0cJXL \r\n\x87\n"),
        ("a jpeg 2000", b"\0\0\0\x0cjP  \r\n\x87\n"),
        ("a bitmap", b"BM\x46\0\0\0\0\0\0\0\x36\0\0\0"),
        ("an icon", b"\0\0\x01\0\x01\0\x10\x10"),
        ("a photoshop file", b"8BPS\0\x01\0\0"),
        ("a pixmap", b"P6 9 9 255 "),
        ("a document", b"%PDF-1.7\n1 0 obj"),
        ("a document with a JPEG in it", b"%PDF-1.7\n\xff\xd8\xff\xe0"),
        ("an archive", b"PK\x03\x04picture.png"),
        ("a program", b"\x7fELF\x02\x01\x01"),
    ];
    rows.extend(other.map(|(name, bytes)| (name, bytes.to_vec(), "not a PNG, JPEG, WebP or GIF")));
    rows
}

/// Addresses that give no picture; but for the first, nobody is asked.
const ADDRESSES: [&str; 25] = [
    // Nothing is there (404).
    "https://source.test/gone",
    "file:///etc/passwd",
    "ftp://example.org/a.png",
    "data:image/png;base64,iVBORw0KGgo=",
    "/etc/passwd",
    "\\\\\\\\server\\\\share\\\\a.png",
    "javascript:alert(1)",
    "http://127.0.0.1/a.png",
    "http://localhost:1/a.png",
    "http://10.0.0.7/a.png",
    "http://192.168.1.1/a.png",
    "http://169.254.169.254/latest/meta-data/",
    "http://[::1]/a.png",
    "http://[::ffff:10.0.0.1]/a.png",
    "http://2130706433/a.png",
    "http://0x7f.1/a.png",
    "http://0177.0.0.1/a.png",
    "http://0.0.0.0/a.png",
    "http://100.64.0.1/a.png",
    "http://172.16.0.1/a.png",
    "http://[::]/a.png",
    "http://[fd00::1]/a.png",
    "http://[fe80::1]/a.png",
    "http://[64:ff9b::7f00:1]/a.png",
    "http://somebody:secret@127.0.0.1/a.png",
];

pub fn reason(ended: &Ended) -> &str {
    ended.reason.as_deref().unwrap_or("none")
}

/// Asserts a fault with a reason, and for `is_cheap` its cost.
fn faulted(what: &str, ended: &Ended, word: &str) {
    assert_eq!(
        (ended.state.as_str(), &ended.result),
        ("faulted", &json!({})),
        "{what}: {ended:?}"
    );
    assert!(reason(ended).contains(word), "{what}: {}", reason(ended));
    assert!(
        ended.cpu <= WITHIN && ended.grown_bytes <= MEMORY_BYTES,
        "{what}: {ended:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_a_header_or_an_address_gives_away_is_refused_at_once_for_every_form() {
    let (models, state) = (models::all(), tempfile::tempdir().unwrap());
    let (mut world, forms) = World::with_every_form(state.path(), models.path(), 256).await;
    assert!(forms.len() >= 23, "{forms:?}");
    let mut walls = Vec::new();
    let mut most_bytes = 0;
    for (name, bytes, word) in refused_by_header() {
        world
            .between
            .sources
            .lock()
            .unwrap()
            .insert("bad".into(), Bytes::from(bytes));
        for form in &forms {
            let ended = {
                let request = world.file(form, "bad", Value::Null);
                world.ended(&request).await
            };
            faulted(&format!("{form}: {name}"), &ended, word);
            walls.push(ended.wall);
            most_bytes = most_bytes.max(ended.grown_bytes);
        }
    }
    for address in ADDRESSES {
        world
            .between
            .instead
            .lock()
            .unwrap()
            .insert("hostile".into(), address.into());
        for form in &forms {
            let request = world.file(form, "hostile", Value::Null);
            let ended = world.ended(&request).await;
            faulted(&format!("{form}: {address}"), &ended, "source");
            walls.push(ended.wall);
            most_bytes = most_bytes.max(ended.grown_bytes);
        }
    }
    // 12288×12288: four times 3072, the largest source the Horde hands out.
    let large = imaging::encode_png(&imaging::Picture::filled(3072, 3072, [90, 120, 40])).unwrap();
    world
        .between
        .sources
        .lock()
        .unwrap()
        .insert("large".into(), Bytes::from(large));
    for form in forms
        .iter()
        .filter(|form| form.starts_with("4x") || form.contains("x4plus"))
    {
        let request = world.file(form, "large", Value::Null);
        let ended = world.ended(&request).await;
        faulted(&format!("{form}: 3072x3072"), &ended, "12288x12288");
        walls.push(ended.wall);
        most_bytes = most_bytes.max(ended.grown_bytes);
    }
    // Other processes may have the machine for a moment: most, not each, must be as quick by the clock on the wall.
    walls.sort();
    let (median, slowest) = (walls[walls.len() / 2], walls[walls.len() - 1]);
    println!(
        "{} refusals: median {median:?}, slowest {slowest:?}, at most {most_bytes} bytes more",
        walls.len()
    );
    assert!(walls[walls.len() * 95 / 100] <= WITHIN, "{median:?} {slowest:?}");
    world.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_picture_that_breaks_off_is_a_fault_for_every_form() {
    let (models, state) = (models::all(), tempfile::tempdir().unwrap());
    let (mut world, forms) = World::with_every_form(state.path(), models.path(), 16).await;
    for name in ["grey.png", "grey.jpg", "lossy.webp", "flat.gif"] {
        let whole = fixture(name);
        let half = Bytes::copy_from_slice(&whole[..whole.len() * 2 / 3]);
        world.between.sources.lock().unwrap().insert("half".into(), half);
        for form in &forms {
            let request = world.file(form, "half", Value::Null);
            let ended = world.ended(&request).await;
            assert_eq!(ended.state, "faulted", "{form}: two thirds of {name}");
            assert!(reason(&ended).contains("refused"), "{form} {name}: {}", reason(&ended));
        }
    }
    world.finish().await;
}

#[tokio::test(start_paused = true)]
async fn options_of_any_kind_are_clamped_and_never_fault() {
    let (models, state) = (models::all(), tempfile::tempdir().unwrap());
    let (mut world, forms) = World::with_every_form(state.path(), models.path(), 16).await;
    let drawing = std::fs::read(models::tiny("tiny-shapes-clip/input0.png")).unwrap();
    world
        .between
        .sources
        .lock()
        .unwrap()
        .insert("good".into(), Bytes::from(drawing));
    let hostile = json!({
        "facefixer_strength": 1e308, "num_beams": -4, "min_length": 1e9, "max_length": "long", "top_p": [],
        "repetition_penalty": null, "top_count": 4_000_000_000u64, "rank": {}, "similarity": true,
    });
    for form in &forms {
        let request = world.file(form, "good", hostile.clone());
        let ended = world.ended(&request).await;
        assert_eq!(ended.state, "ok", "{form}: {}", reason(&ended));
    }
    world.finish().await;
}
