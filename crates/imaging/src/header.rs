//! Format and size from the first bytes, and where the cheap walk over a file's structure can tell, whether it is whole.
//!
//! Nothing is allocated here: this is what makes refusing a bomb cost microseconds.

use crate::DecodeError;

/// The four formats the Horde's clients and server send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// Portable Network Graphics, animated ones included.
    Png,
    /// JPEG, baseline and progressive.
    Jpeg,
    /// WebP, lossy, lossless or animated.
    WebP,
    /// GIF 87a and 89a.
    Gif,
}

/// What a file says of itself before any pixel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Told by magic bytes.
    pub format: Format,
    /// Canvas width in pixels as stored (before EXIF orientation).
    pub width: u32,
    /// Canvas height in pixels as stored.
    pub height: u32,
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Png => "PNG",
            Self::Jpeg => "JPEG",
            Self::WebP => "WebP",
            Self::Gif => "GIF",
        })
    }
}

/// Reads format and size. Does not check that the rest of the file is there.
pub fn probe(bytes: &[u8]) -> Result<Header, DecodeError> {
    let (format, size) = if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        (Format::Png, png_size(bytes))
    } else if bytes.starts_with(&[0xff, 0xd8, 0xff]) {
        (Format::Jpeg, jpeg_size(bytes))
    } else if bytes.len() >= 12 && &bytes[..4] == b"RIFF" && &bytes[8..12] == b"WEBP" {
        (Format::WebP, webp_size(bytes))
    } else if bytes.starts_with(b"GIF87a") || bytes.starts_with(b"GIF89a") {
        (Format::Gif, gif_size(bytes))
    } else {
        return Err(DecodeError::UnknownFormat);
    };
    let (width, height) = size.map_err(|reason| DecodeError::BrokenHeader { format, reason })?;
    if width == 0 || height == 0 {
        return Err(DecodeError::Empty { width, height });
    }
    Ok(Header { format, width, height })
}

/// Refuses files whose structure shows that they end early or ask for too many passes.
/// PNG and GIF decoders notice by themselves; JPEG and WebP decoders fill the rest with grey.
pub(crate) fn check_structure(bytes: &[u8], format: Format) -> Result<(), DecodeError> {
    match format {
        Format::Jpeg => check_jpeg(bytes),
        Format::WebP => {
            let stated = le32(bytes, 4).map_or(u64::MAX, u64::from);
            // The stated size leaves out the eight bytes before it; a missing pad byte at the end is common and harmless.
            if stated > (bytes.len() as u64).saturating_sub(8) + 1 {
                return Err(DecodeError::Truncated { format });
            }
            Ok(())
        }
        Format::Png | Format::Gif => Ok(()),
    }
}

const CUT: &str = "it ends too early";

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn le24(bytes: &[u8], at: usize) -> Option<u32> {
    let b = bytes.get(at..at.checked_add(3)?)?;
    Some(u32::from(b[0]) | u32::from(b[1]) << 8 | u32::from(b[2]) << 16)
}

fn png_size(bytes: &[u8]) -> Result<(u32, u32), &'static str> {
    if bytes.get(12..16) != Some(b"IHDR") {
        return Err("it does not begin with IHDR");
    }
    Ok((be32(bytes, 16).ok_or(CUT)?, be32(bytes, 20).ok_or(CUT)?))
}

fn gif_size(bytes: &[u8]) -> Result<(u32, u32), &'static str> {
    Ok((
        u32::from(le16(bytes, 6).ok_or(CUT)?),
        u32::from(le16(bytes, 8).ok_or(CUT)?),
    ))
}

fn webp_size(bytes: &[u8]) -> Result<(u32, u32), &'static str> {
    match bytes.get(12..16) {
        Some(b"VP8X") => Ok((le24(bytes, 24).ok_or(CUT)? + 1, le24(bytes, 27).ok_or(CUT)? + 1)),
        Some(b"VP8L") => {
            if bytes.get(20) != Some(&0x2f) {
                return Err("the lossless signature is missing");
            }
            let bits = le32(bytes, 21).ok_or(CUT)?;
            Ok(((bits & 0x3fff) + 1, (bits >> 14 & 0x3fff) + 1))
        }
        Some(b"VP8 ") => {
            if bytes.get(23..26) != Some(&[0x9d, 0x01, 0x2a]) {
                return Err("the key frame signature is missing");
            }
            Ok((
                u32::from(le16(bytes, 26).ok_or(CUT)? & 0x3fff),
                u32::from(le16(bytes, 28).ok_or(CUT)? & 0x3fff),
            ))
        }
        _ => Err("its first chunk is none of VP8, VP8L, VP8X"),
    }
}

/// One marker of a JPEG file and the range of its segment's content.
struct Segment {
    marker: u8,
    content: std::ops::Range<usize>,
}

/// The next marker at or after `at`. Markers without a segment have an empty content range.
fn next_segment(bytes: &[u8], mut at: usize) -> Option<Segment> {
    // Some writers leave stray bytes between segments, and any number of 0xff may pad a marker.
    while *bytes.get(at)? != 0xff || matches!(*bytes.get(at + 1)?, 0x00 | 0xff) {
        at += 1;
    }
    let marker = bytes[at + 1];
    let begin = at + 2;
    if marker == 0x01 || (0xd0..=0xd9).contains(&marker) {
        return Some(Segment {
            marker,
            content: begin..begin,
        });
    }
    let len = usize::from(be16(bytes, begin)?).max(2);
    Some(Segment {
        marker,
        content: begin + 2..begin + len,
    })
}

fn is_frame(marker: u8) -> bool {
    (0xc0..=0xcf).contains(&marker) && !matches!(marker, 0xc4 | 0xc8 | 0xcc)
}

fn jpeg_size(bytes: &[u8]) -> Result<(u32, u32), &'static str> {
    let mut at = 2;
    while let Some(segment) = next_segment(bytes, at) {
        if is_frame(segment.marker) {
            let height = be16(bytes, segment.content.start + 1).ok_or(CUT)?;
            let width = be16(bytes, segment.content.start + 3).ok_or(CUT)?;
            return Ok((u32::from(width), u32::from(height)));
        }
        if matches!(segment.marker, 0xd9 | 0xda) {
            return Err("no frame comes before the pixels");
        }
        at = segment.content.end;
    }
    Err(CUT)
}

/// Most passes over the pixels that a progressive file may ask for; encoders write about ten.
const MAX_SCANS: usize = 64;

fn check_jpeg(bytes: &[u8]) -> Result<(), DecodeError> {
    let format = Format::Jpeg;
    let mut n_scans = 0;
    let mut at = 2;
    // Inside a scan `next_segment` skips entropy-coded bytes by itself: 0xff is followed by 0x00 there.
    while let Some(segment) = next_segment(bytes, at) {
        match segment.marker {
            0xd9 if n_scans > 0 => return Ok(()),
            0xda => {
                n_scans += 1;
                if n_scans > MAX_SCANS {
                    let reason = "more than 64 passes over the pixels";
                    return Err(DecodeError::TooCostly { format, reason });
                }
            }
            _ => {}
        }
        at = segment.content.end;
    }
    Err(DecodeError::Truncated { format })
}
