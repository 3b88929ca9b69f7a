//! The whole way of the content check with a tiny CLIP that was trained on drawn shapes: shapes stand for everything.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::{Device, Tensor};
use imaging::Picture;
use vision::VisionError;
use vision::safety::{
    Anchor, CheckerFiles, Context, Contrast, Group, Level, Lists, Phrase, PhraseGroup, Rating, Reason, SafetyChecker,
    Style,
};

use crate::fidelity::root;

const RED_CIRCLE: (&str, Shape) = ("a large red circle on a white background", Shape::RedCircle);
const BLUE_SQUARE: (&str, Shape) = ("a large blue square on a black background", Shape::BlueSquare);
const TRIANGLE: (&str, Shape) = ("a large green triangle on a yellow background", Shape::Triangle);
const CROSS: (&str, Shape) = ("a large purple cross on an orange background", Shape::Cross);
const ORANGE_CIRCLE: (&str, Shape) = ("a large orange circle on a purple background", Shape::OrangeCircle);

#[derive(Clone, Copy)]
enum Shape {
    RedCircle,
    BlueSquare,
    Triangle,
    Cross,
    OrangeCircle,
    Nothing,
}

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/models/tiny-shapes-clip/model.safetensors")
}

/// `shift` moves and shrinks the shape a little, so that no two pictures of a set are the same.
fn drawn(shape: Shape, shift: f32) -> Picture {
    let side = 64;
    let (ground, ink): ([u8; 3], [u8; 3]) = match shape {
        Shape::RedCircle => ([255; 3], [220, 30, 30]),
        Shape::BlueSquare => ([0; 3], [40, 70, 220]),
        Shape::Triangle => ([240, 220, 50], [40, 160, 60]),
        Shape::Cross => ([255, 140, 0], [128, 0, 128]),
        Shape::OrangeCircle => ([128, 0, 128], [255, 140, 0]),
        Shape::Nothing => ([255; 3], [0; 3]),
    };
    let mut picture = Picture::filled(side, side, ground);
    let place = |n: usize| ((n as f32 + 0.5) / side as f32 * 2.0 - 1.0 - shift) * (1.0 + shift.abs());
    for (at, pixel) in picture.data_mut().chunks_exact_mut(3).enumerate() {
        let (x, y) = (place(at % side as usize), place(at / side as usize));
        let is_ink = match shape {
            Shape::RedCircle | Shape::OrangeCircle => x.hypot(y) < 0.7,
            Shape::BlueSquare => x.abs().max(y.abs()) < 0.6,
            Shape::Triangle => y < 0.6 && y > -0.7 + 2.0 * x.abs(),
            Shape::Cross => x.abs().min(y.abs()) < 0.22 && x.abs().max(y.abs()) < 0.7,
            // A small black cross: on its white ground no phrase of the lists fits.
            Shape::Nothing => x.abs().min(y.abs()) < 0.1 && x.abs().max(y.abs()) < 0.3,
        };
        if is_ink {
            pixel.copy_from_slice(&ink);
        }
    }
    picture
}

fn beside(left: &Picture, right: &Picture) -> Picture {
    let rows = left.data().chunks_exact(64 * 3).zip(right.data().chunks_exact(64 * 3));
    let data = rows.flat_map(|(a, b)| a.iter().chain(b).copied()).collect();
    Picture::from_rgb(128, 64, data).unwrap()
}

/// Thresholds for the tiny CLIP: measured, the right shape is at 0.40 and more, others at 0.01 and less.
fn lists() -> Lists {
    let group = |text: &str| PhraseGroup {
        margin: 0.05,
        several: 2,
        phrases: vec![Phrase {
            text: text.into(),
            at: 0.25,
            root: None,
        }],
    };
    Lists {
        made_for: "the tiny CLIP".into(),
        dimension: 64,
        calibrated: false,
        groups: BTreeMap::from([
            (Group::Person, group(TRIANGLE.0)),
            (Group::Explicit, group(RED_CIRCLE.0)),
            (Group::Suggestive, group(ORANGE_CIRCLE.0)),
            (Group::UnderAge, group(BLUE_SQUARE.0)),
            (Group::Danger, group(CROSS.0)),
        ]),
        anchors: BTreeMap::from([
            (Anchor::GrownUp, vec!["a small white cross on a red background".into()]),
            (
                Anchor::Dressed,
                vec!["a small yellow square on a green background".into()],
            ),
        ]),
        contrasts: vec![Contrast {
            group: Group::UnderAge,
            against: Anchor::GrownUp,
            at: 1.9,
            margin: 0.01,
            floor: 0.9,
        }],
        styles: BTreeMap::new(),
    }
}

/// Files of a checker with the tiny CLIP in a folder of its own.
fn files(folder: &Path, lists: &Lists) -> CheckerFiles {
    let path = folder.join("lists.json");
    std::fs::write(&path, lists.to_json().unwrap()).unwrap();
    CheckerFiles {
        clip: tiny(),
        cache: folder.join("cache"),
        lists: Some(path),
        ..CheckerFiles::default()
    }
}

fn open(files: &CheckerFiles) -> Result<SafetyChecker, VisionError> {
    SafetyChecker::open_files(files, &Device::Cpu)
}

/// Weights with one change, beside the tiny CLIP's configuration.
fn changed(folder: &Path, change: impl Fn(&mut std::collections::HashMap<String, Tensor>)) -> PathBuf {
    let mut tensors = candle_core::safetensors::load(tiny(), &Device::Cpu).unwrap();
    change(&mut tensors);
    let path = folder.join("model.safetensors");
    candle_core::safetensors::save(&tensors, &path).unwrap();
    std::fs::copy(tiny().with_file_name("config.json"), folder.join("config.json")).unwrap();
    path
}

fn refusal(files: &CheckerFiles) -> String {
    open(files).map(drop).unwrap_err().to_string()
}

#[test]
fn pictures_are_rated_by_what_they_show_and_what_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let checker = open(&files(folder.path(), &lists())).unwrap();
    assert!(!checker.is_calibrated());
    let check = |picture: &Picture, prompt: &str, expected: Rating| {
        let context = Context {
            prompt,
            ..Context::default()
        };
        let verdict = checker.check(picture, &context).unwrap();
        assert_eq!(verdict.rating, expected, "`{prompt}` {verdict:?}");
        verdict
    };
    let picture = |shape| drawn(shape, 0.0);
    let harmless = picture(Shape::Nothing);
    check(&harmless, "a cross", Rating::Ok);
    check(&picture(TRIANGLE.1), "a triangle", Rating::Ok);
    check(&picture(BLUE_SQUARE.1), "a square", Rating::Ok);
    check(&picture(RED_CIRCLE.1), "a circle", Rating::Nsfw);
    // CLIP puts phrases about a child near every picture of one: a second witness is needed, be it a word.
    check(&picture(CROSS.1), "a cross", Rating::Ok);
    check(&picture(CROSS.1), "a sexy cross", Rating::Csam);
    // What the picture alone does not show, the words may say.
    check(&picture(RED_CIRCLE.1), "a child", Rating::Csam);
    check(&picture(RED_CIRCLE.1), "8 years old", Rating::Csam);
    check(&harmless, "a child", Rating::Ok);
    // The two halves of a wide picture are looked at apart and counted together.
    let both = beside(&picture(RED_CIRCLE.1), &picture(BLUE_SQUARE.1));
    let verdict = check(&both, "shapes", Rating::Csam);
    assert!(verdict.scores.reasons.contains(&Reason::SexualAndUnderAge));
    assert_eq!(verdict.scores.n_views, 3);
    assert_eq!(verdict.scores.groups[&Group::Explicit].level, Level::Strong);
    check(&beside(&picture(RED_CIRCLE.1), &harmless), "shapes", Rating::Nsfw);
}

#[test]
fn a_verdict_holds_numbers_and_no_word_of_the_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let checker = open(&files(folder.path(), &lists())).unwrap();
    let context = Context {
        prompt: "a mango and a naked child",
        negative: "papaya, adult",
        nsfw_model: true,
        style: Style::Anime,
    };
    let verdict = checker.check(&drawn(RED_CIRCLE.1, 0.0), &context).unwrap();
    assert_eq!(verdict.rating, Rating::Csam);
    let shown = format!("{verdict:?}") + &serde_json::to_string(&verdict).unwrap();
    for word in ["mango", "naked", "child", "papaya"] {
        assert!(!shown.contains(word), "{word} in {shown}");
    }
    assert!(verdict.scores.groups.values().all(|score| score.cosine.is_finite()));
}

#[test]
fn colours_hidden_below_transparency_are_seen() {
    let folder = tempfile::tempdir().unwrap();
    let checker = open(&files(folder.path(), &lists())).unwrap();
    let circle = drawn(RED_CIRCLE.1, 0.0);
    let clear = imaging::Mask::new(64, 64, vec![0; 64 * 64]).unwrap();
    let verdict = checker.check(&circle.with_alpha(&clear), &Context::default()).unwrap();
    assert_eq!((verdict.rating, verdict.scores.n_views), (Rating::Nsfw, 2));
}

#[test]
fn weights_of_another_width_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let reason = SafetyChecker::open(&tiny(), folder.path(), &Device::Cpu)
        .map(drop)
        .unwrap_err();
    let reason = reason.to_string();
    assert!(reason.contains("64 dimensions") && reason.contains("768"), "{reason}");
}

#[test]
fn weights_that_see_nothing_are_refused_instead_of_finding_all_harmless() {
    let folder = tempfile::tempdir().unwrap();
    let mut files = files(folder.path(), &lists());
    // Every patch of every picture looks the same.
    files.clip = changed(folder.path(), |tensors| {
        let key = "vision_model.embeddings.patch_embedding.weight";
        let zeros = tensors[key].zeros_like().unwrap();
        tensors.insert(key.into(), zeros);
    });
    assert!(refusal(&files).contains("does not recognise"), "{}", refusal(&files));
}

#[test]
fn weights_without_numbers_are_refused() {
    for key in [
        "vision_model.post_layernorm.weight",
        "text_model.final_layer_norm.bias",
        "visual_projection.weight",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut files = files(folder.path(), &lists());
        files.clip = changed(folder.path(), |tensors| {
            let nan = (tensors[key].zeros_like().unwrap() * f64::NAN).unwrap();
            tensors.insert(key.into(), nan);
        });
        assert!(open(&files).is_err(), "{key}");
    }
}

#[test]
fn untrained_weights_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut files = files(folder.path(), &lists());
    files.clip = root().join("models/alchemy/clip_tiny.safetensors");
    assert!(open(&files).is_err());
}

#[test]
fn missing_and_broken_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let whole = files(folder.path(), &lists());
    let nowhere = folder.path().join("nowhere.safetensors");
    let check = |change: &dyn Fn(&mut CheckerFiles), expected: &str| {
        let mut files = whole.clone();
        change(&mut files);
        let reason = refusal(&files);
        assert!(reason.contains(expected), "{reason}");
    };
    check(&|files| files.clip = nowhere.clone(), "nowhere.safetensors");
    check(&|files| files.lists = Some(nowhere.clone()), "nowhere.safetensors");
    check(&|files| files.sd_checker = Some(nowhere.clone()), "nowhere.safetensors");
    check(&|files| files.open_nsfw = Some(nowhere.clone()), "nowhere.safetensors");
    // A network that was named but is another one is no reason to go on without it.
    check(&|files| files.open_nsfw = Some(tiny()), "nsfw classifier");
    check(&|files| files.sd_checker = Some(tiny()), "safety checker");
    // One that is whole but gives no number for a picture would cost every job, and only after it was done.
    let overflows = folder.path().join("overflows.safetensors");
    let tensors = std::collections::HashMap::from([
        (
            "conv_1.weight".to_owned(),
            Tensor::full(1e38f32, (1, 3, 3, 3), &Device::Cpu).unwrap(),
        ),
        (
            "conv_1.bias".to_owned(),
            Tensor::zeros(1, candle_core::DType::F32, &Device::Cpu).unwrap(),
        ),
        (
            "fc_nsfw.weight".to_owned(),
            Tensor::full(1e38f32, (2, 1), &Device::Cpu).unwrap(),
        ),
        (
            "fc_nsfw.bias".to_owned(),
            Tensor::zeros(2, candle_core::DType::F32, &Device::Cpu).unwrap(),
        ),
    ]);
    candle_core::safetensors::save(&tensors, &overflows).unwrap();
    check(&|files| files.open_nsfw = Some(overflows.clone()), "gave no number");
    let half = folder.path().join("half.safetensors");
    let bytes = std::fs::read(tiny()).unwrap();
    std::fs::write(&half, &bytes[..bytes.len() / 2]).unwrap();
    check(&|files| files.clip = half.clone(), "half.safetensors");
    std::fs::write(&nowhere, b"{\"groups\": 3}").unwrap();
    check(&|files| files.lists = Some(nowhere.clone()), "phrase lists");
}

#[test]
fn places_of_phrases_are_kept_and_a_damaged_file_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path(), &lists());
    let verdict = |files: &CheckerFiles| {
        let checker = open(files).unwrap();
        checker.check(&drawn(RED_CIRCLE.1, 0.0), &Context::default()).unwrap()
    };
    let first = verdict(&files);
    let kept: Vec<PathBuf> = std::fs::read_dir(&files.cache)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    let whole = std::fs::read(&kept[0]).unwrap();
    assert_eq!(verdict(&files), first);
    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() ^= 1;
    std::fs::write(&kept[0], &damaged).unwrap();
    assert_eq!(verdict(&files), first);
    assert_eq!(
        std::fs::read(&kept[0]).unwrap(),
        whole,
        "the damaged file was not replaced"
    );
    // A cache that cannot be made costs time, not the check.
    let mut blocked = files.clone();
    blocked.cache = kept[0].join("folder");
    assert_eq!(verdict(&blocked), first);
}

#[test]
fn thresholds_tuned_on_a_set_of_vectors_make_a_checker_that_works() {
    let folder = tempfile::tempdir().unwrap();
    let pictures = folder.path().join("pictures");
    let labelled = [
        ("person", TRIANGLE.1),
        ("explicit", RED_CIRCLE.1),
        ("suggestive", ORANGE_CIRCLE.1),
        ("under_age", BLUE_SQUARE.1),
        ("none", Shape::Nothing),
    ];
    for (label, shape) in labelled {
        std::fs::create_dir_all(pictures.join(label)).unwrap();
        for n in 0..6 {
            let png = imaging::encode_png(&drawn(shape, n as f32 * 0.02)).unwrap();
            std::fs::write(pictures.join(label).join(format!("{n}.png")), png).unwrap();
        }
    }
    std::fs::write(pictures.join("none/broken.png"), b"no picture").unwrap();
    let mut lists = lists();
    for phrase in lists.groups.values_mut().flat_map(|group| &mut group.phrases) {
        phrase.at = 1.0;
    }
    let files = files(folder.path(), &lists);
    let path = |name: &str| folder.path().join(name).display().to_string();
    let run = |args: &[&str]| {
        let made = Command::new(env!("CARGO_BIN_EXE_safety-calibrate"))
            .args(args)
            .args(["--clip", &tiny().display().to_string(), "--cache", &path("cache")])
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (made.status.success(), text(&made.stdout), text(&made.stderr))
    };
    let (ok, out, err) = run(&[
        "embed",
        "--pictures",
        &path("pictures"),
        "--out",
        &path("set.safetensors"),
    ]);
    assert!(ok && out.contains("30 pictures, 1 files refused"), "{out} {err}");
    let set = ["--set", &path("set.safetensors"), "--lists", &path("lists.json")];
    let (ok, out, err) = run(&[&["report", "--json"], &set[..]].concat());
    assert!(ok, "{err}");
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    for group in report["groups"].as_array().unwrap() {
        let is_shown = group["n_positive"] != 0;
        assert_eq!(group["now"]["recall"], if is_shown { 0.0 } else { 1.0 }, "{group}");
        if is_shown {
            assert!(group["auc"].as_f64().unwrap() > 0.95, "{group}");
            assert!(group["proposed"]["recall"].as_f64().unwrap() > 0.95, "{group}");
            // Six of six are no proof of more than three of five.
            let [low, high] = [0, 1].map(|n| group["proposed"]["recall_95"][n].as_f64().unwrap());
            assert!((0.60..0.62).contains(&low) && high == 1.0, "{group}");
            assert!(group["unseen"]["recall"].as_f64().unwrap() > 0.5, "{group}");
        }
    }
    let (ok, out, err) = run(&[&["tune", "--out", &path("tuned.json")], &set[..]].concat());
    assert!(
        ok && out.contains("NOT calibrated: `under_age` has 6 positive"),
        "{out} {err}"
    );

    // With the lists as they were, no picture is found; with the proposed ones those that should be, and none too much.
    let verdicts = |when: &str, label: &str| {
        let all = report[when].as_array().unwrap();
        let one = all.iter().find(|one| one["label"] == label).unwrap();
        ["n_ok", "n_nsfw", "n_csam"].map(|key| one[key].as_u64().unwrap())
    };
    for (label, proposed) in [("explicit", [0, 6, 0]), ("none", [6, 0, 0]), ("under_age", [6, 0, 0])] {
        assert_eq!(verdicts("verdicts_now", label), [6, 0, 0], "{label}");
        assert_eq!(verdicts("verdicts_proposed", label), proposed, "{label}");
    }

    let tuned = CheckerFiles {
        lists: Some(folder.path().join("tuned.json")),
        ..files.clone()
    };
    let rating = |files: &CheckerFiles, picture: &Picture| {
        open(files).unwrap().check(picture, &Context::default()).unwrap().rating
    };
    let both = beside(&drawn(RED_CIRCLE.1, 0.05), &drawn(BLUE_SQUARE.1, 0.05));
    assert_eq!(rating(&files, &both), Rating::Ok);
    assert_eq!(rating(&tuned, &both), Rating::Csam);
    assert_eq!(rating(&tuned, &drawn(Shape::Nothing, 0.05)), Rating::Ok);

    // The same pictures twice are no more pictures; joined sets are counted together.
    let twice = [&["report"], &set[..], &set[..2]].concat();
    let (ok, out, err) = run(&twice);
    assert!(
        ok && out.contains("60 pictures") && out.contains("NOT calibrated: 30 vectors stand there more than once"),
        "{out} {err}"
    );
    // A maintainer may try it all without any picture.
    let (ok, out, err) = run(&[
        "made-up",
        "--each",
        "250",
        "--out",
        &path("made_up"),
        "--lists",
        &path("lists.json"),
    ]);
    assert!(ok && out.contains("1250 made-up vectors"), "{out} {err}");
    let made_up = ["--set", &path("made_up"), "--lists", &path("lists.json")];
    let (ok, out, err) = run(&[
        &["tune", "--out", &path("none.json"), "--recall", "under_age=0.5"],
        &made_up[..],
    ]
    .concat());
    assert!(
        ok && out.contains("NOT calibrated: the vectors are made up"),
        "{out} {err}"
    );
    assert!(!Lists::open(&folder.path().join("none.json")).unwrap().calibrated);
    let (ok, out, _) = run(&["report", "--help"]);
    assert!(ok && out.starts_with("usage:") && out.contains("made-up"), "{out}");
    let (ok, _, err) = run(&["report", "--sets", "x"]);
    assert!(!ok && err.contains("`--sets` is no option"), "{err}");
    let (ok, _, err) = run(&[&["report"], &made_up[..], &set[..2], &["--lists", "/nowhere"]].concat());
    assert!(!ok && err.contains("/nowhere"), "{err}");

    // Another CLIP's set, a forbidden label and a rate that is none are refused.
    std::fs::create_dir_all(pictures.join("under_age+explicit")).unwrap();
    let (ok, _, err) = run(&[
        "embed",
        "--pictures",
        &path("pictures"),
        "--out",
        &path("set.safetensors"),
    ]);
    assert!(!ok && err.contains("must not exist"), "{err}");
    let (ok, _, err) = run(&[&["report", "--fpr", "2"], &set[..]].concat());
    assert!(!ok && err.contains("not between 0 and 1"), "{err}");
}
