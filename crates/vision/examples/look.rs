//! Runs one network on one picture: `look upscale|strip|faces|nsfw WEIGHTS PICTURE [RESULT.png]`.

use std::path::Path;

use vision::background::{BackgroundRemover, MattingSettings};
use vision::face::FaceDetector;
use vision::nsfw::OpenNsfw;
use vision::upscale::Upscaler;
use vision::{Device, Weights};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [what, weights, picture, rest @ ..] = args.as_slice() else {
        return Err("usage: look upscale|strip|faces|nsfw WEIGHTS PICTURE [RESULT.png]".into());
    };
    let weights = Weights::open(Path::new(weights), &Device::Cpu)?;
    let picture = imaging::decode(&std::fs::read(picture)?, &imaging::Limits::image_job())?;
    let begin = std::time::Instant::now();
    let made = match what.as_str() {
        "upscale" => {
            let net = Upscaler::load(&weights)?;
            println!("{} x{}", net.architecture(), net.scale());
            Some(net.upscale(&picture, net.tiling(), &mut |_, _| true)?)
        }
        "strip" => Some(BackgroundRemover::load(&weights)?.cut_out(&picture, &MattingSettings::default())?),
        "faces" => {
            for face in FaceDetector::load(&weights)?.detect(&picture, 0.5, 1024)? {
                let [left, top, right, bottom] = face.bounds;
                println!("face {left:.0} {top:.0} {right:.0} {bottom:.0} {:.4}", face.score);
            }
            None
        }
        "nsfw" => {
            println!("{:.5}", OpenNsfw::load(&weights)?.score(&picture)?);
            None
        }
        other => return Err(format!("`{other}` is none of upscale, strip, faces, nsfw").into()),
    };
    println!("{:.2?}", begin.elapsed());
    if let (Some(made), Some(path)) = (made, rest.first()) {
        std::fs::write(path, imaging::encode_png(&made)?)?;
    }
    Ok(())
}
