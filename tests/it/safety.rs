//! The content check through the whole protocol, with a tiny trained CLIP that takes shapes for what they stand for:
//! a red circle for nudity, a cross for the worst. Nothing real is needed to see that the way has no gap.

use std::path::Path;
use std::time::Duration;

use e2e::demo::dreamer::{Ask, Done, answered, body, stage_with};
use serde_json::{Value, json};

/// Loading and drawing on two busy cores, with room.
const PATIENCE: Duration = Duration::from_secs(240);
/// Corners of the notices that stand in for what is not handed out.
pub(crate) const AMBER: [u8; 3] = [225, 150, 40];
pub(crate) const RED: [u8; 3] = [200, 40, 40];

/// Puts the tiny CLIP and lists for it where dreamer looks for the real one.
pub(crate) fn install(models: &Path) {
    let clip = models.join("clip");
    std::fs::create_dir_all(&clip).expect("a folder");
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-shapes-clip");
    for file in ["model.safetensors", "config.json"] {
        std::fs::copy(tiny.join(file), clip.join(file)).expect("the tiny CLIP is part of the repository");
    }
    let group = |text: &str| json!({ "margin": 0.05, "several": 2, "phrases": [{ "text": text, "at": 0.25 }] });
    let lists = json!({
        "made_for": "the tiny CLIP", "dimension": 64, "calibrated": false,
        "groups": {
            "person": group("a large green triangle on a yellow background"),
            "explicit": group("a large red circle on a white background"),
            "suggestive": group("a large orange triangle on a purple background"),
            "under_age": group("a large blue square on a black background"),
            "danger": group("a large yellow cross on a green background"),
        },
        "anchors": {
            "grown_up": ["a small white cross on a red background"],
            "dressed": ["a small purple triangle on an orange background"],
        },
        "contrasts": [], "styles": {},
    });
    let folder = models.join("safety_checker");
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join("lists.json"), lists.to_string()).expect("the lists are written");
}

fn ask(prompt: &'static str, body: Value) -> Ask {
    Ask {
        title: prompt,
        prompt,
        params: json!({ "seed": "1" }),
        body,
    }
}

fn corner(done: &Done) -> [u8; 3] {
    let picture = done.pictures.first().expect("a picture");
    picture.rgb_at(0, 0).expect("it has a corner")
}

/// Neither the tiny model nor WebP keeps colours to the last digit.
pub(crate) fn is_near(a: [u8; 3], b: [u8; 3]) -> bool {
    a.iter().zip(b).all(|(a, b)| a.abs_diff(b) < 40)
}

fn notes(done: &Done) -> Vec<(&str, &str)> {
    let notes = done.metadata.iter();
    notes.map(|(kind, value, _)| (kind.as_str(), value.as_str())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_picture_is_looked_at_and_replaced_where_that_is_due() {
    let models = tempfile::tempdir().expect("a folder for models");
    install(models.path());
    let mut stage = stage_with(models.path(), &[]).await.expect("dreamer starts");
    let nude = "a large red circle on a white background";
    let asks = [
        ask("a large green square on a white background", json!({})),
        ask(nude, json!({})),
        ask(nude, json!({ "nsfw": false, "censor_nsfw": true })),
        ask("a large blue square on a black background", json!({})),
        // A phrase that says the worst, and a negative prompt against clothes as its second witness.
        ask("a large yellow cross on a green background ### clothes", json!({})),
        // The words say what the picture does not show.
        ask("a large red circle on a white background, a child", json!({})),
    ];
    let (results, done) = answered(&mut stage, asks.iter().map(body), PATIENCE)
        .await
        .expect("answers");
    let books = stage.close().await.expect("dreamer drains and ends");
    assert_eq!(
        (&books.summary["accepted"], &books.summary["faulted"]),
        (&json!(6), &json!(0))
    );

    let is_censored = |at: usize| results[at]["generations"][0]["censored"] == json!(true);
    assert!(
        is_near(corner(&done[0]), [245; 3]) && notes(&done[0]).is_empty(),
        "{:?}",
        done[0].metadata
    );
    assert!(
        is_near(corner(&done[1]), [245; 3]) && !is_censored(1),
        "{:?} {}",
        corner(&done[1]),
        results[1]
    );
    assert_eq!(notes(&done[1]), [("information", "nsfw")]);
    assert!(
        is_near(corner(&done[2]), AMBER) && is_censored(2),
        "{:?}",
        corner(&done[2])
    );
    assert_eq!(notes(&done[2]), [("censorship", "nsfw")]);
    assert!(
        notes(&done[3]).is_empty(),
        "youth alone is nothing: {:?}",
        done[3].metadata
    );
    for done in &done[4..] {
        assert_eq!(notes(done), [("censorship", "csam")], "{:?}", corner(done));
        assert!(is_near(corner(done), RED), "{:?}", corner(done));
    }
}

/// What dreamer says when it does not start, and its code.
async fn refusal(models: &Path) -> String {
    match stage_with(models, &[]).await {
        Err(error) => format!("{error:#}"),
        Ok(mut stage) => {
            let over = stage
                .finished("generate/status", &["nothing".to_owned()], PATIENCE)
                .await;
            format!("{:#}", over.expect_err("dreamer ends by itself"))
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_check_that_sees_dreamer_does_not_start() {
    let models = tempfile::tempdir().expect("a folder for models");
    let said = refusal(models.path()).await;
    assert!(said.contains("exit status: 66"), "no check at all: {said}");
    install(models.path());
    let clip = models.path().join("clip/model.safetensors");
    let bytes = std::fs::read(&clip).expect("the tiny CLIP");
    std::fs::write(&clip, &bytes[..bytes.len() / 2]).expect("half of it");
    let said = refusal(models.path()).await;
    assert!(said.contains("exit status: 66"), "half a check: {said}");
}
