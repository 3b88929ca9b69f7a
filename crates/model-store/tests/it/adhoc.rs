//! LoRAs and embeddings of jobs, against a copy of CivitAI's answers on loopback.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use model_store::adhoc::{AdHoc, AdHocFailure, AdHocKind, AdHocSettings, Wanted};
use model_store::digest::Sha256Sum;
use model_store::fetch::{Control, Downloader, Silent};
use model_store::reference::Baseline;
use serde_json::json;

use crate::fetch_good::settings;
use crate::server::{Reply, Server};

/// A safetensors file of one tensor with `n` in it.
fn lora(n: u8) -> Vec<u8> {
    let head = r#"{"lora_unet_a.alpha":{"dtype":"U8","shape":[1000],"data_offsets":[0,1000]}}"#;
    let mut bytes = (head.len() as u64).to_le_bytes().to_vec();
    bytes.extend(head.as_bytes());
    bytes.extend([n; 1000]);
    bytes
}

/// The shape of `model-versions/{id}`, shortened; the version's number is the file's content.
fn version(id: u64, host: &str) -> serde_json::Value {
    json!({
        "id": id, "modelId": 9000 + id, "name": "v1.0", "baseModel": if id == 2 { "SDXL 1.0" } else { "SD 1.5" },
        "trainedWords": ["sks style", "sks"], "publishedAt": "2025-01-01T00:00:00.000Z", "nsfwLevel": 1,
        "model": {"name": format!("Style {id}"), "type": "LORA", "nsfw": id == 3, "poi": false},
        "files": [
            {"id": 1, "sizeKB": 0.5, "name": "training.zip", "type": "Training Data", "metadata": {"format": "Other"}, "hashes": {}},
            {"id": 2, "sizeKB": if id == 4 { 20.0 * 1024.0 * 1024.0 } else { 1.1 }, "name": "../../../etc/passwd.safetensors", "type": "Model", "primary": true,
             "metadata": {"fp": "fp16", "size": "full", "format": if id == 5 { "PickleTensor" } else { "SafeTensor" }},
             "hashes": if id == 6 { json!({}) } else { json!({"AutoV2": "AB", "SHA256": Sha256Sum::of(&lora(id as u8)).to_string().to_uppercase()}) },
             "downloadUrl": format!("http://{host}/api/download/models/{id}")}
        ],
        "downloadUrl": format!("http://{host}/api/download/models/{id}")
    })
}

async fn civitai(down: Arc<AtomicBool>, log: Arc<Mutex<Vec<String>>>) -> Server {
    Server::start(move |seen| {
        log.lock().unwrap().push(seen.target.clone());
        if down.load(Ordering::SeqCst) {
            return Reply::new(503, "maintenance").with("retry-after", "0");
        }
        let json = |value: serde_json::Value| Reply::new(200, value.to_string()).with("content-type", "application/json");
        let (path, query) = seen.target.split_once('?').unwrap_or((&seen.target, ""));
        let id: u64 = path.rsplit('/').next().and_then(|id| id.parse().ok()).unwrap_or(0);
        let model = |id: u64| {
            json!({"id": 9000 + id, "name": format!("Style {id}"), "type": "LORA", "nsfw": false, "modelVersions": [version(id, &seen.host), version(id + 100, &seen.host)]})
        };
        match path {
            path if path.starts_with("/api/v1/model-versions/") && (1..=50).contains(&id) => {
                let mut answer = version(id, &seen.host);
                if id == 5 {
                    answer["files"][1]["name"] = "a.pt".into();
                }
                json(answer)
            }
            path if path.starts_with("/api/v1/models/") && id > 9000 => json(model(id - 9000)),
            "/api/v1/models" if query.contains("Style+1") => json(json!({"items": [model(11), model(1)], "metadata": {}})),
            "/api/v1/models" => json(json!({"items": [], "metadata": {}})),
            path if path.starts_with("/h/embedding/") => json(json!({"url": format!("http://{}/api/download/models/{id}", seen.host), "sha256": Sha256Sum::of(&lora(id as u8)).to_string()})),
            // Number 7 sends other bytes, number 8 comes by the byte.
            path if path.starts_with("/api/download/models/") => {
                let file = lora(if id == 7 { 70 } else { id as u8 });
                Reply { drip: Duration::from_millis(if id == 8 { 2000 } else { 0 }), ..Reply::file(seen, &file) }
            }
            _ => Reply::new(404, r#"{"error": "No model with id"}"#),
        }
    })
    .await
}

struct Bench {
    adhoc: AdHoc,
    dir: tempfile::TempDir,
    down: Arc<AtomicBool>,
    log: Arc<Mutex<Vec<String>>>,
    server: Server,
}

impl Bench {
    async fn new(budget_bytes: u64) -> Self {
        let (down, log) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let server = civitai(down.clone(), log.clone()).await;
        let dir = tempfile::tempdir().unwrap();
        let limits = AdHocSettings {
            civitai: server.url("/api/v1/"),
            hordeling: server.url("/h/"),
            budget_bytes,
            download: Duration::from_millis(700),
            ..AdHocSettings::default()
        };
        let adhoc = AdHoc::open(dir.path().join("lora"), limits, Downloader::new(settings()).unwrap()).unwrap();
        Self {
            adhoc,
            dir,
            down,
            log,
            server,
        }
    }

    async fn get(&self, name: &str, is_version: bool) -> Result<model_store::adhoc::Pinned, AdHocFailure> {
        let wanted = Wanted {
            kind: AdHocKind::Lora,
            name,
            is_version,
            baseline: Some(&Baseline::Sd1),
            nsfw: false,
        };
        self.adhoc.get(&wanted, &Silent, &Control::default()).await
    }

    fn files(&self) -> usize {
        let names = std::fs::read_dir(self.dir.path().join("lora"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        names
            .filter(|name| name.to_string_lossy().ends_with(".safetensors"))
            .count()
    }
}

#[tokio::test]
async fn a_lora_is_had_by_version_by_model_and_by_name_and_fetched_once() {
    let bench = Bench::new(1 << 20).await;
    let by_version = bench.get("1", true).await.unwrap();
    assert_eq!(by_version.triggers(), ["sks style", "sks"]);
    assert_eq!(
        (by_version.version_id(), by_version.model_id(), by_version.title()),
        (1, Some(9001), "Style 1")
    );
    assert_eq!(std::fs::read(by_version.path()).unwrap(), lora(1));
    // The name in the answer was `../../../etc/passwd.safetensors`: the file is called by its sum.
    assert_eq!(
        by_version.path().file_stem().unwrap().to_str().unwrap(),
        Sha256Sum::of(&lora(1)).to_string()
    );
    let by_model = bench.get("9001", false).await.unwrap();
    assert_eq!(by_model.path(), by_version.path());
    let by_name = bench.get("Style 1", false).await.unwrap();
    assert_eq!(by_name.path(), by_version.path());
    let downloads = bench
        .log
        .lock()
        .unwrap()
        .iter()
        .filter(|target| target.contains("/download/"))
        .count();
    assert_eq!(downloads, 1);
    bench.get("1", true).await.unwrap();
    assert_eq!(
        bench
            .log
            .lock()
            .unwrap()
            .iter()
            .filter(|target| target.contains("model-versions"))
            .count(),
        1,
        "a known version asks nobody"
    );
}

#[tokio::test]
async fn every_way_to_have_none_has_a_name() {
    let bench = Bench::new(1 << 20).await;
    assert!(matches!(
        bench.get("2", true).await,
        Err(AdHocFailure::BaselineMismatch { .. })
    ));
    assert_eq!(bench.get("3", true).await.unwrap_err(), AdHocFailure::Nsfw);
    assert!(matches!(bench.get("4", true).await, Err(AdHocFailure::TooLarge { .. })));
    assert_eq!(bench.get("5", true).await.unwrap_err(), AdHocFailure::NoSafeFormat);
    assert_eq!(bench.get("6", true).await.unwrap_err(), AdHocFailure::NoSum);
    assert!(matches!(bench.get("7", true).await, Err(AdHocFailure::Fetch(reason)) if reason.contains("sha256")));
    assert_eq!(bench.get("8", true).await.unwrap_err(), AdHocFailure::TimedOut);
    assert_eq!(bench.get("77", true).await.unwrap_err(), AdHocFailure::NotFound);
    for name in ["", "../../etc/passwd", "a\0b", "CON", "\u{2215}x", &"x".repeat(4096)] {
        assert_eq!(
            bench.get(name, false).await.unwrap_err(),
            AdHocFailure::NotFound,
            "{name:?}"
        );
        assert_eq!(
            bench.get(name, true).await.unwrap_err(),
            AdHocFailure::NotFound,
            "{name:?}"
        );
    }
    assert_eq!(bench.files(), 0);
    assert!(
        bench.server.seen().iter().all(|seen| seen.target.starts_with("/api/")),
        "no name became a path"
    );
}

#[tokio::test]
async fn the_least_recently_used_makes_room_and_what_is_in_use_stays() {
    let size = lora(0).len() as u64;
    let bench = Bench::new(2 * (size + 200)).await;
    let first = bench.get("11", true).await.unwrap();
    drop(bench.get("12", true).await.unwrap());
    drop(bench.get("13", true).await.unwrap());
    assert_eq!(bench.files(), 2);
    assert!(first.path().exists(), "the oldest is in use");
    let third = bench.get("13", true).await.unwrap();
    assert_eq!(bench.get("14", true).await.unwrap_err(), AdHocFailure::NoRoom);
    drop((first, third));
    assert!(bench.get("14", true).await.is_ok());
}

#[tokio::test]
async fn an_outage_of_the_service_leaves_what_is_there_usable() {
    let bench = Bench::new(1 << 20).await;
    bench.get("9001", false).await.unwrap();
    bench.down.store(true, Ordering::SeqCst);
    assert_eq!(bench.get("9001", false).await.unwrap().version_id(), 1);
    assert!(matches!(bench.get("9015", false).await, Err(AdHocFailure::Fetch(_))));
    // The same after a restart.
    let again = AdHoc::open(
        bench.dir.path().join("lora"),
        AdHocSettings {
            civitai: bench.server.url("/api/v1/"),
            ..AdHocSettings::default()
        },
        Downloader::new(settings()).unwrap(),
    )
    .unwrap();
    let wanted = Wanted {
        kind: AdHocKind::Lora,
        name: "1",
        is_version: true,
        baseline: None,
        nsfw: false,
    };
    assert!(again.get(&wanted, &Silent, &Control::default()).await.is_ok());
}

#[tokio::test]
async fn an_embedding_comes_from_the_hordes_converter() {
    let bench = Bench::new(1 << 20).await;
    let wanted = |name| Wanted {
        kind: AdHocKind::Embedding,
        name,
        is_version: false,
        baseline: None,
        nsfw: false,
    };
    let pinned = bench
        .adhoc
        .get(&wanted("21"), &Silent, &Control::default())
        .await
        .unwrap();
    assert_eq!(std::fs::read(pinned.path()).unwrap(), lora(21));
    assert_eq!(
        bench
            .adhoc
            .get(&wanted("easynegative"), &Silent, &Control::default())
            .await
            .unwrap_err(),
        AdHocFailure::NotFound
    );
}
