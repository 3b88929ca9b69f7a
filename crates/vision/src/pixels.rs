//! Pictures as networks from Caffe want them.

use imaging::Picture;

/// Mean of blue, green, red that the training pictures had taken off.
const MEAN_BGR: [f32; 3] = [104.0, 117.0, 123.0];

/// Blue, green and red planes of 0..=255 less the mean of the training pictures; alpha is dropped.
pub(crate) fn bgr_less_mean(picture: &Picture) -> Vec<f32> {
    let channels = picture.channels();
    let pixels = picture.data().chunks_exact(channels);
    let n = pixels.len();
    let mut planes = vec![0.0; 3 * n];
    let (blue, rest) = planes.split_at_mut(n);
    let (green, red) = rest.split_at_mut(n);
    for (((pixel, blue), green), red) in pixels.zip(blue).zip(green).zip(red) {
        *blue = f32::from(pixel[2]) - MEAN_BGR[0];
        *green = f32::from(pixel[1]) - MEAN_BGR[1];
        *red = f32::from(pixel[0]) - MEAN_BGR[2];
    }
    planes
}
