//! Colours that nobody sees: where alpha is 0 a file may hold anything, most often black, and whatever mixes pixels
//! draws it into the visible edge as a rim.

use crate::Picture;

/// Sums over a square of pixels: red, green and blue times alpha, and alpha.
type Sum = [f32; 4];

impl Picture {
    /// RGB in which every wholly transparent pixel has the mean colour of the visible ones nearby, as found in the smallest
    /// square of a pyramid (sides of 2, 4, 8, … pixels) that has any. Other colours, and pictures without anything visible,
    /// stay as stored.
    pub fn with_hidden_filled(&self) -> Picture {
        let mut filled = self.to_rgb();
        if !self.has_alpha() {
            return filled;
        }
        let (width, height) = (self.width() as usize, self.height() as usize);
        let pixel = |x: usize, y: usize| {
            let at = (y * width + x) * 4;
            let [r, g, b, a] = std::array::from_fn(|c| f32::from(self.data()[at + c]));
            [r * a, g * a, b * a, a]
        };
        let mut levels = vec![halved(width, height, pixel)];
        while let Some((width, height, sums)) = levels.last()
            && (*width > 1 || *height > 1)
        {
            levels.push(halved(*width, *height, |x, y| sums[y * width + x]));
        }
        let alphas = self.data().chunks_exact(4).map(|p| p[3]);
        for (at, (target, alpha)) in filled.data_mut().chunks_exact_mut(3).zip(alphas).enumerate() {
            if alpha > 0 {
                continue;
            }
            let (mut x, mut y) = (at % width, at / width);
            for (width, _, sums) in &levels {
                (x, y) = (x / 2, y / 2);
                let [r, g, b, a] = sums[y * width + x];
                if a > 0.0 {
                    target.copy_from_slice(&[r, g, b].map(|v| (v / a).round() as u8));
                    break;
                }
            }
        }
        filled
    }
}

/// Sums of two by two, of what there is at the edges: width, height, rows.
fn halved(width: usize, height: usize, at: impl Fn(usize, usize) -> Sum) -> (usize, usize, Vec<Sum>) {
    let (half_w, half_h) = (width.div_ceil(2), height.div_ceil(2));
    let mut sums = Vec::with_capacity(half_w * half_h);
    for y in 0..half_h {
        for x in 0..half_w {
            let mut sum = [0.0; 4];
            for (x, y) in [(0, 0), (1, 0), (0, 1), (1, 1)].map(|(right, down)| (2 * x + right, 2 * y + down)) {
                if x < width && y < height {
                    sum.iter_mut().zip(at(x, y)).for_each(|(sum, v)| *sum += v);
                }
            }
            sums.push(sum);
        }
    }
    (half_w, half_h, sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_pixels_take_their_visible_neighbours_colour() {
        // Red and visible in one pixel, black and hidden in all others; nearly hidden is still visible.
        let mut data = [0u8; 5 * 3 * 4];
        data[..4].copy_from_slice(&[200, 10, 0, 255]);
        data[4 * 4..5 * 4].copy_from_slice(&[1, 2, 3, 1]);
        let filled = Picture::from_rgba(5, 3, data.to_vec()).unwrap().with_hidden_filled();
        assert!(!filled.has_alpha());
        assert_eq!(filled.rgb_at(4, 0), Some([1, 2, 3]));
        assert_eq!(filled.rgb_at(1, 1), Some([200, 10, 0]));
        assert_eq!(filled.rgb_at(2, 2), Some([200, 10, 0]));
        assert_eq!(filled.rgb_at(4, 1), Some([1, 2, 3]));
    }

    #[test]
    fn a_picture_without_anything_visible_or_hidden_stays() {
        let none = Picture::from_rgba(2, 1, vec![9, 8, 7, 0, 6, 5, 4, 0]).unwrap();
        assert_eq!(none.with_hidden_filled().data(), [9, 8, 7, 6, 5, 4]);
        let all = Picture::from_rgb(1, 1, vec![1, 2, 3]).unwrap();
        assert_eq!(all.with_hidden_filled(), all);
    }
}
