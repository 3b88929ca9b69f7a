//! References over the network: primary, legacy, the last good copy, the snapshot.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use model_store::fetch::Downloader;
use model_store::reference::load::{ReferenceSettings, Taken, load, load_offline};
use model_store::reference::refresh::{Refreshed, refresh};
use model_store::reference::{Kind, Origin};

use crate::fetch_good::settings;
use crate::server::{Reply, Seen, Server};

fn record(name: &str) -> String {
    format!(
        r#"{{"{name}": {{"name": "{name}", "baseline": "stable_diffusion_xl", "config": {{"download": [{{"file_name": "a.safetensors", "file_url": "https://e.org/a"}}]}}}}}}"#
    )
}

#[tokio::test]
async fn each_source_stands_in_for_the_one_before() {
    let stage = Arc::new(AtomicU8::new(0));
    let now = stage.clone();
    let server = Server::start(move |seen| match (now.load(Ordering::SeqCst), seen.target.as_str()) {
        (0, "/v2/image_generation") => Reply::new(200, record("from primary")),
        (1, "/image/stable_diffusion.json") => Reply::new(200, record("from legacy")),
        (1, _) => Reply::new(200, "<html>maintenance</html>"),
        _ => Reply::new(404, ""),
    })
    .await;
    let settings_of = ReferenceSettings {
        primary: server.url("/v2/"),
        legacy_image: server.url("/image/"),
        legacy_text: server.url("/text/"),
        deadline: Duration::from_secs(5),
    };
    let dir = tempfile::tempdir().unwrap();
    let downloader = Downloader::new(settings()).unwrap();
    for (step, taken, name) in [
        (0, Taken::Primary, "from primary"),
        (1, Taken::Legacy, "from legacy"),
        (2, Taken::Disk, "from legacy"),
    ] {
        stage.store(step, Ordering::SeqCst);
        let loaded = load(&[Kind::Image], &settings_of, dir.path(), &downloader).await;
        assert_eq!(loaded.taken, [(Kind::Image, taken)], "{:?}", loaded.problems);
        assert!(loaded.catalogue.get(Kind::Image, name).is_some());
        assert_eq!(loaded.problems.len(), usize::from(step));
    }
    assert!(
        load_offline(&[Kind::Image], dir.path())
            .get(Kind::Image, "from legacy")
            .is_some()
    );
    let empty = tempfile::tempdir().unwrap();
    let loaded = load(&[Kind::Image, Kind::Esrgan], &settings_of, empty.path(), &downloader).await;
    assert_eq!(loaded.taken, [(Kind::Image, Taken::Snapshot)]);
    assert!(loaded.catalogue.get(Kind::Image, "stable_diffusion").is_some());
    // Nothing is known of upscalers but what comes with the program, and that is said.
    assert!(
        loaded
            .problems
            .iter()
            .any(|problem| problem.contains("esrgan: nothing is known"))
    );
    assert_eq!(
        loaded.catalogue.find("realesrgan-x4plus").unwrap().origin,
        Origin::Builtin
    );
}

/// A server with both sources, and settings that ask it.
async fn sources(answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> (Server, ReferenceSettings) {
    let server = Server::start(answer).await;
    let settings = ReferenceSettings {
        primary: server.url("/v2/"),
        legacy_image: server.url("/image/"),
        legacy_text: server.url("/text/"),
        deadline: Duration::from_secs(5),
    };
    (server, settings)
}

#[tokio::test]
async fn a_copy_is_asked_for_when_it_is_old_and_read_only_where_it_has_changed() {
    const TEXT: &str = r#"{"koboldcpp/Lite": {"name": "koboldcpp/Lite", "parameters": 8000000000}}"#;
    const MORE: &str = r#"{"koboldcpp/Full": {"name": "koboldcpp/Full", "parameters": 8000000000}}"#;
    let stage = Arc::new(AtomicU8::new(0));
    let now = stage.clone();
    let (server, settings_of) = sources(move |seen| match (now.load(Ordering::SeqCst), seen.target.as_str()) {
        (0, "/text/db.json") if seen.if_none_match.as_deref() == Some("\"one\"") => Reply::new(304, ""),
        (0, "/text/db.json") => Reply::new(200, TEXT).with("etag", "\"one\""),
        (1, "/text/db.json") => Reply::new(200, MORE).with("etag", "\"two\""),
        (2, _) => Reply::new(200, "<html>maintenance</html>").with("etag", "\"three\""),
        _ => Reply::new(404, ""),
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let downloader = Downloader::new(settings()).unwrap();
    let again = |max_age: u64| {
        let age = Duration::from_secs(max_age);
        refresh(Kind::Text, &settings_of, dir.path(), age, &downloader)
    };
    let knows = |name: &str| load_offline(&[Kind::Text], dir.path()).get(Kind::Text, name).is_some();
    assert_eq!(again(60).await, Refreshed::New);
    assert!(knows("koboldcpp/Lite"));
    let asked = server.seen().len();
    assert_eq!(again(60).await, Refreshed::Young);
    assert_eq!(server.seen().len(), asked, "a young copy is not asked for");

    let copy = dir.path().join("text_generation.json");
    let old = std::time::SystemTime::now() - Duration::from_secs(3_600);
    let make_old = || {
        std::fs::File::options()
            .append(true)
            .open(&copy)
            .unwrap()
            .set_modified(old)
            .unwrap()
    };
    make_old();
    assert_eq!(again(60).await, Refreshed::Unchanged);
    assert_eq!(server.seen().last().unwrap().if_none_match.as_deref(), Some("\"one\""));
    assert_eq!(again(60).await, Refreshed::Young, "what has not changed is young again");
    // Without a sound copy its state means nothing.
    std::fs::write(&copy, "broken").unwrap();
    assert_eq!(again(0).await, Refreshed::New);
    assert!(knows("koboldcpp/Lite"));

    stage.store(1, Ordering::SeqCst);
    assert_eq!(again(0).await, Refreshed::New);
    assert!(knows("koboldcpp/Full") && !knows("koboldcpp/Lite"));
    for step in [2, 3] {
        stage.store(step, Ordering::SeqCst);
        let Refreshed::Failed(problems) = again(0).await else {
            panic!("no source has a reference")
        };
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(knows("koboldcpp/Full"), "the older copy stays");
    }
}
