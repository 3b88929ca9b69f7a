//! The real alchemist with tiny trained networks against a Horde on loopback.

use std::path::Path;
use std::time::Duration;

use e2e::demo::alchemist::{Ask, Wanted, answers, describing, drawing, own, place, place_describers};
use e2e::demo::stage::Stage;

/// Reading and answering on two busy cores, with room.
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alchemist_says_what_is_drawn_and_enlarges_it_through_the_whole_protocol() {
    let models = tempfile::tempdir().expect("a folder");
    place_describers(models.path()).expect("the tiny networks lie beside the tests");
    // A compact upscaler of random weights: its picture has the right size and means nothing.
    place(
        &Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../crates/vision/tests/fixtures/models/alchemy/compact_x4.safetensors"),
        &models.path().join("esrgan/RealESRGAN_x4plus.safetensors"),
    )
    .expect("the fixture is there");
    let stand_ins = [
        ("clip", "clip-vit-large-patch14", "clip/model.safetensors"),
        ("esrgan", "realesrgan-x4plus", "esrgan/RealESRGAN_x4plus.safetensors"),
    ];
    own(models.path(), &stand_ins).expect("models.toml");
    let mut asks = describing().expect("the drawings are there");
    asks.push(Ask {
        title: "an upscale".into(),
        picture: drawing(0).expect("a drawing"),
        form: "RealESRGAN_x4plus",
        wanted: Wanted::Enlarged(4),
    });
    let models_dir = models.path().to_str().expect("UTF-8");
    let mut stage = Stage::set("alchemist", &[("HORDE_WORKERS_MODELS", models_dir)])
        .await
        .expect("alchemist starts");
    let answers = answers(&mut stage, &asks, PATIENCE).await.expect("answers");
    let books = stage.close().await.expect("alchemist drains and ends");
    let (upscale, described) = answers.split_last().expect("answers are as many as asks");
    for (ask, answer) in asks.iter().zip(described) {
        assert!(answer.right, "{}: {}", ask.title, answer.words);
    }
    let enlarged = upscale.made.as_ref().expect("a picture came back");
    assert_eq!((enlarged.width(), enlarged.height()), (256, 256));
    let count = |name: &str| books.summary[name].as_u64();
    assert_eq!(
        (count("accepted"), count("faulted"), count("open"), count("duplicates")),
        (Some(7), Some(0), Some(0), Some(0))
    );
}
