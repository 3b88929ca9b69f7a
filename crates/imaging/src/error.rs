//! What can go wrong with a picture, one variant per thing a caller might treat differently.

/// Why bytes did not become a picture. None of them can be cured by trying again.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The first bytes are none of PNG, JPEG, WebP, GIF.
    #[error("not a PNG, JPEG, WebP or GIF file")]
    UnknownFormat,
    /// The header itself is cut off or contradicts the format.
    #[error("broken {format} header: {reason}")]
    BrokenHeader {
        /// Format told by the first bytes.
        format: crate::Format,
        /// What is wrong.
        reason: &'static str,
    },
    /// Width or height is 0.
    #[error("empty picture: {width}x{height}")]
    Empty {
        /// Pixels.
        width: u32,
        /// Pixels.
        height: u32,
    },
    /// More pixels than the limits allow.
    #[error("{width}x{height} is larger than the {max_pixels} pixels allowed")]
    TooLarge {
        /// Pixels.
        width: u32,
        /// Pixels.
        height: u32,
        /// See [`crate::Limits::max_pixels`].
        max_pixels: u64,
    },
    /// The longer side is too many times the shorter one.
    #[error("{width}x{height} is more than {max_aspect} times longer than wide")]
    TooNarrow {
        /// Pixels.
        width: u32,
        /// Pixels.
        height: u32,
        /// See [`crate::Limits::max_aspect`].
        max_aspect: u32,
    },
    /// The file ends before the picture does.
    #[error("the {format} file is cut off")]
    Truncated {
        /// Format told by the first bytes.
        format: crate::Format,
    },
    /// Decoding would have to do or hold more than allowed.
    #[error("the {format} file needs too much work or memory: {reason}")]
    TooCostly {
        /// Format told by the first bytes.
        format: crate::Format,
        /// Which bound.
        reason: &'static str,
    },
    /// The file is damaged or of an unsupported flavour.
    #[error("the {format} file is damaged or of an unsupported flavour")]
    Damaged {
        /// Format told by the first bytes.
        format: crate::Format,
        /// The decoder's words.
        #[source]
        source: image::ImageError,
    },
}

impl DecodeError {
    /// Decoding would hold more than [`crate::Limits::max_alloc_bytes`].
    pub(crate) fn of_memory(format: crate::Format) -> Self {
        let reason = "it needs more memory than allowed";
        Self::TooCostly { format, reason }
    }
}

/// Why a picture did not become bytes.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// A side is longer than the format can say.
    #[error("{width}x{height} is too large for WebP, whose sides end at 16383 pixels")]
    TooLarge {
        /// Pixels.
        width: u32,
        /// Pixels.
        height: u32,
    },
    /// Quality or method out of range.
    #[error("WebP quality must be 0..=100 and method 0..=6, not {quality} and {method}")]
    Options {
        /// As asked for.
        quality: f32,
        /// As asked for.
        method: u8,
    },
    /// libwebp or the PNG encoder refused, most likely for want of memory.
    #[error("encoding failed: {0}")]
    Failed(String),
}

/// A size and a buffer that do not belong together, or an empty size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{width}x{height} with {channels} channels does not fit a buffer of {len} values")]
pub struct SizeError {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Values per pixel.
    pub channels: u32,
    /// Length of the buffer.
    pub len: usize,
}
