//! Images: a tiny, really trained model draws coloured shapes, and the pixels say whether each job did what it asked.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use imaging::{Limits, Mask, Picture, encode_png, encode_png_mask};
use serde_json::{Value, json};

use crate::demo::civitai::{self, INVERSION, VERSION};
use crate::demo::report::Report;
use crate::demo::shapes::{Seen, difference, disc, look};
use crate::demo::sheet::Sheet;
use crate::demo::stage::Stage;

/// Name under which the demo model is offered.
pub const MODEL: &str = "tiny-shapes";
/// Side of its pictures in pixels.
const SIDE: u32 = 64;
/// Nobody has a LoRA of this number here.
const NO_SUCH_LORA: &str = "999999999";

/// One request of the demo.
pub struct Ask {
    /// What it shows; [`verdicts`] refers to it.
    pub title: &'static str,
    /// Prompt as sent.
    pub prompt: &'static str,
    /// Parameters that differ from the demo's usual ones.
    pub params: Value,
    /// Further keys of the request.
    pub body: Value,
}

/// A finished request.
pub struct Done {
    /// In the order they were handed in.
    pub pictures: Vec<Picture>,
    /// `(type, value, ref)` of every entry of the first picture's metadata.
    pub metadata: Vec<(String, String, String)>,
}

/// Runs the demo. True if every request was answered as asked and nothing was handed back or lost.
pub async fn show(timeout: Duration) -> anyhow::Result<(Report, bool)> {
    let asks = asks()?;
    let mut sheet = Sheet::begin("dreamer", "dreamer: a tiny model through the whole protocol")?;
    let models = tempfile::tempdir().context("no folder for models")?;
    let mut stage = stage(models.path()).await?;
    let mut ids = Vec::new();
    for ask in &asks {
        let filed = stage.requester.file("generate/async", &body(ask)).await;
        ids.push(filed.with_context(|| format!("filing \"{}\"", ask.title))?);
    }
    println!("{} requests are waiting; dreamer is at work.\n", asks.len());
    let results = stage.finished("generate/status", &ids, timeout).await?;
    let mut done = Vec::new();
    for (ask, result) in asks.iter().zip(&results) {
        done.push(
            read(&stage, result)
                .await
                .with_context(|| format!("reading \"{}\"", ask.title))?,
        );
    }
    let mut outputs = Vec::new();
    let mut all_right = true;
    for (at, ask) in asks.iter().enumerate() {
        let verdict = verdict(at, &asks, &done);
        let words = match &verdict {
            Ok(()) => "as asked".to_owned(),
            Err(why) => format!("WRONG: {why}"),
        };
        let seen: Vec<String> = done[at]
            .pictures
            .iter()
            .map(|picture| described(&look(picture)))
            .collect();
        println!("── {}\n{}\n→ {} — {words}\n", ask.title, ask.prompt, seen.join("; "));
        all_right &= verdict.is_ok();
        outputs.push(json!({
            "title": ask.title, "prompt": ask.prompt, "answered": !done[at].pictures.is_empty(),
            "seen": seen, "right": verdict.is_ok(), "why": verdict.as_ref().err(),
        }));
        sheet.add(ask.title, ask.prompt, done[at].pictures.clone(), verdict)?;
    }
    let page = sheet.finish()?;
    let books = stage.close().await?;
    let count = |name: &str| books.summary[name].as_u64().unwrap_or(0);
    let report = Report {
        worker: "dreamer",
        submitted: count("accepted"),
        faulted: count("faulted"),
        expired: count("expired") + count("open"),
        busy_fraction: books.status["busy_fraction"].as_f64().unwrap_or(0.0),
        kudos: books.summary["kudos"].as_f64().unwrap_or(0.0),
        outputs,
    };
    println!(
        "{} pictures, {} handed back, {} lost, in {:.1} s (device busy {:.0} % of the time); {:.2} kudos\n{}",
        report.submitted,
        report.faulted,
        report.expired,
        books.span_seconds,
        100.0 * report.busy_fraction,
        report.kudos,
        page.display()
    );
    let complete = report.complete(asks.len()) && all_right;
    Ok((report, complete))
}

/// A Horde and a dreamer with the tiny model, whose `models.toml` is written into `models`; its pictures are not checked.
/// LoRAs and inversions come from a copy of CivitAI's API.
pub async fn stage(models: &Path) -> anyhow::Result<Stage> {
    let address = civitai::serve().await?;
    let more = [
        ("DREAMER_UNCHECKED_ON_LOOPBACK", "true"),
        ("DREAMER_CIVITAI_URL", address.as_str()),
        ("DREAMER_EMBEDDINGS_URL", address.as_str()),
        // A picture in two passes must be larger than the model's own size.
        ("DREAMER_MAX_POWER", "16"),
    ];
    stage_with(models, &more).await
}

/// The same with `more` in the dreamer's environment, and the content check on.
pub async fn stage_with(models: &Path, more: &[(&str, &str)]) -> anyhow::Result<Stage> {
    let usual = settings(models)?;
    let usual = usual.iter().map(|(key, value)| (*key, value.as_str()));
    Stage::set("dreamer", &usual.chain(more.iter().copied()).collect::<Vec<_>>()).await
}

/// A dreamer's environment for the tiny model, whose `models.toml` is written into `models`.
pub fn settings(models: &Path) -> anyhow::Result<Vec<(&'static str, String)>> {
    let weights = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-shapes-sd15/tiny-shapes-sd15.safetensors");
    if !weights.is_file() {
        bail!("`{}` is not there", weights.display());
    }
    let entry = format!(
        "[[model]]\nname = \"{MODEL}\"\nkind = \"image\"\nbaseline = \"stable_diffusion_1\"\n\
         [[model.file]]\npath = \"tiny-shapes-sd15.safetensors\"\nlocal_path = {:?}\n",
        weights.display().to_string()
    );
    std::fs::write(models.join("models.toml"), entry)?;
    // Nobody answers there.
    let nowhere = "http://127.0.0.1:9/api/v1/";
    let usual = [
        ("HORDE_MODELS_DIR", models.display().to_string()),
        ("HORDE_BRIDGE_AGENT", "AI Horde Worker reGen:6.0.0:demo".into()),
        ("DREAMER_MODELS", MODEL.into()),
        ("DREAMER_MAX_BATCH", "4".into()),
        ("DREAMER_ALLOW_LORA", "true".into()),
        ("DREAMER_CIVITAI_URL", nowhere.into()),
        ("DREAMER_EMBEDDINGS_URL", nowhere.into()),
    ];
    Ok(usual.to_vec())
}

/// The whole request.
pub fn body(ask: &Ask) -> Value {
    let mut params = json!({
        "width": SIDE, "height": SIDE, "steps": 20, "cfg_scale": 5.0, "sampler_name": "k_euler_a", "karras": false, "n": 1, "seed": "1",
    });
    let mut body = json!({ "prompt": ask.prompt, "models": [MODEL], "r2": true, "nsfw": true, "censor_nsfw": false });
    let join = |into: &mut Value, from: &Value| {
        if let (Some(into), Some(from)) = (into.as_object_mut(), from.as_object()) {
            into.extend(from.clone());
        }
    };
    join(&mut params, &ask.params);
    join(&mut body, &ask.body);
    body["params"] = params;
    body
}

/// Files requests, waits until all are done, and reads what was delivered: the API's last word on each, and the pictures.
pub async fn answered(
    stage: &mut Stage,
    bodies: impl IntoIterator<Item = Value>,
    patience: Duration,
) -> anyhow::Result<(Vec<Value>, Vec<Done>)> {
    let mut ids = Vec::new();
    for body in bodies {
        ids.push(stage.requester.file("generate/async", &body).await?);
    }
    let results = stage.finished("generate/status", &ids, patience).await?;
    let mut done = Vec::new();
    for result in &results {
        done.push(read(stage, result).await?);
    }
    Ok((results, done))
}

/// The pictures behind a finished request.
pub async fn read(stage: &Stage, result: &Value) -> anyhow::Result<Done> {
    let mut done = Done {
        pictures: Vec::new(),
        metadata: Vec::new(),
    };
    for generation in result["generations"].as_array().into_iter().flatten() {
        let address = generation["img"].as_str().context("a generation without a picture")?;
        let bytes = if address.starts_with("http") {
            stage.requester.fetch(address).await?
        } else {
            STANDARD.decode(address)?
        };
        done.pictures.push(imaging::decode(&bytes, &Limits::image_job())?);
        if done.metadata.is_empty() {
            let text = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
            let entries = generation["gen_metadata"].as_array().into_iter().flatten();
            done.metadata = entries
                .map(|entry| (text(entry, "type"), text(entry, "value"), text(entry, "ref")))
                .collect();
        }
    }
    Ok(done)
}

/// The demo's requests. Later ones are compared with earlier ones by [`verdict`].
pub fn asks() -> anyhow::Result<Vec<Ask>> {
    let plain = |title, prompt, params| Ask {
        title,
        prompt,
        params,
        body: json!({}),
    };
    let source = STANDARD.encode(encode_png(&source())?);
    let from = |title, prompt, strength: f64, processing: &str, mask: Option<String>| {
        let mut body = json!({ "source_image": source, "source_processing": processing });
        if let Some(mask) = mask {
            body["source_mask"] = json!(mask);
        }
        Ask {
            title,
            prompt,
            // Without guidance a low strength keeps the colours of the source.
            params: json!({ "denoising_strength": strength, "cfg_scale": if strength < 0.5 { 1.0 } else { 5.0 } }),
            body,
        }
    };
    let mask = STANDARD.encode(encode_png_mask(&mask()?)?);
    let half = STANDARD.encode(encode_png(&left_half()?)?);
    let lora = json!({ "loras": [{ "name": VERSION.to_string(), "is_version": true, "model": 1.0, "clip": 1.0 }] });
    let large = |hires: bool| json!({ "width": LARGE, "height": LARGE, "steps": 4, "hires_fix": hires });
    let other = "a blue square on a yellow background";
    Ok(vec![
        plain("prompt", RED_ON_BLUE, json!({})),
        plain("the same seed again", RED_ON_BLUE, json!({})),
        plain("another seed", RED_ON_BLUE, json!({ "seed": "2" })),
        plain(
            "another sampler and schedule",
            "a large green square on a white background",
            json!({ "sampler_name": "k_dpmpp_2m", "karras": true }),
        ),
        plain("without a negative prompt", "circle", json!({ "seed": RED_SEED })),
        plain("with a negative prompt", "circle ### red", json!({ "seed": RED_SEED })),
        from("a source, hardly changed", other, 0.1, "img2img", None),
        from("a source, painted over", other, 0.9, "img2img", None),
        from(
            "inpainting the right half",
            "a green square on a black background",
            1.0,
            "inpainting",
            Some(mask),
        ),
        Ask {
            title: "outpainting a left half",
            prompt: RED_ON_GREEN,
            params: json!({ "denoising_strength": 1.0 }),
            body: json!({ "source_image": half, "source_processing": "outpainting" }),
        },
        plain("large in one pass", RED_ON_BLUE, large(false)),
        plain("large in two passes", RED_ON_BLUE, large(true)),
        plain("a LoRA that forgets the prompt", RED_ON_BLUE, lora.clone()),
        plain("the same LoRA with another prompt", other, lora),
        plain(
            "a textual inversion that means red",
            "a embedding:77 circle on a blue background",
            json!({ "tis": [{ "name": INVERSION }] }),
        ),
        plain(
            "a batch of four",
            "a yellow circle on a black background",
            json!({ "n": 4, "seed": "7" }),
        ),
        plain(
            "a LoRA that cannot be had",
            RED_ON_BLUE,
            json!({ "loras": [{ "name": NO_SUCH_LORA, "model": 1.0, "clip": 1.0 }] }),
        ),
    ])
}

const RED_ON_BLUE: &str = "a red circle on a blue background";
const RED_ON_GREEN: &str = "a red circle on a green background";
/// Side beyond the model's own size, where the Horde's second pass begins.
const LARGE: u32 = 576;
/// A seed of which the word `circle` alone makes a red one.
const RED_SEED: &str = "13";

fn source() -> Picture {
    disc(SIDE, [220, 30, 30], [30, 150, 50])
}

/// The source with nothing in its right half, not even below the transparency.
fn left_half() -> anyhow::Result<Picture> {
    let mut picture = source();
    for (at, pixel) in picture.data_mut().chunks_exact_mut(3).enumerate() {
        if at % SIDE as usize >= SIDE as usize / 2 {
            pixel.fill(0);
        }
    }
    Ok(picture.with_alpha(&mask()?.inverted()))
}

fn mask() -> anyhow::Result<Mask> {
    let data = (0..SIDE * SIDE).map(|at| if at % SIDE >= SIDE / 2 { 255 } else { 0 });
    Ok(Mask::new(SIDE, SIDE, data.collect())?)
}

/// What the pixels say of request `at`.
pub fn verdict(at: usize, asks: &[Ask], done: &[Done]) -> Result<(), String> {
    let mine = &done[at];
    let first = mine.pictures.first().ok_or("there is no picture")?;
    let titled = |title: &str| {
        let other = asks.iter().position(|ask| ask.title == title);
        other
            .and_then(|other| done[other].pictures.first())
            .ok_or(format!("there is no \"{title}\""))
    };
    let expect = |picture: &Picture, subject: &'static str, background: &'static str| {
        let seen = look(picture);
        let wanted = Seen {
            subject: Some(subject),
            background,
        };
        (seen == wanted)
            .then_some(())
            .ok_or(format!("it shows {}, not {}", described(&seen), described(&wanted)))
    };
    let everywhere = |_: u32, _: u32| true;
    let apart = |a: &Picture, b: &Picture| difference(a, b, everywhere).unwrap_or(255.0);
    match asks[at].title {
        "prompt" => expect(first, "red", "blue"),
        "the same seed again" => match apart(first, titled("prompt")?) {
            0.0 => Ok(()),
            off => Err(format!("it differs by {off:.2}")),
        },
        "another seed" => {
            expect(first, "red", "blue")?;
            let off = apart(first, titled("prompt")?);
            (off > 1.0).then_some(()).ok_or("it is the same picture".into())
        }
        "another sampler and schedule" => expect(first, "green", "white"),
        "without a negative prompt" => match look(first).subject {
            Some("red") => Ok(()),
            _ => Err("the seed is not one that draws red".into()),
        },
        "with a negative prompt" => {
            let seen = look(first);
            let is_red = seen.subject == Some("red") || seen.background == "red";
            (!is_red).then_some(()).ok_or("it is red".into())
        }
        "a source, hardly changed" => expect(first, "red", "green"),
        "a source, painted over" => expect(first, "blue", "yellow"),
        "inpainting the right half" => {
            let source = source();
            // The VAE works on blocks of 8 pixels and looks beyond them.
            let kept = difference(first, &source, |x, _| x < SIDE / 2 - 8).unwrap_or(255.0);
            let painted = difference(first, &source, |x, _| x >= SIDE / 2).unwrap_or(0.0);
            if kept > 12.0 {
                Err(format!("the left half changed by {kept:.1}"))
            } else if painted < 20.0 {
                Err(format!("the right half changed only by {painted:.1}"))
            } else {
                Ok(())
            }
        }
        "outpainting a left half" => {
            let source = source();
            let kept = difference(first, &source, |x, _| x < SIDE / 2 - 8).unwrap_or(255.0);
            if kept > 12.0 {
                return Err(format!("the left half changed by {kept:.1}"));
            }
            // The worker never saw the circle's other half: it is drawn from the prompt.
            let right = first.crop(SIDE / 2, 0, SIDE / 2, SIDE).ok_or("it is too small")?;
            expect(&right, "red", "green")
        }
        "large in one pass" | "large in two passes" => {
            let size = (first.width(), first.height());
            if size != (LARGE, LARGE) {
                return Err(format!("it has {} × {} pixels", size.0, size.1));
            }
            expect(first, "red", "blue")?;
            let off = apart(first, titled("large in one pass")?);
            let is_second = asks[at].title == "large in two passes";
            (is_second == (off > 5.0))
                .then_some(())
                .ok_or(format!("it differs by {off:.2} from the one in one pass"))
        }
        "a LoRA that forgets the prompt" => {
            let off = apart(first, titled("prompt")?);
            (off > 5.0)
                .then_some(())
                .ok_or(format!("it changes the picture only by {off:.2}"))
        }
        "the same LoRA with another prompt" => {
            let off = apart(first, titled("a LoRA that forgets the prompt")?);
            (off < 1.0)
                .then_some(())
                .ok_or(format!("the prompt still matters: {off:.2}"))
        }
        "a textual inversion that means red" => match apart(first, titled("prompt")?) {
            0.0 => Ok(()),
            off => Err(format!("it differs by {off:.2} from the picture with the word")),
        },
        "a batch of four" => {
            if mine.pictures.len() != 4 {
                return Err(format!("{} pictures came", mine.pictures.len()));
            }
            for (index, picture) in mine.pictures.iter().enumerate() {
                expect(picture, "yellow", "black")?;
                if mine.pictures[..index].iter().any(|other| apart(other, picture) < 1.0) {
                    return Err("two of them are the same".into());
                }
            }
            Ok(())
        }
        "a LoRA that cannot be had" => {
            let noted = ("lora".to_owned(), "download_failed".to_owned(), NO_SUCH_LORA.to_owned());
            if !mine.metadata.contains(&noted) {
                return Err(format!("its metadata is {:?}", mine.metadata));
            }
            match apart(first, titled("prompt")?) {
                0.0 => Ok(()),
                off => Err(format!("it differs by {off:.2} from the picture without")),
            }
        }
        other => Err(format!("nobody judges \"{other}\"")),
    }
}

fn described(seen: &Seen) -> String {
    format!("{} on {}", seen.subject.unwrap_or("nothing"), seen.background)
}
