use candle_core::{Device, Tensor};
use imaging::Limits;
use vision::Weights;
use vision::face::{FaceDetector, FaceParser, FaceRestorer, RestoreSettings, restore_faces};

use crate::fidelity::root;
use crate::made_up;

fn photo() -> imaging::Picture {
    let bytes = std::fs::read(root().join("cases/faces/face_256x224.png")).unwrap();
    imaging::decode(&bytes, &Limits::image_job()).unwrap()
}

fn detector() -> FaceDetector {
    let path = root().join("models/retinaface_mobilenet0.25.safetensors");
    FaceDetector::load(&Weights::open(&path, &Device::Cpu).unwrap()).unwrap()
}

#[test]
fn the_detector_gives_the_references_numbers_on_a_photograph() {
    let raw = detector().forward(&photo()).unwrap();
    let expected =
        candle_core::safetensors::load(root().join("cases/faces/retinaface.safetensors"), &Device::Cpu).unwrap();
    for (name, got) in [
        ("scores", &raw.scores),
        ("bounds", &raw.bounds),
        ("landmarks", &raw.landmarks),
    ] {
        let wanted = expected[name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(wanted.len(), got.len(), "{name}");
        let most = wanted.iter().zip(got).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(most <= 5e-4, "{name} differ by {most}");
    }
}

#[test]
fn a_detector_with_a_thin_resnet_gives_the_references_numbers() {
    let (tensors, stored) = made_up::case("faces/retinaface_resnet50");
    let net = FaceDetector::load(&Weights::from_tensors(tensors, &Device::Cpu)).unwrap();
    let (height, width, _) = stored["x"].dims3().unwrap();
    let bytes = stored["x"].flatten_all().unwrap().to_vec1().unwrap();
    let raw = net
        .forward(&imaging::Picture::from_rgb(width as u32, height as u32, bytes).unwrap())
        .unwrap();
    let expected = stored["y"].to_vec2::<f32>().unwrap();
    assert_eq!(
        (raw.scores.len(), raw.bounds.len()),
        (expected.len(), 4 * expected.len())
    );
    for (n, row) in expected.iter().enumerate() {
        let (bounds, landmarks) = (&raw.bounds[4 * n..][..4], &raw.landmarks[10 * n..][..10]);
        let got = std::iter::once(&raw.scores[n]).chain(bounds).chain(landmarks);
        // Scores are 0 to 1, offsets of these made-up weights up to 115.
        for (at, (got, wanted)) in got.zip(row).enumerate() {
            let bound = if at == 0 { 1e-3 } else { 5e-3 };
            assert!((got - wanted).abs() <= bound, "prior {n}, {at}: {got} and not {wanted}");
        }
    }
}

#[test]
fn one_face_is_found_and_its_features_stand_where_they_should() {
    let faces = detector().detect(&photo(), 0.9, 1024).unwrap();
    assert_eq!(faces.len(), 1, "{faces:?}");
    let [left, top, right, bottom] = faces[0].bounds;
    let inside = |p: (f32, f32)| p.0 > left && p.0 < right && p.1 > top && p.1 < bottom;
    assert!(faces[0].landmarks.iter().all(|p| inside(*p)));
    let [left_eye, right_eye, nose, mouth, _] = faces[0].landmarks;
    assert!(left_eye.0 < nose.0 && nose.0 < right_eye.0 && left_eye.1 < nose.1 && nose.1 < mouth.1);
    // Looked at half the size, the face is still in the same place of the whole picture.
    let smaller = detector().detect(&photo(), 0.9, 128).unwrap();
    assert!(
        (smaller[0].bounds[0] - left).abs() < 6.0 && (smaller[0].bounds[3] - bottom).abs() < 6.0,
        "{smaller:?}"
    );
}

#[test]
fn a_repair_changes_the_face_and_nothing_else() {
    let path = root().join("models/alchemy/gfpgan_64.safetensors");
    let restorer = FaceRestorer::load(&Weights::open(&path, &Device::Cpu).unwrap()).unwrap();
    let before = photo();
    let run = |strength| {
        let settings = RestoreSettings {
            strength,
            ..RestoreSettings::default()
        };
        restore_faces(&before, &detector(), &restorer, &settings, &mut |_, _| true).unwrap()
    };
    assert_eq!(run(0.0), before, "no strength, no change");
    let after = run(1.0);
    let face = &detector().detect(&before, 0.9, 1024).unwrap()[0];
    let nose = face.landmarks[2];
    let at = (nose.0 as u32, nose.1 as u32);
    assert_ne!(after.rgb_at(at.0, at.1), before.rgb_at(at.0, at.1));
    for (x, y) in [(0, 0), (255, 0), (0, 223), (255, 223)] {
        assert_eq!(after.rgb_at(x, y), before.rgb_at(x, y), "corner {x}, {y}");
    }
    // A picture without a face comes back as it was.
    let empty = imaging::Picture::filled(96, 96, [90, 120, 150]);
    let settings = RestoreSettings::default();
    assert_eq!(
        restore_faces(&empty, &detector(), &restorer, &settings, &mut |_, _| true).unwrap(),
        empty
    );
}

/// The photograph at this size in the middle of a grey picture.
fn framed(width: u32, height: u32, side: u32) -> imaging::Picture {
    let mut picture = imaging::Picture::filled(side, side, [128; 3]);
    let small = photo().resized(width, height, imaging::Filter::Box);
    let (left, top) = ((side - width) as usize / 2, (side - height) as usize / 2);
    for (y, row) in small.data().chunks_exact(width as usize * 3).enumerate() {
        let at = ((top + y) * side as usize + left) * 3;
        picture.data_mut()[at..at + row.len()].copy_from_slice(row);
    }
    picture
}

#[test]
fn small_pictures_are_looked_at_larger_and_the_smallest_faces_are_left_alone() {
    let path = root().join("models/alchemy/gfpgan_64.safetensors");
    let restorer = FaceRestorer::load(&Weights::open(&path, &Device::Cpu).unwrap()).unwrap();
    let repaired = |picture: &imaging::Picture, threshold| {
        let settings = RestoreSettings {
            threshold,
            ..RestoreSettings::default()
        };
        restore_faces(picture, &detector(), &restorer, &settings, &mut |_, _| true).unwrap()
    };
    // Too small for the detector as it is, but not when enlarged; its eyes are near, measured by so small a picture.
    let tiny = framed(22, 19, 64);
    assert!(detector().detect(&tiny, 0.8, 2048).unwrap().is_empty());
    assert_ne!(repaired(&tiny, 0.8), tiny);
    // In a large picture the same distance is nobody's face, though a lax detector finds it.
    let far = framed(38, 33, 640);
    let face = &detector().detect(&far, 0.1, 2048).unwrap()[0];
    let apart = face.landmarks[1].0 - face.landmarks[0].0;
    assert!((3.0..5.0).contains(&apart), "{apart}");
    assert_eq!(repaired(&far, 0.1), far);
    assert_ne!(repaired(&framed(48, 42, 640), 0.1), framed(48, 42, 640));
}

/// A parser that takes every pixel for this class.
fn parser(class: usize) -> FaceParser {
    let mut tensors = made_up::case("faces/parsenet").0;
    for (key, tensor) in &mut tensors {
        if key.starts_with("out_mask_conv.") {
            *tensor = tensor.zeros_like().unwrap();
        }
    }
    let scores: Vec<f32> = (0..19).map(|n| if n == class { 1.0 } else { 0.0 }).collect();
    tensors.insert(
        "out_mask_conv.conv2d.bias".into(),
        Tensor::new(scores, &Device::Cpu).unwrap(),
    );
    FaceParser::load(&Weights::from_tensors(tensors, &Device::Cpu)).unwrap()
}

#[test]
fn only_what_is_face_is_laid_back_and_never_with_a_hard_edge() {
    let path = root().join("models/alchemy/gfpgan_64.safetensors");
    let restorer = || FaceRestorer::load(&Weights::open(&path, &Device::Cpu).unwrap()).unwrap();
    let before = photo();
    let repaired = |restorer: FaceRestorer| {
        let settings = RestoreSettings::default();
        restore_faces(&before, &detector(), &restorer, &settings, &mut |_, _| true).unwrap()
    };
    let (skin, hair) = (1, 17);
    assert_eq!(repaired(restorer().with_parser(parser(hair))), before);
    // Where all is face the square's own soft edge is left, but for the outermost pixels, which are never laid back.
    let whole = repaired(restorer());
    let apart = |other: &imaging::Picture| {
        let steps = whole
            .data()
            .iter()
            .zip(other.data())
            .map(|(a, b)| f64::from(a.abs_diff(*b)));
        steps.sum::<f64>() / whole.data().len() as f64
    };
    let (parsed, changed) = (apart(&repaired(restorer().with_parser(parser(skin)))), apart(&before));
    assert!(parsed <= 0.01 * changed, "{parsed} of {changed}");
}
