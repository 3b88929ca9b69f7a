//! Three drawn pictures that any trained CLIP can tell apart. One that was not trained, is broken, or is read with wrong
//! settings would find every picture harmless; it is refused here.

use imaging::Picture;

use crate::clip::{Clip, ClipTokenizer};
use crate::error::{Result, VisionError};

/// How much nearer its own text must be to a picture than the others.
const GAP: f32 = 0.01;
const SIDE: u32 = 224;

type Shape = fn(f32, f32) -> bool;

/// Text, ground, ink, and where the ink is, in coordinates from -1 to 1.
const DRAWN: [(&str, [u8; 3], [u8; 3], Shape); 3] = [
    (
        "a large red circle on a white background",
        [255; 3],
        [220, 30, 30],
        |x, y| x.hypot(y) < 0.7,
    ),
    (
        "a large blue square on a black background",
        [10; 3],
        [40, 70, 220],
        |x, y| x.abs().max(y.abs()) < 0.6,
    ),
    (
        "a large green triangle on a yellow background",
        [240, 220, 50],
        [40, 160, 60],
        |x, y| y < 0.6 && y > -0.7 + 2.0 * x.abs(),
    ),
];

/// Whether each drawn picture is nearest to its own text.
pub(super) fn self_test(clip: &Clip, tokenizer: &ClipTokenizer) -> Result<()> {
    let context_len = clip.text.context_len();
    let texts = DRAWN
        .iter()
        .map(|(text, ..)| tokenizer.encode(text, context_len))
        .collect::<Result<Vec<_>>>()?;
    let places = clip.text.embed(&texts)?.to_vec2::<f32>()?;
    for (own, (text, ground, ink, shape)) in DRAWN.iter().enumerate() {
        let seen = clip.vision.embed(&draw(*ground, *ink, *shape))?;
        let cosines: Vec<f32> = places.iter().map(|place| dot(place, &seen)).collect();
        // Written so that NaN fails.
        let is_nearest = (0..DRAWN.len()).all(|other| other == own || cosines[own] >= cosines[other] + GAP);
        if !is_nearest {
            return Err(VisionError::Input(format!(
                "CLIP does not recognise `{text}`: its weights are broken, not trained, or read with wrong settings"
            )));
        }
    }
    Ok(())
}

/// A picture to try a network on.
pub(super) fn red_circle() -> Picture {
    let [(_, ground, ink, shape), ..] = DRAWN;
    draw(ground, ink, shape)
}

pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn draw(ground: [u8; 3], ink: [u8; 3], shape: Shape) -> Picture {
    let mut picture = Picture::filled(SIDE, SIDE, ground);
    let place = |n: usize| (n as f32 + 0.5) / SIDE as f32 * 2.0 - 1.0;
    for (at, pixel) in picture.data_mut().chunks_exact_mut(3).enumerate() {
        if shape(place(at % SIDE as usize), place(at / SIDE as usize)) {
            pixel.copy_from_slice(&ink);
        }
    }
    picture
}
