//! Pictures that a job brings along: fetched or unpacked in the supervisor, decoded in the engine.

use std::time::Duration;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use horde_client::client::DownloadLimits;
use horde_client::transport::RequestClass;
use horde_client::{Client, SignedUrl};
use imaging::{DecodeError, Limits, Mask, Picture};

use crate::order::SourceUse;

/// The Horde's own bound for sources is 5 MB; a stranger's server gets ten seconds.
const LIMITS: DownloadLimits = DownloadLimits {
    max_bytes: 8 << 20,
    deadline: Duration::from_secs(10),
};

/// Takes base64 with and without padding.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// The bytes behind an address, or those that `text` itself holds in base64. `None` when there are none to be had.
pub async fn bytes(client: &Client, text: &str) -> Option<Bytes> {
    let text = text.trim();
    match url::Url::parse(text) {
        Ok(address) if matches!(address.scheme(), "http" | "https") => {
            // The Horde's own store or a stranger's server: it cannot be told apart, so it is taken for the latter.
            let source = SignedUrl::new(address);
            client.download(&source, RequestClass::Stranger, LIMITS).await.ok()
        }
        _ => unpacked(text).map(Bytes::from),
    }
}

/// Base64 as clients write it: plain, in a `data:` address, with line breaks, with the alphabet for addresses.
fn unpacked(text: &str) -> Option<Vec<u8>> {
    let packed = match text.strip_prefix("data:") {
        Some(rest) => rest.split_once(',')?.1,
        None => text,
    };
    if packed.len() / 4 * 3 > LIMITS.max_bytes {
        return None;
    }
    let clean: String = packed
        .chars()
        .filter(|c| !c.is_ascii_whitespace())
        .map(|c| match c {
            '-' => '+',
            '_' => '/',
            other => other,
        })
        .collect();
    LENIENT.decode(clean).ok().filter(|bytes| !bytes.is_empty())
}

/// A source and what of it may change (white).
pub struct Source {
    /// As it came.
    pub picture: Picture,
    /// `None` changes everything.
    pub mask: Option<Mask>,
    /// The mask's bytes were no picture.
    pub is_mask_broken: bool,
}

/// Decodes a source and its mask. To be painted is what the mask shows white, or else what is transparent, or else all.
///
/// # Errors
/// The source is no picture, or one that is refused by its header.
pub fn decode(picture: &[u8], mask: Option<&[u8]>, usage: SourceUse) -> Result<Source, DecodeError> {
    let limits = Limits::image_job();
    let picture = imaging::decode(picture, &limits)?;
    let read = mask.map(|bytes| imaging::decode(bytes, &limits));
    let is_mask_broken = matches!(read, Some(Err(_)));
    let given = read.and_then(Result::ok).map(|mask| mask.over([0, 0, 0]).to_grey());
    let by_alpha = || picture.alpha().map(|alpha| alpha.inverted());
    let mask = match (given, usage) {
        (Some(mask), _) => Some(mask),
        (None, SourceUse::Paint) => by_alpha().or_else(|| all(&picture)),
        (None, SourceUse::Start) => None,
    };
    Ok(Source {
        picture,
        mask,
        is_mask_broken,
    })
}

fn all(picture: &Picture) -> Option<Mask> {
    let (width, height) = (picture.width(), picture.height());
    Mask::new(width, height, vec![255; width as usize * height as usize]).ok()
}

#[cfg(test)]
mod tests {
    use imaging::encode_png;

    use super::*;

    #[test]
    fn base64_is_read_however_clients_write_it() {
        for text in [
            "AAEC/w==",
            "AAEC/w",
            "AAEC_w",
            "AA\nEC /w=",
            "data:image/png;base64,AAEC/w==",
        ] {
            assert_eq!(unpacked(text), Some(vec![0, 1, 2, 255]), "{text}");
        }
        assert_eq!(unpacked("no base64!"), None);
        assert_eq!(unpacked(""), None);
        assert_eq!(unpacked(&"A".repeat(20 << 20)), None);
    }

    #[test]
    fn what_is_transparent_is_painted_where_no_mask_says_otherwise() {
        let mut rgba = vec![255u8; 4 * 4 * 4];
        rgba[3] = 0;
        let png = encode_png(&Picture::from_rgba(4, 4, rgba).unwrap()).unwrap();
        let source = decode(&png, None, SourceUse::Paint).unwrap();
        assert_eq!(source.mask.unwrap().data()[..2], [255, 0]);
        assert!(decode(&png, None, SourceUse::Start).unwrap().mask.is_none());

        let plain = encode_png(&Picture::filled(4, 4, [1, 2, 3])).unwrap();
        let source = decode(&plain, None, SourceUse::Paint).unwrap();
        assert!(source.mask.unwrap().data().iter().all(|value| *value == 255));
        let white = encode_png(&Picture::filled(8, 2, [255, 255, 255])).unwrap();
        let source = decode(&plain, Some(&white), SourceUse::Start).unwrap();
        assert_eq!((source.mask.unwrap().width(), source.is_mask_broken), (8, false));
    }

    #[test]
    fn a_broken_mask_is_told_and_a_broken_source_refused() {
        let plain = encode_png(&Picture::filled(4, 4, [1, 2, 3])).unwrap();
        let source = decode(&plain, Some(b"no picture"), SourceUse::Start).unwrap();
        assert!(source.is_mask_broken && source.mask.is_none());
        assert!(decode(b"no picture", None, SourceUse::Paint).is_err());
        assert!(decode(&plain[..plain.len() / 2], None, SourceUse::Paint).is_err());
    }
}
