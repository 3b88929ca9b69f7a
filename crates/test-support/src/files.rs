//! Pieces of picture files, for files that no encoder writes.

/// A chunk of a PNG with its length and its sum (ISO/IEC 15948, 5.3 and annex D).
pub fn png_chunk(name: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let checked = [name, content].concat();
    let len = (content.len() as u32).to_be_bytes();
    [&len[..], &checked, &sum(&checked).to_be_bytes()].concat()
}

/// The first 33 bytes of a PNG. `layout` is depth, colour type, compression, filter and interlacing as the standard numbers
/// them.
pub fn png_head(width: u32, height: u32, layout: [u8; 5]) -> Vec<u8> {
    let head = [&width.to_be_bytes()[..], &height.to_be_bytes(), &layout].concat();
    [b"\x89PNG\r\n\x1a\n", &png_chunk(b"IHDR", &head)[..]].concat()
}

/// An animated GIF, PNG or WebP whose last frame comes `n_more` times more. Numbers that the file tells of its frames stay.
pub fn longer_animation(bytes: &[u8], n_more: usize) -> Vec<u8> {
    let last = |what: &[u8]| bytes.windows(what.len()).rposition(|w| w == what);
    let (begin, end) = match bytes {
        [b'G', b'I', b'F', ..] => (last(&[0x21, 0xf9, 4]), Some(bytes.len().saturating_sub(1))),
        [b'R', b'I', b'F', b'F', ..] => (last(b"ANMF"), Some(bytes.len())),
        // The four bytes of a chunk's length stand before its name.
        _ => (
            last(b"fcTL").map(|at| at.saturating_sub(4)),
            last(b"IEND").map(|at| at.saturating_sub(4)),
        ),
    };
    let (begin, end) = begin.zip(end).expect("an animation");
    let mut long = bytes[..end].to_vec();
    (0..n_more).for_each(|_| long.extend_from_slice(&bytes[begin..end]));
    long.extend_from_slice(&bytes[end..]);
    if long.starts_with(b"RIFF") {
        let size = (long.len() as u32 - 8).to_le_bytes();
        long[4..8].copy_from_slice(&size);
    }
    long
}

fn sum(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg())
        })
    })
}
