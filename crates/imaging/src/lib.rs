//! Pictures in and out: decode with limits, encode WebP, resize, masks and colour as planar f32. Knows no tensor library and no network.
//!
//! # The whole in one page
//!
//! * [`decode`] reads PNG, JPEG, WebP or GIF (told by their first bytes, never by a name) within [`Limits`], which are
//!   checked from the header before a pixel is decoded. The first frame of an animation is the picture, EXIF orientation
//!   is applied once, CMYK, 16-bit, grey and palette pictures become 8-bit RGB or RGBA, and a file that breaks off or
//!   cannot be followed to its end is an error, never a half-grey picture. [`probe`] reads format and size alone.
//! * [`Picture`] is interleaved 8-bit RGB or RGBA, [`Mask`] is 8-bit grey. Both know their size; neither can be empty.
//! * [`encode_webp`] (lossy, quality and method chosen, alpha kept) is what the Horde is sent; [`encode_png`] is for tools.
//! * [`Picture::resized`] and [`Mask::resized`] resample as Pillow does (anti-aliased); [`Picture::clip_square`] is CLIP's
//!   preparation; [`Planar::resized`] resamples floats as torch does.
//! * [`Planar`] is `(channels, height, width)` f32. [`Picture::to_planar`] maps 0..=255 to `0.0..=1.0`;
//!   [`Planar::to_picture`] maps back with a stated [`Rounding`].
//! * [`Picture::over`], [`Picture::with_alpha`], [`Picture::alpha`] handle transparency.
//! * [`warp`] holds the affine warp of the face pipeline, [`blur`] the Gaussian and box filters, erosion and dilation.

pub mod blur;
mod decode;
mod encode;
mod error;
mod header;
mod hidden;
mod jpeg;
mod picture;
mod planar;
mod resample;
mod resize;
pub mod warp;

pub use decode::{Limits, decode};
pub use encode::{WebpOptions, encode_png, encode_png_mask, encode_webp};
pub use error::{DecodeError, EncodeError, SizeError};
pub use header::{Format, Header, probe};
pub use picture::{Mask, Picture};
pub use planar::{Planar, Rounding};
pub use resize::{Filter, PlanarFilter};
