//! Neighbourhood filters on planes: Gaussian, erosion and dilation.

use crate::{Mask, Planar};

/// Gaussian blur of every plane with an odd `kernel_size`, edges mirrored without repeating the edge pixel (OpenCV's
/// default border). A `sigma` of 0 or less is taken from the size as OpenCV does: `0.3 * ((size - 1) / 2 - 1) + 0.8`.
pub fn gaussian(planar: &Planar, kernel_size: usize, sigma: f32) -> Planar {
    let size = kernel_size | 1;
    let half = size / 2;
    let sigma = if sigma > 0.0 {
        sigma
    } else {
        0.3 * ((size as f32 - 1.0) * 0.5 - 1.0) + 0.8
    };
    let mut kernel: Vec<f32> = (0..size)
        .map(|i| {
            let d = i as f32 - half as f32;
            (-d * d / (2.0 * sigma * sigma)).exp()
        })
        .collect();
    let sum: f32 = kernel.iter().sum();
    kernel.iter_mut().for_each(|k| *k /= sum);

    let (width, height) = (planar.width() as usize, planar.height() as usize);
    let mut out = planar.clone();
    let mut rows = vec![0.0; width * height];
    for plane in out.data_mut().chunks_exact_mut(width * height) {
        for (row, target) in plane.chunks_exact(width).zip(rows.chunks_exact_mut(width)) {
            for (x, value) in target.iter_mut().enumerate() {
                *value = kernel
                    .iter()
                    .enumerate()
                    .map(|(k, w)| w * row[mirror(x + k, half, width)])
                    .sum();
            }
        }
        for (y, target) in plane.chunks_exact_mut(width).enumerate() {
            target.fill(0.0);
            for (k, w) in kernel.iter().enumerate() {
                let at = mirror(y + k, half, height) * width;
                target
                    .iter_mut()
                    .zip(&rows[at..at + width])
                    .for_each(|(t, v)| *t += w * v);
            }
        }
    }
    out
}

/// Index `at - half` mirrored into `0..len`.
fn mirror(at: usize, half: usize, len: usize) -> usize {
    if len == 1 {
        return 0;
    }
    let period = 2 * (len as isize - 1);
    let i = (at as isize - half as isize).rem_euclid(period);
    (if i < len as isize { i } else { period - i }) as usize
}

/// Smallest value of each `size`×`size` neighbourhood; `outside` is what lies beyond the edges.
/// An even neighbourhood reaches one further to the left and up.
pub fn erode(mask: &Mask, size: usize, outside: u8) -> Mask {
    reduced_mask(mask, size, outside, u8::min)
}

/// Greatest value of each `size`×`size` neighbourhood; `outside` is what lies beyond the edges.
pub fn dilate(mask: &Mask, size: usize, outside: u8) -> Mask {
    reduced_mask(mask, size, outside, u8::max)
}

/// The same as [`erode`] on every plane, with nothing beyond the edges (OpenCV's default).
pub fn erode_plane(planar: &Planar, size: usize) -> Planar {
    let (width, height) = (planar.width() as usize, planar.height() as usize);
    let mut out = planar.clone();
    for plane in out.data_mut().chunks_exact_mut(width * height) {
        let least = reduced(plane, width, size, f32::INFINITY, f32::min);
        plane.copy_from_slice(&least);
    }
    out
}

fn reduced_mask(mask: &Mask, size: usize, outside: u8, keep: fn(u8, u8) -> u8) -> Mask {
    let out = reduced(mask.data(), mask.width() as usize, size, outside, keep);
    Mask::new(mask.width(), mask.height(), out).expect("one value per pixel")
}

/// Each value of a plane with its neighbours', in rows, then in columns.
fn reduced<T: Copy>(plane: &[T], width: usize, size: usize, outside: T, keep: fn(T, T) -> T) -> Vec<T> {
    let height = plane.len() / width.max(1);
    let size = size.max(1);
    let line = |values: &[T]| -> Vec<T> {
        (0..values.len())
            .map(|at| {
                let (begin, end) = (at as isize - (size / 2) as isize, at + size - size / 2);
                let inside = &values[begin.max(0) as usize..end.min(values.len())];
                let least = inside.iter().copied().reduce(keep).unwrap_or(outside);
                let reaches_out = begin < 0 || end > values.len();
                if reaches_out { keep(least, outside) } else { least }
            })
            .collect()
    };
    let rows: Vec<T> = plane.chunks_exact(width).flat_map(line).collect();
    let mut out = rows.clone();
    for x in 0..width {
        let column: Vec<T> = (0..height).map(|y| rows[y * width + x]).collect();
        for (y, value) in line(&column).into_iter().enumerate() {
            out[y * width + x] = value;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blur_keeps_a_flat_plane_flat_and_spreads_a_point() {
        let flat = Planar::new(1, 5, 4, vec![0.5; 20]).unwrap();
        assert!(gaussian(&flat, 11, 0.0).data().iter().all(|v| (v - 0.5).abs() < 1e-6));
        let mut point = vec![0.0; 49];
        point[24] = 1.0;
        let blurred = gaussian(&Planar::new(1, 7, 7, point).unwrap(), 3, 0.0);
        // cv2.getGaussianKernel(3, 0) computed by formula: sigma 0.8 -> 0.2390, 0.5220, 0.2390
        assert!((blurred.data()[24] - 0.5220 * 0.5220).abs() < 1e-3);
        assert!((blurred.data().iter().sum::<f32>() - 1.0).abs() < 1e-5);
    }

    #[test]
    fn erosion_shrinks_and_dilation_grows() {
        let mut data = vec![0; 25];
        data[6..9].fill(255);
        data[11..14].fill(255);
        data[16..19].fill(255);
        let mask = Mask::new(5, 5, data).unwrap();
        let eroded = erode(&mask, 3, 0);
        assert_eq!(eroded.data().iter().filter(|v| **v == 255).count(), 1);
        assert_eq!(dilate(&eroded, 3, 0), mask);
    }

    #[test]
    fn planes_are_eroded_to_the_left_and_up_and_not_by_the_edge() {
        let plane = Planar::new(1, 4, 2, vec![0.2, 0.9, 0.8, 1.0, 0.5, 0.9, 0.9, 0.9]).unwrap();
        assert_eq!(erode_plane(&plane, 2).data(), [0.2, 0.2, 0.8, 0.8, 0.2, 0.2, 0.8, 0.8]);
        assert_eq!(erode_plane(&plane, 0), plane);
        // Three wide to either side it is the whole row, and nothing beyond it.
        assert_eq!(erode_plane(&plane, 7).data(), [0.2; 8]);
    }
}
