//! Nearest-neighbour resampling: each source row is widened once and copied for its repeats.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape};
use rayon::prelude::*;

use super::{numbers, zeros};

/// To `height` rows and `width` columns, both at least 1.
pub(crate) struct Nearest {
    pub(crate) height: usize,
    pub(crate) width: usize,
}

/// The source of each of `to` positions among `from`.
fn sources(from: usize, to: usize) -> Vec<usize> {
    let step = from as f64 / to as f64;
    (0..to).map(|i| ((i as f64 * step) as usize).min(from - 1)).collect()
}

impl CustomOp1 for Nearest {
    fn name(&self) -> &'static str {
        "upsample-nearest-f32"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, channels, h, w) = layout.shape().dims4()?;
        let x = numbers(storage, layout)?;
        let (height, width) = (self.height, self.width);
        let mut out = zeros(&[batch, channels, height, width])?;
        let (rows, columns) = (sources(h, height), sources(w, width));
        let planes = out.par_chunks_mut(height * width).zip(x.par_chunks(h * w));
        planes.for_each(|(out, x)| {
            for (y, &row) in rows.iter().enumerate() {
                let (before, line) = out[..(y + 1) * width].split_at_mut(y * width);
                if y > 0 && rows[y - 1] == row {
                    line.copy_from_slice(&before[(y - 1) * width..]);
                } else {
                    let source = &x[row * w..][..w];
                    for (v, &column) in line.iter_mut().zip(&columns) {
                        *v = source[column];
                    }
                }
            }
        });
        Ok((CpuStorage::F32(out), (batch, channels, height, width).into()))
    }
}
