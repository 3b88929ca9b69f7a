//! RetinaFace with a MobileNet-0.25 or ResNet-50 body: boxes and five landmarks per face.
//!
//! Structure and priors: Deng et al. 2019 (arXiv 1905.00641) in the PyTorch layout that GFPGAN and CodeFormer load.

use candle_core::Tensor;
use imaging::Picture;

use crate::error::{Result, VisionError};
use crate::layers::{Act, Conv};
use crate::pixels::bgr_less_mean;
use crate::weights::Weights;

/// One face in pixels of the picture it was found in.
#[derive(Clone, Debug, PartialEq)]
pub struct Face {
    /// Left, top, right, bottom.
    pub bounds: [f32; 4],
    /// Left eye, right eye, nose, left and right corner of the mouth, as seen by the viewer.
    pub landmarks: [(f32, f32); 5],
    /// 0..=1.
    pub score: f32,
}

/// A loaded detector.
pub struct FaceDetector {
    body: Body,
    outputs: [Conv; 3],
    merge1: Conv,
    merge2: Conv,
    contexts: [Context; 3],
    class: [Conv; 3],
    bounds: [Conv; 3],
    landmarks: [Conv; 3],
    slope: Act,
    device: candle_core::Device,
}

enum Body {
    Mobile(Vec<Vec<MobileUnit>>),
    Resnet { stem: Conv, layers: Vec<Vec<Bottleneck>> },
}

/// Depthwise then pointwise convolution; the first unit of the body is a plain one.
enum MobileUnit {
    Plain(Conv),
    Separable(Conv, Conv),
}

struct Bottleneck {
    convs: [Conv; 3],
    shortcut: Option<Conv>,
}

/// Context module: three receptive fields side by side.
struct Context {
    conv3: Conv,
    conv5_1: Conv,
    conv5_2: Conv,
    conv7_2: Conv,
    conv7_3: Conv,
}

/// The network's raw output: scores (n), offsets (n × 4), landmark offsets (n × 10), in the order of the priors.
pub struct RawFaces {
    /// Probability of a face.
    pub scores: Vec<f32>,
    /// Box offsets, four per prior.
    pub bounds: Vec<f32>,
    /// Landmark offsets, ten per prior.
    pub landmarks: Vec<f32>,
}

const MOBILE_LEAK: Act = Act::Leaky(0.1);
const STRIDES: [usize; 3] = [8, 16, 32];
const PRIOR_SIDES: [[f32; 2]; 3] = [[16.0, 32.0], [64.0, 128.0], [256.0, 512.0]];
const VARIANCE: (f32, f32) = (0.1, 0.2);

impl FaceDetector {
    /// Reads the network; MobileNet or ResNet is told by the keys.
    pub fn load(weights: &Weights) -> Result<Self> {
        let w = &weights.unwrapped(&["state_dict", "module"]);
        let body = if w.has("body.stage1.0.0.weight") {
            let strides: [&[usize]; 3] = [&[2, 1, 2, 1, 2, 1], &[2, 1, 1, 1, 1, 1], &[2, 1]];
            Body::Mobile(
                strides
                    .iter()
                    .enumerate()
                    .map(|(stage, strides)| {
                        strides
                            .iter()
                            .enumerate()
                            .map(|(n, stride)| MobileUnit::load(&w.at(format!("body.stage{}.{n}", stage + 1)), *stride))
                            .collect()
                    })
                    .collect::<Result<_>>()?,
            )
        } else if w.has("body.layer1.0.conv1.weight") {
            let layer = |n: usize| -> Result<Vec<Bottleneck>> {
                let w = w.at(format!("body.layer{n}"));
                (0..w.count(""))
                    .map(|i| Bottleneck::load(&w.at(i.to_string()), if i == 0 && n > 1 { 2 } else { 1 }))
                    .collect()
            };
            Body::Resnet {
                stem: Conv::load_with_norm(w, "body.conv1", "body.bn1")?.stride(2),
                layers: (1..=4).map(layer).collect::<Result<_>>()?,
            }
        } else {
            return Err(w.unknown("face detector"));
        };
        let unit = |name: &str| Conv::load_with_norm(w, &format!("{name}.0"), &format!("{name}.1"));
        let heads = |name: &str| -> Result<[Conv; 3]> {
            let head = |n: usize| Conv::load(w, &format!("{name}.{n}.conv1x1"));
            Ok([head(0)?, head(1)?, head(2)?])
        };
        let outputs = [unit("fpn.output1")?, unit("fpn.output2")?, unit("fpn.output3")?];
        // Narrow networks leak, wide ones do not (as trained).
        let slope = if outputs[0].out_channels() <= 64 {
            MOBILE_LEAK
        } else {
            Act::Relu
        };
        Ok(Self {
            body,
            merge1: unit("fpn.merge1")?,
            merge2: unit("fpn.merge2")?,
            outputs,
            contexts: [
                Context::load(&w.at("ssh1"))?,
                Context::load(&w.at("ssh2"))?,
                Context::load(&w.at("ssh3"))?,
            ],
            class: heads("ClassHead")?,
            bounds: heads("BboxHead")?,
            landmarks: heads("LandmarkHead")?,
            slope,
            device: w.device().clone(),
        })
    }

    /// Faces with a score of at least `threshold`, best first, overlapping ones thinned out at 0.4. A picture larger
    /// than `max_side` is looked at smaller.
    pub fn detect(&self, picture: &Picture, threshold: f32, max_side: u32) -> Result<Vec<Face>> {
        let longer = picture.width().max(picture.height());
        let shrink = (longer as f32 / max_side.max(32) as f32).max(1.0);
        let smaller;
        let seen = if shrink > 1.0 {
            let side = |n: u32| ((n as f32 / shrink).round() as u32).max(1);
            smaller = picture.resized(side(picture.width()), side(picture.height()), imaging::Filter::Box);
            &smaller
        } else {
            picture
        };
        let raw = self.forward(seen)?;
        let size = (seen.width() as usize, seen.height() as usize);
        let mut faces = decode(&raw, size, threshold);
        let (fx, fy) = (
            picture.width() as f32 / seen.width() as f32,
            picture.height() as f32 / seen.height() as f32,
        );
        for face in &mut faces {
            let [left, top, right, bottom] = face.bounds;
            face.bounds = [left * fx, top * fy, right * fx, bottom * fy];
            face.landmarks.iter_mut().for_each(|p| *p = (p.0 * fx, p.1 * fy));
        }
        Ok(faces)
    }

    /// The network on a picture as it is.
    pub fn forward(&self, picture: &Picture) -> Result<RawFaces> {
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        if width < 32 || height < 32 {
            return Err(VisionError::Input(format!(
                "{width}x{height} is too small to look for faces (32 at least)"
            )));
        }
        let x = Tensor::from_vec(bgr_less_mean(picture), (1, 3, height, width), &self.device)?;
        let [c3, c4, c5] = self.body.forward(&x)?;

        let out1 = self.outputs[0].forward_act(&c3, self.slope)?;
        let out2 = self.outputs[1].forward_act(&c4, self.slope)?;
        let out3 = self.outputs[2].forward_act(&c5, self.slope)?;
        let onto = |x: &Tensor, like: &Tensor| -> Result<Tensor> {
            let (_, _, h, w) = like.dims4()?;
            Ok((x.upsample_nearest2d(h, w)? + like)?)
        };
        let out2 = self.merge2.forward_act(&onto(&out3, &out2)?, self.slope)?;
        let out1 = self.merge1.forward_act(&onto(&out2, &out1)?, self.slope)?;

        let mut raw = RawFaces {
            scores: Vec::new(),
            bounds: Vec::new(),
            landmarks: Vec::new(),
        };
        for (n, level) in [out1, out2, out3].iter().enumerate() {
            let features = self.contexts[n].forward(level, self.slope)?;
            let class = pixel_by_pixel(&self.class[n].forward(&features)?)?;
            // Of two outcomes the second's share.
            let share = |pair: &[f32; 2]| 1.0 / (1.0 + (pair[0] - pair[1]).exp());
            raw.scores.extend(class.as_chunks().0.iter().map(share));
            raw.bounds.extend(pixel_by_pixel(&self.bounds[n].forward(&features)?)?);
            raw.landmarks
                .extend(pixel_by_pixel(&self.landmarks[n].forward(&features)?)?);
        }
        Ok(raw)
    }
}

impl Body {
    /// Features at strides 8, 16 and 32.
    fn forward(&self, x: &Tensor) -> Result<[Tensor; 3]> {
        match self {
            Self::Mobile(stages) => {
                let mut x = x.clone();
                let mut run = |stage: &Vec<MobileUnit>| -> Result<Tensor> {
                    for unit in stage {
                        x = match unit {
                            MobileUnit::Plain(conv) => conv.forward_act(&x, MOBILE_LEAK)?,
                            MobileUnit::Separable(depth, point) => {
                                point.forward_act(&depth.forward_act(&x, MOBILE_LEAK)?, MOBILE_LEAK)?
                            }
                        };
                    }
                    Ok(x.clone())
                };
                Ok([run(&stages[0])?, run(&stages[1])?, run(&stages[2])?])
            }
            Self::Resnet { stem, layers } => {
                let x = stem.forward_act(x, Act::Relu)?;
                let mut x = tensor_ops::max_pool(&x, [3, 2, 1], false)?;
                let mut run = |layer: &Vec<Bottleneck>| -> Result<Tensor> {
                    for block in layer {
                        x = block.forward(&x)?;
                    }
                    Ok(x.clone())
                };
                run(&layers[0])?;
                Ok([run(&layers[1])?, run(&layers[2])?, run(&layers[3])?])
            }
        }
    }
}

impl MobileUnit {
    fn load(w: &Weights, stride: usize) -> Result<Self> {
        if !w.has("3.weight") {
            return Ok(Self::Plain(Conv::load_with_norm(w, "0", "1")?.stride(stride)));
        }
        let [channels, _, _, _] = w.dims("0.weight")?;
        let depth = Conv::load_with_norm(w, "0", "1")?.stride(stride).groups(channels);
        Ok(Self::Separable(depth, Conv::load_with_norm(w, "3", "4")?))
    }
}

impl Bottleneck {
    fn load(w: &Weights, stride: usize) -> Result<Self> {
        let conv = |n: usize| Conv::load_with_norm(w, &format!("conv{n}"), &format!("bn{n}"));
        let shortcut = if w.has("downsample.0.weight") {
            Some(Conv::load_with_norm(w, "downsample.0", "downsample.1")?.stride(stride))
        } else {
            None
        };
        Ok(Self {
            convs: [conv(1)?, conv(2)?.stride(stride), conv(3)?],
            shortcut,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.convs[0].forward_act(x, Act::Relu)?;
        let y = self.convs[1].forward_act(&y, Act::Relu)?;
        let shortcut = match &self.shortcut {
            Some(conv) => conv.forward(x)?,
            None => x.clone(),
        };
        self.convs[2].forward_onto(&y, &shortcut, Act::Relu)
    }
}

impl Context {
    fn load(w: &Weights) -> Result<Self> {
        let unit = |name: &str| Conv::load_with_norm(w, &format!("{name}.0"), &format!("{name}.1"));
        Ok(Self {
            conv3: unit("conv3X3")?,
            conv5_1: unit("conv5X5_1")?,
            conv5_2: unit("conv5X5_2")?,
            conv7_2: unit("conv7X7_2")?,
            conv7_3: unit("conv7x7_3")?,
        })
    }

    fn forward(&self, x: &Tensor, slope: Act) -> Result<Tensor> {
        let middle = self.conv5_1.forward_act(x, slope)?;
        let wide = self.conv7_2.forward_act(&middle, slope)?;
        let joined = [
            self.conv3.forward_act(x, Act::Relu)?,
            self.conv5_2.forward_act(&middle, Act::Relu)?,
            self.conv7_3.forward_act(&wide, Act::Relu)?,
        ];
        Ok(Tensor::cat(&joined, 1)?)
    }
}

/// (1, c, h, w) as its pixels' channels, one pixel after another.
fn pixel_by_pixel(x: &Tensor) -> Result<Vec<f32>> {
    let (_, c, h, w) = x.dims4()?;
    let planes = x.flatten_all()?.to_vec1::<f32>()?;
    let pixels = h * w;
    Ok((0..pixels * c).map(|i| planes[i % c * pixels + i / c]).collect())
}

/// Turns offsets into faces of a `width`×`height` picture.
fn decode(raw: &RawFaces, (width, height): (usize, usize), threshold: f32) -> Vec<Face> {
    let mut faces = Vec::new();
    let mut index = 0;
    for (stride, sides) in STRIDES.iter().zip(PRIOR_SIDES) {
        for y in 0..height.div_ceil(*stride) {
            for x in 0..width.div_ceil(*stride) {
                for side in sides {
                    let score = raw.scores.get(index).copied().unwrap_or(0.0);
                    if score >= threshold
                        && let (Some(b), Some(l)) = (
                            raw.bounds.get(4 * index..4 * index + 4),
                            raw.landmarks.get(10 * index..10 * index + 10),
                        )
                    {
                        let (cx, cy) = ((x as f32 + 0.5) * *stride as f32, (y as f32 + 0.5) * *stride as f32);
                        let place = |dx: f32, dy: f32| (cx + dx * VARIANCE.0 * side, cy + dy * VARIANCE.0 * side);
                        let (mx, my) = place(b[0], b[1]);
                        let (w, h) = (side * (b[2] * VARIANCE.1).exp(), side * (b[3] * VARIANCE.1).exp());
                        faces.push(Face {
                            bounds: [mx - w / 2.0, my - h / 2.0, mx + w / 2.0, my + h / 2.0],
                            landmarks: std::array::from_fn(|i| place(l[2 * i], l[2 * i + 1])),
                            score,
                        });
                    }
                    index += 1;
                }
            }
        }
    }
    thin_out(faces)
}

/// Share of overlap above which the weaker of two boxes is taken for the same face.
const SAME_FACE: f32 = 0.4;
/// Most faces that are looked at further.
const MAX_FACES: usize = 256;

fn thin_out(mut faces: Vec<Face>) -> Vec<Face> {
    faces.retain(|f| f.bounds.iter().all(|v| v.is_finite()));
    faces.sort_by(|a, b| b.score.total_cmp(&a.score));
    let mut kept: Vec<Face> = Vec::new();
    for face in faces {
        if kept.len() == MAX_FACES {
            break;
        }
        if kept.iter().all(|k| overlap(&k.bounds, &face.bounds) <= SAME_FACE) {
            kept.push(face);
        }
    }
    kept
}

fn overlap(a: &[f32; 4], b: &[f32; 4]) -> f32 {
    let area = |r: &[f32; 4]| (r[2] - r[0]).max(0.0) * (r[3] - r[1]).max(0.0);
    let shared = area(&[a[0].max(b[0]), a[1].max(b[1]), a[2].min(b[2]), a[3].min(b[3])]);
    shared / (area(a) + area(b) - shared).max(f32::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_boxes_leave_the_best_one() {
        let face = |left: f32, score: f32| Face {
            bounds: [left, 0.0, left + 10.0, 10.0],
            landmarks: [(0.0, 0.0); 5],
            score,
        };
        let kept = thin_out(vec![
            face(0.0, 0.9),
            face(1.0, 0.95),
            face(30.0, 0.5),
            face(f32::NAN, 1.0),
        ]);
        assert_eq!(kept.iter().map(|f| f.score).collect::<Vec<_>>(), [0.95, 0.5]);
    }

    #[test]
    fn a_zero_offset_is_its_prior() {
        // 32×32: strides 8, 16, 32 give 16, 4 and 1 cells of two priors.
        let mut scores = vec![0.0; 42];
        scores[3] = 1.0;
        let raw = RawFaces {
            scores,
            bounds: vec![0.0; 168],
            landmarks: vec![0.0; 420],
        };
        let faces = decode(&raw, (32, 32), 0.5);
        assert_eq!(faces.len(), 1);
        assert_eq!(faces[0].bounds, [12.0 - 16.0, 4.0 - 16.0, 12.0 + 16.0, 4.0 + 16.0]);
        assert_eq!(faces[0].landmarks, [(12.0, 4.0); 5]);
    }
}
