//! References over the network: primary, legacy, the last good copy, the snapshot.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use model_store::fetch::Downloader;
use model_store::reference::load::{ReferenceSettings, Taken, load, load_offline};
use model_store::reference::{Kind, Origin};

use crate::fetch_good::settings;
use crate::server::{Reply, Server};

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
