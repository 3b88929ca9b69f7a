//! Pictures: real networks enlarge, cut out and judge photographs; tiny trained ones say what is drawn on drawings.
//!
//! No package carries a real captioner or interrogator, so those two are the tiny ones of `tests/models`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use base64::Engine as _;
use imaging::{Filter, Limits, Picture};
use serde_json::{Value, json};
use sha2::Digest;

use crate::demo::report::Report;
use crate::demo::sheet::Sheet;
use crate::demo::stage::Stage;
use crate::programs::built;

/// What is drawn on `input0.png` to `input2.png` of the tiny CLIP.
pub const DRAWN: [&str; 3] = [
    "a large orange triangle on a red background",
    "a small orange circle on a purple background",
    "a small white triangle on a yellow background",
];

/// One form on one picture.
pub struct Ask {
    /// What it shows.
    pub title: String,
    /// The source.
    pub picture: Picture,
    /// As the Horde spells it.
    pub form: &'static str,
    /// What must come back.
    pub wanted: Wanted,
}

/// What makes a result right.
#[derive(Clone, Copy)]
pub enum Wanted {
    /// The same picture, this many times as large.
    Enlarged(u32),
    /// The same picture, partly transparent and partly not.
    CutOut,
    /// This caption, word by word.
    Caption(&'static str),
    /// This drawing (its size aside) first among the flavours.
    Ranked(&'static str),
    /// A photograph that is safe for work.
    Safe,
    /// A drawing of the source's size with many areas.
    Drawing,
}

/// What a worker made of an [`Ask`].
pub struct Answer {
    /// A resulting picture.
    pub made: Option<Picture>,
    /// A resulting drawing.
    pub drawing: Option<String>,
    /// What came back in words, or what is wrong with it.
    pub words: String,
    /// Whether it is what was wanted.
    pub right: bool,
}

fn tests_dir(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &Path) -> anyhow::Result<Picture> {
    let bytes = std::fs::read(path).with_context(|| format!("could not read `{}`", path.display()))?;
    Ok(imaging::decode(&bytes, &Limits::image_job())?)
}

/// One of the drawings.
pub fn drawing(n: usize) -> anyhow::Result<Picture> {
    read(&tests_dir(&format!("models/tiny-shapes-clip/input{n}.png")))
}

/// One of the photographs: `astronaut`, `chelsea` or `coffee`.
pub fn photograph(name: &str) -> anyhow::Result<Picture> {
    read(&tests_dir(&format!("photos/{name}.png")))
}

/// Copies `from` to `to`, whose folder is made.
pub fn place(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to.parent().context("a file has a folder")?)?;
    std::fs::copy(from, to).with_context(|| format!("could not copy `{}`", from.display()))?;
    Ok(())
}

/// Names files in the folder's models.toml as the owner's own, by kind, name and path below `models`: networks that stand in
/// for others are not what the catalogue says.
pub fn own(models: &Path, files: &[(&str, &str, &str)]) -> anyhow::Result<()> {
    let mut lines = String::new();
    for (kind, name, path) in files {
        let place = models.join(path);
        let bytes = std::fs::read(&place).with_context(|| format!("could not read `{}`", place.display()))?;
        let sum = hex::encode(sha2::Sha256::digest(&bytes));
        let file = place.file_name().unwrap_or_default().to_string_lossy().into_owned();
        lines += &format!(
            "[[model]]\nname = \"{name}\"\nkind = \"{kind}\"\n[[model.file]]\npath = \"{file}\"\nsha256 = \"{sum}\"\n\
             local_path = \"{}\"\n",
            place.display()
        );
    }
    std::fs::write(models.join("models.toml"), lines).context("models.toml cannot be written")
}

/// Puts the tiny describers where the alchemist looks for the real ones.
pub fn place_describers(models: &Path) -> anyhow::Result<()> {
    for (kind, files) in [
        ("clip", &["words/flavors.txt", "words/tags.txt"][..]),
        ("blip", &[][..]),
    ] {
        let from = tests_dir(&format!("models/tiny-shapes-{kind}"));
        for file in ["model.safetensors", "tokenizer.json", "config.json"]
            .iter()
            .chain(files)
        {
            place(&from.join(file), &models.join(kind).join(file))?;
        }
    }
    Ok(())
}

/// Caption and interrogation of every drawing.
pub fn describing() -> anyhow::Result<Vec<Ask>> {
    let mut asks = Vec::new();
    for (n, truth) in DRAWN.into_iter().enumerate() {
        for (form, wanted) in [
            ("caption", Wanted::Caption(truth)),
            ("interrogation", Wanted::Ranked(truth)),
        ] {
            asks.push(Ask {
                title: format!("{form}: {truth}"),
                picture: drawing(n)?,
                form,
                wanted,
            });
        }
    }
    Ok(asks)
}

fn asks() -> anyhow::Result<Vec<Ask>> {
    let mut asks = Vec::new();
    for (name, form, (x, y)) in [
        ("astronaut", "RealESRGAN_x4plus", (160, 50)),
        ("chelsea", "RealESRGAN_x4plus", (112, 60)),
        ("coffee", "RealESRGAN_x4plus_anime_6B", (240, 120)),
    ] {
        let whole = photograph(name)?;
        asks.push(Ask {
            title: format!("{form}: a piece of {name}, 128×128 to 512×512"),
            picture: whole
                .crop(x, y, 128, 128)
                .context("the photograph is smaller than the piece")?,
            form,
            wanted: Wanted::Enlarged(4),
        });
    }
    for name in ["astronaut", "chelsea", "coffee"] {
        for (form, wanted) in [("strip_background", Wanted::CutOut), ("nsfw", Wanted::Safe)] {
            asks.push(Ask {
                title: format!("{form}: {name}"),
                picture: photograph(name)?,
                form,
                wanted,
            });
        }
    }
    asks.push(Ask {
        title: "vectorize: coffee".to_owned(),
        picture: photograph("coffee")?,
        form: "vectorize",
        wanted: Wanted::Drawing,
    });
    asks.extend(describing()?);
    Ok(asks)
}

/// Files every ask and judges what comes back, in the same order.
pub async fn answers(stage: &mut Stage, asks: &[Ask], timeout: Duration) -> anyhow::Result<Vec<Answer>> {
    let mut ids = Vec::new();
    for ask in asks {
        let png = imaging::encode_png(&ask.picture)?;
        let body = json!({
            "forms": [{ "name": ask.form }],
            "source_image": base64::engine::general_purpose::STANDARD.encode(png),
        });
        let id = stage.requester.file("interrogate/async", &body).await;
        ids.push(id.with_context(|| format!("filing \"{}\"", ask.title))?);
    }
    let results = stage.finished("interrogate/status", &ids, timeout).await?;
    let mut answers = Vec::new();
    for (ask, status) in asks.iter().zip(&results) {
        let form = &status["forms"][0];
        let result = &form["result"][ask.form];
        let address = result.as_str().filter(|text| text.starts_with("http"));
        let made = match address {
            Some(address) => {
                let bytes = stage.requester.fetch(address).await?;
                Some(imaging::decode(&bytes, &Limits::image_job())?)
            }
            None => None,
        };
        let judged = match form["state"].as_str() {
            Some("done") => judge(ask, result, made.as_ref()),
            other => Err(anyhow::anyhow!("its state is `{}`", other.unwrap_or("missing"))),
        };
        let right = judged.is_ok();
        let words = judged.unwrap_or_else(|error| format!("wrong: {error:#}"));
        let drawing = result
            .as_str()
            .filter(|text| text.starts_with("<svg"))
            .map(str::to_owned);
        answers.push(Answer {
            made,
            drawing,
            words,
            right,
        });
    }
    Ok(answers)
}

/// The result in words, or why it is wrong.
fn judge(ask: &Ask, result: &Value, made: Option<&Picture>) -> anyhow::Result<String> {
    let source = &ask.picture;
    let picture = || made.context("no picture came back");
    match ask.wanted {
        Wanted::Enlarged(scale) => {
            let made = picture()?;
            let size = (source.width() * scale, source.height() * scale);
            ensure!(
                (made.width(), made.height()) == size,
                "it is {}×{}",
                made.width(),
                made.height()
            );
            let back = made.to_rgb().resized(source.width(), source.height(), Filter::Box);
            let apart = mean_difference(&back, &source.to_rgb());
            ensure!(
                apart < 10.0,
                "made small again it is {apart:.1} of 255 away from the source"
            );
            Ok(format!(
                "{}×{}; made small again, {apart:.1} of 255 away from the source",
                size.0, size.1
            ))
        }
        Wanted::CutOut => {
            let made = picture()?;
            ensure!(
                (made.width(), made.height()) == (source.width(), source.height()),
                "its size changed"
            );
            let alpha = made.alpha().context("nothing is transparent")?;
            let share = |is: fn(&u8) -> bool| {
                100.0 * alpha.data().iter().filter(|a| is(a)).count() as f64 / alpha.data().len() as f64
            };
            let (gone, kept) = (share(|a| *a < 16), share(|a| *a > 239));
            ensure!(
                gone > 5.0 && kept > 5.0,
                "{gone:.0} % are gone and {kept:.0} % are kept"
            );
            Ok(format!("{gone:.0} % are gone, {kept:.0} % are kept"))
        }
        Wanted::Caption(truth) => match result.as_str() {
            Some(text) if text == truth => Ok(text.to_owned()),
            _ => bail!("{result}"),
        },
        Wanted::Ranked(truth) => {
            let flavors = result["flavors"].as_array().context("there are no flavors")?;
            let first = flavors
                .first()
                .and_then(|one| one["text"].as_str())
                .context("flavors are empty")?;
            let listed: String = flavors
                .iter()
                .map(|one| {
                    format!(
                        "{:5.1} %  {}\n",
                        one["confidence"].as_f64().unwrap_or(f64::NAN),
                        text(one)
                    )
                })
                .collect();
            ensure!(
                first == truth.replace(" small", "").replace(" large", ""),
                "the first is not what is drawn:\n{listed}"
            );
            Ok(listed)
        }
        Wanted::Drawing => {
            let svg = result.as_str().context("no text came back")?;
            let n_areas = svg.matches("<path ").count();
            let size = format!("width=\"{}\" height=\"{}\"", source.width(), source.height());
            ensure!(
                svg.contains(&size) && svg.ends_with("</svg>"),
                "it is no drawing of the same size"
            );
            ensure!(n_areas > 50, "it has only {n_areas} areas");
            Ok(format!("a drawing of {n_areas} areas, {} kB", svg.len() / 1000))
        }
        Wanted::Safe => match result.as_bool() {
            Some(false) => Ok("safe for work".to_owned()),
            _ => bail!("{result}"),
        },
    }
}

fn text(tag: &Value) -> &str {
    tag["text"].as_str().unwrap_or_default()
}

/// Mean absolute difference of two pictures of one size, 0..=255.
fn mean_difference(a: &Picture, b: &Picture) -> f64 {
    let sum: u64 = a
        .data()
        .iter()
        .zip(b.data())
        .map(|(a, b)| u64::from(a.abs_diff(*b)))
        .sum();
    sum as f64 / a.data().len().max(1) as f64
}

/// Runs the demo. True if every result is what it should be and nothing was handed back or lost.
pub async fn show(timeout: Duration) -> anyhow::Result<(Report, bool)> {
    let asks = asks()?;
    let real = PathBuf::from(std::env::var_os("HORDE_WORKERS_MODELS").context("HORDE_WORKERS_MODELS is not set")?);
    let models = tempfile::tempdir()?;
    for file in [
        "esrgan/RealESRGAN_x4plus",
        "esrgan/RealESRGAN_x4plus_anime_6B",
        "rembg/u2netp",
        "nsfw/open_nsfw",
    ] {
        let file = format!("{file}.safetensors");
        place(&real.join(&file), &models.path().join(&file)).context("hint: `./x demo alchemist` fetches them")?;
    }
    place_describers(models.path())?;
    own(
        models.path(),
        &[("clip", "clip-vit-large-patch14", "clip/model.safetensors")],
    )?;
    let mut sheet = Sheet::begin(
        "alchemist",
        "alchemist: photographs and drawings through the whole protocol",
    )?;

    let models_dir = models.path().to_str().context("the temporary folder is no UTF-8")?;
    // Named forms are served even where a machine is too slow for a whole tile: the demo's pieces are small.
    let named: Vec<&str> = BTreeSet::from_iter(asks.iter().map(|ask| ask.form))
        .into_iter()
        .collect();
    let extra = [
        ("HORDE_WORKERS_MODELS", models_dir),
        ("ALCHEMIST_FORMS", &named.join(",")),
    ];
    let mut stage = Stage::set("alchemist", &extra).await?;
    println!("{} forms are asked for; alchemist is at work.\n", asks.len());
    let answers = answers(&mut stage, &asks, timeout).await?;
    let books = stage.close().await?;

    let mut outputs = Vec::new();
    let mut all_right = true;
    for (ask, answer) in asks.iter().zip(&answers) {
        println!("── {}\n→ {}\n", ask.title, answer.words.trim_end());
        all_right &= answer.right;
        outputs.push(json!({
            "title": ask.title, "form": ask.form, "words": answer.words, "answered": answer.made.is_some() || answer.right,
            "right": answer.right,
        }));
        if let Some(svg) = &answer.drawing {
            sheet.keep("drawing.svg", svg.as_bytes())?;
        }
        let pictures = [Some(&ask.picture), answer.made.as_ref()]
            .into_iter()
            .flatten()
            .cloned();
        let verdict = if answer.right {
            Ok(())
        } else {
            Err("not what was asked for".to_owned())
        };
        sheet.add(&ask.title, &answer.words, pictures.collect(), verdict)?;
    }
    all_right &= faces(&real, &mut sheet)?;
    let page = sheet.finish()?;

    let count = |name: &str| books.summary[name].as_u64().unwrap_or(0);
    let report = Report {
        worker: "alchemist",
        submitted: count("accepted"),
        faulted: count("faulted"),
        expired: count("expired") + count("open"),
        busy_fraction: books.status["busy_fraction"].as_f64().unwrap_or(0.0),
        kudos: books.summary["kudos"].as_f64().unwrap_or(0.0),
        outputs,
    };
    println!(
        "{} answered, {} handed back, {} lost, in {:.1} s; {:.2} kudos\n{}",
        report.submitted,
        report.faulted,
        report.expired,
        books.span_seconds,
        report.kudos,
        page.display()
    );
    let complete = report.complete(asks.len()) && all_right;
    Ok((report, complete))
}

/// Faces that the real finder sees: exactly one on the astronaut and none on the coffee. No form of its own, but the first
/// half of every face repair, whose second half no package carries. True if they are as expected.
fn faces(models: &Path, sheet: &mut Sheet) -> anyhow::Result<bool> {
    const FRAME: [u8; 3] = [0, 255, 0];
    let weights = models.join("gfpgan/retinaface_mobilenet0.25.safetensors");
    let look = built("demo")?.with_file_name("examples").join("look");
    let mut all_right = true;
    for (name, wanted) in [("astronaut", 1), ("coffee", 0)] {
        let source = tests_dir(&format!("photos/{name}.png"));
        let output = Command::new(&look)
            .arg("faces")
            .args([&weights, &source])
            .output()
            .with_context(|| format!("could not start `{}`", look.display()))?;
        ensure!(
            output.status.success(),
            "`look faces` failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let found: Vec<Vec<f64>> = said
            .lines()
            .filter_map(|line| line.strip_prefix("face "))
            .map(|line| line.split_whitespace().filter_map(|n| n.parse().ok()).collect())
            .collect();
        let mut picture = photograph(name)?.to_rgb();
        for face in &found {
            if let [left, top, right, bottom, _] = face[..] {
                draw_frame(&mut picture, [left, top, right, bottom], FRAME);
            }
        }
        println!("── faces on {name}: {}\n", found.len());
        let verdict = if found.len() == wanted {
            Ok(())
        } else {
            Err(format!("{wanted} expected"))
        };
        all_right &= verdict.is_ok();
        let title = format!("RetinaFace (beside the protocol): {name}");
        sheet.add(&title, &format!("{} found", found.len()), vec![picture], verdict)?;
    }
    Ok(all_right)
}

/// Draws the outline of a box, cut at the picture's edges.
fn draw_frame(picture: &mut Picture, [left, top, right, bottom]: [f64; 4], rgb: [u8; 3]) {
    let (width, height, channels) = (picture.width(), picture.height(), picture.channels());
    let near = |a: f64, b: u32| (a - f64::from(b)).abs() <= 1.0;
    for y in 0..height {
        for x in 0..width {
            let inside = f64::from(x) >= left - 1.0
                && f64::from(x) <= right + 1.0
                && f64::from(y) >= top - 1.0
                && f64::from(y) <= bottom + 1.0;
            if inside && (near(left, x) || near(right, x) || near(top, y) || near(bottom, y)) {
                let at = (y as usize * width as usize + x as usize) * channels;
                picture.data_mut()[at..at + 3].copy_from_slice(&rgb);
            }
        }
    }
}
