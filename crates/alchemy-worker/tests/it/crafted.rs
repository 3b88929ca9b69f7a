//! Picture files as strangers make them: headers that lie, flavours few encoders write, and two formats in one.

use std::io::Write;

use flate2::Compression;
use flate2::write::ZlibEncoder;
use image::ExtendedColorType::Rgb8;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::webp::WebPEncoder;
use imaging::{Limits, Picture, decode};
use test_support::{png_chunk, png_head};

/// A fixture of the room that decodes.
pub fn fixture(name: &str) -> Vec<u8> {
    let path = format!("{}/../imaging/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The same picture as a PNG without anything odd.
pub fn plain(bytes: &[u8]) -> Vec<u8> {
    let shown = decode(bytes, &Limits::tiles(16)).expect("a sound picture");
    imaging::encode_png(&shown).expect("PNG takes everything")
}

/// A PNG that says it is this large and has nothing behind its header.
pub fn empty_png(width: u32, height: u32) -> Vec<u8> {
    [
        &png_head(width, height, [8, 6, 0, 0, 0])[..],
        b"\0\0\0\x10IDAT",
        &[0; 20],
    ]
    .concat()
}

/// A lossless WebP of 40 bytes that says it is this large.
pub fn empty_webp(width: u32, height: u32) -> Vec<u8> {
    let mut file = b"RIFF\x20\0\0\0WEBPVP8L\x14\0\0\0\x2f".to_vec();
    file.extend(((width - 1) | (height - 1) << 14).to_le_bytes());
    file.resize(40, 0);
    file
}

/// A JPEG of a frame's header and zeros.
pub fn empty_jpeg(width: u16, height: u16) -> Vec<u8> {
    let mut file = vec![0xff, 0xd8, 0xff, 0xc0, 0, 17, 8];
    file.extend(height.to_be_bytes());
    file.extend(width.to_be_bytes());
    file.extend([3, 1, 0x11, 0, 2, 0x11, 1, 3, 0x11, 1, 0xff, 0xda]);
    file.resize(80, 0);
    file
}

/// A GIF of a screen's size and zeros.
pub fn empty_gif(width: u16, height: u16) -> Vec<u8> {
    let mut file = b"GIF89a".to_vec();
    file.extend(width.to_le_bytes());
    file.extend(height.to_le_bytes());
    file.extend([0, 0, 0, 0x2c, 0, 0, 0, 0]);
    file.resize(60, 0);
    file
}

/// A PNG of samples of 16 bits, `colour` 0, 2, 4 or 6 as the standard numbers grey, RGB and both with alpha.
pub fn png16(width: u32, height: u32, colour: u8, samples: &[u16], extra: &[u8]) -> Vec<u8> {
    let row = samples.len() / height as usize;
    let rows = samples.chunks_exact(row).map(|row| {
        let values = row.iter().flat_map(|value| value.to_be_bytes());
        [0].into_iter().chain(values).collect::<Vec<u8>>()
    });
    let data: Vec<u8> = rows.flatten().collect();
    png_of(&png_head(width, height, [16, colour, 0, 0, 0]), extra, &data)
}

/// The picture with its pixels in Adam7's seven passes.
pub fn interlaced(shown: &Picture) -> Vec<u8> {
    // First column and row of a pass, and how many lie between.
    const PASSES: [[u32; 4]; 7] = [
        [0, 0, 8, 8],
        [4, 0, 8, 8],
        [0, 4, 4, 8],
        [2, 0, 4, 4],
        [0, 2, 2, 4],
        [1, 0, 2, 2],
        [0, 1, 1, 2],
    ];
    let mut data = Vec::new();
    for [x0, y0, dx, dy] in PASSES {
        if x0 >= shown.width() {
            continue;
        }
        for y in (y0..shown.height()).step_by(dy as usize) {
            data.push(0);
            let row = (x0..shown.width()).step_by(dx as usize);
            data.extend(row.filter_map(|x| shown.rgb_at(x, y)).flatten());
        }
    }
    png_of(&png_head(shown.width(), shown.height(), [8, 2, 0, 0, 1]), &[], &data)
}

/// A head, chunks between it and the pixels, and filtered rows.
pub fn png_of(head: &[u8], extra: &[u8], rows: &[u8]) -> Vec<u8> {
    let mut packed = ZlibEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(rows).expect("memory");
    let pixels = png_chunk(b"IDAT", &packed.finish().expect("memory"));
    [head, extra, &pixels, &png_chunk(b"IEND", b"")].concat()
}

/// The PNG with a chunk behind its head.
pub fn with_chunk(png: &[u8], name: &[u8; 4], content: &[u8]) -> Vec<u8> {
    [&png[..33], &png_chunk(name, content), &png[33..]].concat()
}

pub fn jpeg_of(shown: &Picture, quality: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = JpegEncoder::new_with_quality(&mut bytes, quality);
    encoder
        .encode(shown.data(), shown.width(), shown.height(), Rgb8)
        .expect("memory");
    bytes
}

/// Lossless.
pub fn webp_of(shown: &Picture) -> Vec<u8> {
    let mut bytes = Vec::new();
    WebPEncoder::new_lossless(&mut bytes)
        .encode(shown.data(), shown.width(), shown.height(), Rgb8)
        .expect("memory");
    bytes
}

/// The JPEG with a segment behind its first marker.
pub fn with_segment(jpeg: &[u8], marker: u8, content: &[u8]) -> Vec<u8> {
    let len = (content.len() as u16 + 2).to_be_bytes();
    [&jpeg[..2], &[0xff, marker], &len, content, &jpeg[2..]].concat()
}

/// The JPEG with a colour profile, in as many segments as it needs (ICC.1, annex B.4).
pub fn with_profile(jpeg: &[u8], profile: &[u8]) -> Vec<u8> {
    let parts: Vec<&[u8]> = profile.chunks(65_000).collect();
    let mut made = jpeg.to_vec();
    for (at, part) in parts.iter().enumerate().rev() {
        let head = [b"ICC_PROFILE\0", &[at as u8 + 1, parts.len() as u8][..]].concat();
        made = with_segment(&made, 0xe2, &[&head, *part].concat());
    }
    made
}

/// What looks like a colour profile of this kind (`RGB `, `CMYK`, …) as far as its header; its tables are noise.
pub fn profile(space: &[u8; 4], len: usize) -> Vec<u8> {
    let mut made: Vec<u8> = (0..len).map(|at| (at * 31 % 251) as u8).collect();
    made[..4].copy_from_slice(&(len as u32).to_be_bytes());
    made[8..12].copy_from_slice(&[4, 0x20, 0, 0]);
    made[12..16].copy_from_slice(b"prtr");
    made[16..20].copy_from_slice(space);
    made[20..24].copy_from_slice(b"Lab ");
    made[36..40].copy_from_slice(b"acsp");
    made
}

/// A lossless WebP with a chunk that the extended header's `flag` announces.
pub fn with_webp_chunk(webp: &[u8], flag: u8, name: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let size = imaging::probe(webp).expect("a WebP");
    let mut head = vec![flag, 0, 0, 0];
    head.extend(&(size.width - 1).to_le_bytes()[..3]);
    head.extend(&(size.height - 1).to_le_bytes()[..3]);
    let chunk = |name: &[u8; 4], content: &[u8]| {
        let padding = &[0][..content.len() % 2];
        [name, &(content.len() as u32).to_le_bytes()[..], content, padding].concat()
    };
    let extra = chunk(name, content);
    let (before, behind) = if name == b"ICCP" {
        (&extra[..], &[][..])
    } else {
        (&[][..], &extra[..])
    };
    let body = [b"WEBP", &chunk(b"VP8X", &head)[..], before, &webp[12..], behind].concat();
    [b"RIFF", &(body.len() as u32).to_le_bytes()[..], &body].concat()
}

/// EXIF with the orientation alone (TIFF 6.0, tag 0x0112), in either order of bytes.
pub fn exif(orientation: u8, big_endian: bool) -> Vec<u8> {
    if big_endian {
        [
            &b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0"[..],
            &[orientation, 0, 0, 0, 0, 0, 0],
        ]
        .concat()
    } else {
        [
            &b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0"[..],
            &[orientation, 0, 0, 0, 0, 0, 0, 0],
        ]
        .concat()
    }
}

/// The picture as EXIF says it stands: 2 is mirrored, 3 lies on its head, 6 and 8 on their sides (Exif 2.32, 4.6.4).
pub fn turned(stored: &Picture, orientation: u8) -> Picture {
    let (w, h) = (stored.width(), stored.height());
    let (width, height) = if orientation >= 5 { (h, w) } else { (w, h) };
    let from = |x: u32, y: u32| match orientation {
        2 => (w - 1 - x, y),
        3 => (w - 1 - x, h - 1 - y),
        4 => (x, h - 1 - y),
        5 => (y, x),
        6 => (y, h - 1 - x),
        7 => (w - 1 - y, h - 1 - x),
        8 => (w - 1 - y, x),
        _ => (x, y),
    };
    let places = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    let data = places.filter_map(|(x, y)| {
        let (x, y) = from(x, y);
        stored.rgb_at(x, y)
    });
    Picture::from_rgb(width, height, data.flatten().collect()).expect("as many pixels")
}
