//! How a found face is turned upright: five landmarks onto those of a mean face, without the landmarks that do not fit.
//!
//! As OpenCV's `estimateAffinePartial2D` by least median of squares, which facexlib and the Horde's image workers call: of the
//! maps that two landmarks give the one with the least median error tells which landmarks fit, and these together give the map.
//! Its random draws begin with a fixed seed and do not depend on the landmarks, so that five of them always give these pairs.

use imaging::warp::Affine;

/// Eyes, nose and corners of the mouth.
pub(super) type Landmarks = [(f64, f64); 5];

/// Where they stand in an upright face of 512×512 (FFHQ's mean face, as in facexlib).
pub(super) const TEMPLATE: Landmarks = [
    (192.98138, 239.94708),
    (318.90277, 240.1936),
    (256.63416, 314.01935),
    (201.26117, 371.41043),
    (313.08905, 371.15118),
];
/// Side of that face.
pub(super) const TEMPLATE_SIDE: f64 = 512.0;

/// The pairs that OpenCV's generator draws, in order, without repetitions.
const PAIRS: [[usize; 2]; 6] = [[0, 4], [0, 3], [1, 2], [1, 0], [1, 4], [3, 1]];

/// The turn, scale and shift from `found` to `template`; `None` where they coincide or are no numbers.
pub(super) fn upright(found: &Landmarks, template: &Landmarks) -> Option<Affine> {
    let errors = |map: &Affine| -> [f64; 5] {
        std::array::from_fn(|n| {
            let (at, to) = (map.apply(found[n]), template[n]);
            (at.0 - to.0).powi(2) + (at.1 - to.1).powi(2)
        })
    };
    let mut best: Option<(f64, [f64; 5])> = None;
    for pair in PAIRS {
        let Some(map) = Affine::similarity(&pair.map(|n| found[n]), &pair.map(|n| template[n])) else {
            continue;
        };
        let errors = errors(&map);
        let mut sorted = errors;
        sorted.sort_by(f64::total_cmp);
        if best.is_none_or(|(least, _)| sorted[2] < least) {
            best = Some((sorted[2], errors));
        }
    }
    let (median, errors) = best?;
    // 2.5 deviations, estimated from the median of five values of which two are fitted (Rousseeuw 1984).
    let most = (2.5 * 1.4826 * (1.0 + 5.0 / 3.0) * median.sqrt()).max(0.001);
    let fitting = |points: &Landmarks| -> Vec<(f64, f64)> {
        let pairs = points.iter().zip(errors);
        pairs.filter(|(_, e)| *e <= most * most).map(|(p, _)| *p).collect()
    };
    Affine::similarity(&fitting(found), &fitting(template))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `cv2.estimateAffinePartial2D(found, TEMPLATE, method=cv2.LMEDS)` of OpenCV 5.0.0, from found landmarks.
    #[test]
    fn landmarks_are_weighed_as_opencv_weighs_them() {
        // All fit; one does not, a little; one does not at all.
        let cases: [(Landmarks, [f64; 6]); 3] = [
            (
                [
                    (120.5, 98.25),
                    (158.75, 101.5),
                    (150.0, 124.0),
                    (122.25, 142.5),
                    (151.5, 145.25),
                ],
                [3.046664, 0.215202, -198.106437, -0.215202, 3.046664, -35.005258],
            ),
            (
                [
                    (86.0, 77.0),
                    (124.5, 78.5),
                    (104.0, 101.0),
                    (88.5, 118.0),
                    (121.0, 119.5),
                ],
                [3.218696, 0.149045, -94.043968, -0.149045, 3.218696, 4.997619],
            ),
            (
                [(60.0, 60.0), (100.0, 75.0), (74.0, 90.0), (52.0, 103.0), (130.0, 140.0)],
                [2.92867, 0.917255, -42.169914, -0.917255, 2.92867, 116.825425],
            ),
        ];
        for (found, expected) in cases {
            let Affine(map) = upright(&found, &TEMPLATE).unwrap();
            for (got, wanted) in map.iter().zip(expected) {
                assert!(
                    (got - wanted).abs() <= 1e-4 * wanted.abs().max(1.0),
                    "{map:?} instead of {expected:?}"
                );
            }
        }
    }

    #[test]
    fn landmarks_in_one_place_or_nowhere_are_no_face() {
        assert_eq!(upright(&[(3.0, 4.0); 5], &TEMPLATE), None);
        assert_eq!(upright(&[(f64::NAN, f64::INFINITY); 5], &TEMPLATE), None);
    }
}
