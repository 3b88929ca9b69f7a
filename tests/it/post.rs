//! Post-processing on a dreamer's job through the whole protocol: the requester's order does not matter, the Horde's does.

use std::path::Path;
use std::time::Duration;

use e2e::demo::dreamer::{Ask, answered, body, stage_with};
use imaging::Picture;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};

/// Loading and drawing on two busy cores, with room.
const PATIENCE: Duration = Duration::from_secs(240);
pub(crate) const UPSCALER: &str = "RealESRGAN_x4plus";

/// Tensors of one file: name, shape, numbers.
#[derive(Default)]
pub(crate) struct Network(pub(crate) Vec<(String, Vec<usize>, Vec<f32>)>);

impl Network {
    /// A convolution of `[outputs, inputs]` channels that weighs only the middle pixel; `weights` may end early.
    pub(crate) fn conv(&mut self, name: &str, [outputs, inputs]: [usize; 2], weights: &[f32], bias: f32) {
        let of = |at: usize| weights.get(at).copied().unwrap_or(0.0);
        let kernels = (0..outputs * inputs).flat_map(|at| (0..9).map(move |k| if k == 4 { of(at) } else { 0.0 }));
        let kernels = kernels.collect();
        self.0
            .push((format!("{name}.weight"), vec![outputs, inputs, 3, 3], kernels));
        self.0
            .push((format!("{name}.bias"), vec![outputs], vec![bias; outputs]));
    }

    pub(crate) fn write(&self, path: &Path) {
        let bytes = |numbers: &[f32]| {
            numbers
                .iter()
                .flat_map(|number| number.to_le_bytes())
                .collect::<Vec<u8>>()
        };
        let data: Vec<Vec<u8>> = self.0.iter().map(|(_, _, numbers)| bytes(numbers)).collect();
        let views = self.0.iter().zip(&data).map(|((name, shape, _), bytes)| {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
            (name, view.expect("as many numbers as the shape says"))
        });
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("it can be made");
        safetensors::serialize_to_file(views, None, path).expect("it can be written");
    }
}

/// An upscaler in RealESRGAN's layout that makes every pixel a block of 4×4 of the opposite colour. The numbers of its dense
/// blocks are arbitrary up to the last convolution, which lets nothing of them through.
fn opposite() -> Network {
    const SAME: [f32; 9] = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0];
    let mut network = Network::default();
    network.conv("conv_first", [3, 3], &SAME, 0.0);
    for dense in 1..=3 {
        for conv in 1..=4 {
            let weights: Vec<f32> = (0..9)
                .map(|at| ((at * 7 + conv * 5 + dense) % 11) as f32 / 11.0 - 0.5)
                .collect();
            network.conv(&format!("body.0.rdb{dense}.conv{conv}"), [1, 2 + conv], &weights, 0.1);
        }
        network.conv(&format!("body.0.rdb{dense}.conv5"), [3, 7], &[], 0.0);
    }
    network.conv("conv_body", [3, 3], &[], 0.0);
    for same in ["conv_up1", "conv_up2", "conv_hr"] {
        network.conv(same, [3, 3], &SAME, 0.0);
    }
    network.conv("conv_last", [3, 3], &SAME.map(|weight| -weight), 1.0);
    network
}

/// A background remover in U²-Net's layout for which what is redder than blue stands in front.
fn red_stands_in_front() -> Network {
    let mut network = Network::default();
    for stage in 1..=6 {
        let (inputs, weights): (usize, &[f32]) = if stage == 1 { (3, &[1.0, 0.0, -1.0]) } else { (1, &[]) };
        network.conv(&format!("stage{stage}.rebnconvin.conv_s1"), [1, inputs], weights, 0.0);
        network.conv(&format!("stage{stage}.rebnconv1.conv_s1"), [1, 1], &[], 0.0);
    }
    for stage in 1..=5 {
        // What comes from below, then what comes from the side.
        network.conv(&format!("stage{stage}d.rebnconvin.conv_s1"), [1, 2], &[0.0, 1.0], 0.0);
        network.conv(&format!("stage{stage}d.rebnconv1.conv_s1"), [1, 1], &[], 0.0);
    }
    for side in 1..=6 {
        network.conv(&format!("side{side}"), [1, 1], &[6.0], -6.0);
    }
    network
}

/// Every network that jobs may name: the two above, and empty files for those that are not named here and so never read.
pub(crate) fn install(models: &Path) {
    opposite().write(&models.join(format!("esrgan/{UPSCALER}.safetensors")));
    red_stands_in_front().write(&models.join("rembg/u2netp.safetensors"));
    for unread in [
        "gfpgan/retinaface_mobilenet0.25",
        "gfpgan/GFPGANv1.4",
        "codeformer/codeformer",
        "esrgan/RealESRGAN_x2plus",
        "esrgan/RealESRGAN_x4plus_anime_6B",
        "esrgan/NMKD_Siax",
        "esrgan/4x_AnimeSharp",
    ] {
        Network::default().write(&models.join(format!("{unread}.safetensors")));
    }
}

/// Opacity in the middle and in the four corners, 0 to 255.
fn opacity(picture: &Picture) -> (u8, [u8; 4]) {
    let alpha = picture.alpha().expect("it has alpha");
    let (right, low) = (alpha.width() - 3, alpha.height() - 3);
    let at = |x: u32, y: u32| alpha.data()[(y * alpha.width() + x) as usize];
    let corners = [at(2, 2), at(right, 2), at(2, low), at(right, low)];
    (at(alpha.width() / 2, alpha.height() / 2), corners)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_picture_is_enlarged_before_its_background_goes_whatever_the_order_asked_for() {
    let models = tempfile::tempdir().expect("a folder for models");
    install(models.path());
    let extra = [
        ("DREAMER_UNCHECKED_ON_LOOPBACK", "true"),
        ("DREAMER_ALLOW_POST_PROCESSING", "true"),
    ];
    let mut stage = stage_with(models.path(), &extra).await.expect("dreamer starts");
    let ask = |title: &'static str, post: Value| Ask {
        title,
        prompt: "a large red circle on a blue background",
        params: json!({ "seed": "3", "post_processing": post }),
        body: json!({}),
    };
    let asks = [
        ask("plain", json!([])),
        ask("enlarged", json!([UPSCALER])),
        ask("cut out", json!(["strip_background"])),
        ask("both", json!(["strip_background", UPSCALER])),
        ask("both, the other way round", json!([UPSCALER, "strip_background"])),
    ];
    let (_, done) = answered(&mut stage, asks.iter().map(body), PATIENCE)
        .await
        .expect("answers");
    let books = stage.close().await.expect("dreamer drains and ends");
    assert_eq!(
        (&books.summary["accepted"], &books.summary["faulted"]),
        (&json!(5), &json!(0))
    );
    let pictures: Vec<&Picture> = done.iter().map(|done| &done.pictures[0]).collect();
    let sizes: Vec<(u32, u32)> = pictures.iter().map(|p| (p.width(), p.height())).collect();
    assert_eq!(sizes, [(64, 64), (256, 256), (64, 64), (256, 256), (256, 256)]);

    // Delivered pictures are WebP with loss, so single pixels at edges may be far off.
    let (plain, enlarged) = (pictures[0], pictures[1]);
    let mut off = 0u64;
    for (x, y) in (0..256).flat_map(|y| (0..256).map(move |x| (x, y))) {
        let small = plain.rgb_at(x / 4, y / 4).expect("inside");
        let large = enlarged.rgb_at(x, y).expect("inside");
        off += small
            .iter()
            .zip(large)
            .map(|(a, b)| u64::from((255 - a).abs_diff(b)))
            .sum::<u64>();
    }
    let off = off as f64 / f64::from(256 * 256 * 3);
    assert!(off < 8.0, "the enlarged one has the opposite colours: {off:.2} off");

    let (middle, corners) = opacity(pictures[2]);
    assert!(
        middle > 200 && corners.iter().all(|corner| *corner < 50),
        "the red circle stays: {middle}, {corners:?}"
    );
    for both in &pictures[3..] {
        // Enlarged, the circle is cyan and the background yellow: had the cut-out come first, the circle would have stayed.
        let (middle, corners) = opacity(both);
        assert!(
            middle < 50 && corners.iter().all(|corner| *corner > 200),
            "the enlarged background stays: {middle}, {corners:?}"
        );
    }
}
