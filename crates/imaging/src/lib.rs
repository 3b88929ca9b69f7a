//! Pictures in and out: decode with limits, encode WebP, resize, masks and colour as planar f32. Knows no tensor library and no network.
