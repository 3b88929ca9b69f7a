//! The end of a network strip by strip: where pixels are many and each depends on few rows, only a strip's features exist at
//! once, and the numbers are those of the whole.

use candle_core::Tensor;

use crate::error::Result;

/// Pixels of a strip that are worth its border, which is computed twice.
const STRIP_PIXELS: usize = 8192;

/// Rows of a strip without its border.
fn rows(width: usize, halo: usize) -> usize {
    (STRIP_PIXELS / width.max(1)).max(2 * halo).max(1)
}

/// Most pixels of a strip of (.., height, width), its border included.
pub(super) fn strip_pixels(width: usize, height: usize, halo: usize) -> usize {
    let rows = rows(width, halo);
    width
        * if rows >= height {
            height
        } else {
            (rows + 2 * halo).min(height)
        }
}

/// `enlarge` of (b, c, h, w), which gives a whole number of rows for each and looks at most `halo` rows up and down.
pub(super) fn in_strips(x: &Tensor, halo: usize, enlarge: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let (_, _, height, width) = x.dims4()?;
    let rows = rows(width, halo);
    if rows >= height {
        return enlarge(x);
    }
    let strips = (0..height).step_by(rows).map(|from| {
        let to = (from + rows).min(height);
        let (above, below) = (from.min(halo), (height - to).min(halo));
        let seen = x.narrow(2, from - above, above + to - from + below)?;
        let drawn = enlarge(&seen)?;
        let scale = drawn.dim(2)? / seen.dim(2)?;
        // Copied, so that the border's pixels do not stay.
        Ok(drawn.narrow(2, above * scale, (to - from) * scale)?.contiguous()?)
    });
    let strips: Vec<Tensor> = strips.collect::<Result<_>>()?;
    Ok(Tensor::cat(&strips, 2)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::layers::{Conv, upsample_nearest};

    #[test]
    fn strips_give_the_numbers_of_the_whole() {
        let noise = |shape: &[usize]| Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap();
        let [wide, last] = [(5, 4), (3, 5)].map(|(out, from)| {
            let conv = Conv::from_parts(noise(&[out, from, 3, 3]), Some(noise(&[out]))).unwrap();
            conv.padding(1)
        });
        let enlarge = |x: &Tensor| -> Result<Tensor> { last.forward(&wide.forward(&upsample_nearest(x, 2)?)?) };
        // The end is a strip of one row, and then one strip is all.
        for (height, width) in [(3 * 8 + 1, 1024), (50, 300), (7, 5000), (5, 40)] {
            let x = noise(&[1, 4, height, width]);
            let (whole, cut) = (enlarge(&x).unwrap(), in_strips(&x, 1, enlarge).unwrap());
            let apart = (whole - cut).unwrap().abs().unwrap().flatten_all().unwrap();
            let apart = apart.max(0).unwrap().to_scalar::<f32>().unwrap();
            assert!(apart <= 1e-3, "{width}x{height}: {apart}");
        }
    }
}
