//! The supervisor's half, without an engine: what is asked for, what is taken, what is handed in.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use horde_client::client::ClientConfig;
use horde_client::metadata::{Metadata, MetadataType, MetadataValue, State};
use horde_client::transport::{Request, Response, Transport, TransportError};
use horde_client::{ApiKey, Client};
use image_worker::backend::DreamerBackend;
use image_worker::config::Config;
use image_worker::extras::Extras;
use image_worker::facts::{Facts, Pace};
use image_worker::room::Offer;
use image_worker::work::{Censors, Work};
use model_store::adhoc::{AdHoc, AdHocSettings};
use model_store::fetch::{Downloader, FetchSettings};
use model_store::reference::Baseline;
use serde_json::{Value, json};
use worker_app::Common;
use worker_app::config::{LogFormat, LogSettings};
use worker_runtime::backend::{Backend, EngineReport, Fault};

use crate::wire::popped;

/// Answers every download with the same bytes.
struct Store(Bytes);

#[async_trait]
impl Transport for Store {
    async fn send(&self, _: Request) -> Result<Response, TransportError> {
        Ok(Response {
            status: http::StatusCode::OK,
            headers: http::HeaderMap::new(),
            body: self.0.clone(),
        })
    }
}

struct Set {
    backend: DreamerBackend,
    _folder: tempfile::TempDir,
}

fn set(config: Config, nsfw: bool, with_post: bool) -> Set {
    let folder = tempfile::tempdir().unwrap();
    let common = Common {
        horde_url: url::Url::parse("http://127.0.0.1:9/api/").unwrap(),
        worker_name: "a test dreamer".parse().unwrap(),
        bridge_agent: "AI Horde Worker reGen:6.0.0:test".parse().unwrap(),
        proxy: None,
        devices: vec!["cpu".into()],
        prefetch: 1,
        nsfw,
        priority_usernames: vec!["friend#2".into()],
        pause_between: Vec::new(),
        grace: std::time::Duration::from_secs(60),
        log: LogSettings {
            filter: "info".into(),
            format: LogFormat::Text,
        },
        state_dir: folder.path().to_owned(),
        models_dir: folder.path().to_owned(),
    };
    let client = Client::new(
        Arc::new(Store(Bytes::from_static(b"bytes of a source"))),
        ClientConfig {
            base_url: url::Url::parse("https://horde.invalid/api").unwrap(),
            api_key: ApiKey::new("0000000000"),
            client_agent: "dreamer:0.1.0:test".into(),
        },
    );
    let downloader = Downloader::new(FetchSettings::default()).unwrap();
    // Nobody answers there.
    let nowhere = url::Url::parse("http://127.0.0.1:9/api/v1/").unwrap();
    let settings = AdHocSettings {
        civitai: nowhere.clone(),
        hordeling: nowhere,
        ..AdHocSettings::default()
    };
    let cache = AdHoc::open(folder.path().join("lora"), settings, downloader).unwrap();
    let extras = Extras::new(cache, config.allow_lora, nsfw);
    let baselines = BTreeMap::from([("tiny".to_owned(), Some(Baseline::Sd1))]);
    Set {
        backend: DreamerBackend::new(common, config, client, extras, baselines, with_post),
        _folder: folder,
    }
}

fn report(pixels: u64, batch: u32) -> EngineReport {
    Facts::new(vec!["tiny".into()], vec![], Offer { pixels, batch }, Pace::default()).report()
}

fn offered(set: &Set, reports: &[EngineReport]) -> Value {
    let request = set
        .backend
        .offer(reports, 1)
        .unwrap_or_else(|nothing| panic!("{nothing:?}"));
    serde_json::to_value(request).unwrap()
}

async fn prepared(set: &Set, change: &Value) -> Result<Work, Fault> {
    let valid = set.backend.validate(&mut popped(change).unwrap())?;
    set.backend.prepare(valid).await
}

#[test]
fn a_pop_says_what_the_owner_set_and_never_what_this_build_cannot() {
    let config = Config {
        max_power: 32,
        max_batch: 4,
        allow_img2img: false,
        allow_painting: false,
        allow_unsafe_ipaddr: false,
        allow_lora: true,
        require_upfront_kudos: true,
        extra_slow_worker: true,
        limit_max_steps: true,
        blacklist: vec!["hat".into()],
        ..Config::default()
    };
    let pop = offered(&set(config, false, true), &[report(1024 * 1024, 4)]);
    let expected = json!({
        "name": "a test dreamer", "models": ["tiny"], "bridge_agent": "AI Horde Worker reGen:6.0.0:test",
        "priority_usernames": ["friend#2"], "nsfw": false, "threads": 1, "require_upfront_kudos": true, "amount": 4,
        "extra_slow_worker": true, "max_pixels": 1024 * 1024, "blacklist": ["hat"], "allow_img2img": false,
        "allow_painting": false, "allow_unsafe_ipaddr": false, "allow_post_processing": true, "allow_controlnet": false,
        "allow_sdxl_controlnet": false, "allow_lora": true, "limit_max_steps": true,
    });
    assert_eq!(pop, expected);
}

#[test]
fn several_engines_are_asked_for_what_each_of_them_can_do() {
    let config = Config {
        max_power: 32,
        max_batch: 4,
        ..Config::default()
    };
    let pop = offered(
        &set(config, true, false),
        &[report(512 * 512, 4), report(1024 * 1024, 2)],
    );
    assert_eq!(
        (&pop["max_pixels"], &pop["amount"], &pop["threads"]),
        (&json!(512 * 512), &json!(2), &json!(2))
    );
    assert_eq!(pop["allow_post_processing"], json!(false));
}

#[tokio::test]
async fn only_offered_models_and_post_processors_are_taken() {
    let (plain, with_post) = (set(Config::default(), true, false), set(Config::default(), true, true));
    for model in [json!(null), json!("other"), json!(7)] {
        let fault = prepared(&plain, &json!({ "model": model }))
            .await
            .map(drop)
            .unwrap_err();
        assert!(!fault.ours, "{model}: {fault}");
    }
    let with = |names: Value| json!({ "payload": { "post_processing": names } });
    assert!(
        prepared(&plain, &with(json!(["NMKD_Siax"]))).await.is_err(),
        "none was offered"
    );
    let enlarged = prepared(&with_post, &with(json!(["NMKD_Siax"]))).await.unwrap();
    assert_eq!(enlarged.post, ["NMKD_Siax"]);
    for refused in [
        json!(["no such"]),
        json!(["NMKD_Siax", "4x_AnimeSharp"]),
        json!(["../x"]),
    ] {
        let fault = prepared(&with_post, &with(refused.clone()))
            .await
            .map(drop)
            .unwrap_err();
        assert!(!fault.ours, "{refused}: {fault}");
    }
    let many: Vec<&str> = std::iter::repeat_n("GFPGAN", 10_000).collect();
    assert!(
        prepared(&with_post, &with(json!(many))).await.is_ok(),
        "each counts once"
    );
    for none in [json!([]), json!(null), json!("NMKD_Siax"), json!([7, null])] {
        assert!(
            prepared(&plain, &with(none.clone())).await.unwrap().post.is_empty(),
            "{none}"
        );
    }
}

#[tokio::test]
async fn pictures_are_replaced_for_who_asked_for_it_and_on_a_worker_for_everybody() {
    let censors = |nsfw: bool, asked: Value| async move {
        let set = set(Config::default(), nsfw, false);
        let change = json!({ "payload": { "use_nsfw_censor": asked } });
        prepared(&set, &change).await.unwrap().censors
    };
    assert_eq!(censors(true, json!(null)).await, None);
    assert_eq!(censors(true, json!(false)).await, None);
    assert_eq!(censors(true, json!(true)).await, Some(Censors::Requester));
    assert_eq!(censors(false, json!(true)).await, Some(Censors::Requester));
    assert_eq!(censors(false, json!(null)).await, Some(Censors::Owner));
    let config = Config {
        censorlist: vec!["Hat".into()],
        ..Config::default()
    };
    let set = set(config, true, false);
    for (prompt, expected) in [
        ("a cat in a hat", true),
        ("a CAT in a HAT", true),
        ("a cat ### hats", true),
        ("a cat in a h\u{430}t", true),
        ("a cat in a h4t", true),
        ("a cat in a h a t", true),
        ("a cat", false),
        ("a cat with a wh at", false),
    ] {
        let work = prepared(&set, &json!({ "payload": { "prompt": prompt } }))
            .await
            .unwrap();
        assert_eq!(work.has_censored_word, expected, "{prompt}");
    }
}

#[tokio::test]
async fn a_source_is_fetched_where_it_is_wanted_and_noted_where_it_is_not_to_be_had() {
    let set = set(Config::default(), true, false);
    let source =
        json!({ "source_image": "https://store.invalid/s.webp", "source_mask": "https://store.invalid/m.webp" });
    let work = prepared(&set, &source).await.unwrap();
    let bytes = |bytes: &Option<serde_bytes::ByteBuf>| bytes.as_ref().map(|bytes| bytes.to_vec());
    let expected = Some(b"bytes of a source".to_vec());
    assert_eq!((bytes(&work.source), bytes(&work.mask)), (expected.clone(), expected));

    let mask_alone = json!({ "source_processing": "inpainting", "source_mask": "https://store.invalid/m.webp" });
    let work = prepared(&set, &mask_alone).await.unwrap();
    assert!(work.source.is_none() && work.mask.is_none() && work.order.source.is_none() && work.notes.is_empty());

    let broken = json!({ "source_image": "no base64!", "source_processing": "inpainting" });
    let work = prepared(&set, &broken).await.unwrap();
    let noted = Metadata::new(MetadataType::SourceImage, MetadataValue::DownloadFailed, None);
    assert_eq!((work.order.source, work.notes), (None, vec![noted]));
}

#[tokio::test]
async fn a_lora_that_is_not_to_be_had_is_noted_by_its_name_and_so_is_one_too_many() {
    let lora = |name: &str| json!({ "name": name });
    let names: Vec<String> = (1..=9).map(|n| n.to_string()).collect();
    let many: Vec<Value> = names.iter().map(|name| lora(name)).collect();
    for allow_lora in [true, false] {
        let config = Config {
            allow_lora,
            ..Config::default()
        };
        let set = set(config, true, false);
        let work = prepared(&set, &json!({ "payload": { "loras": many } })).await.unwrap();
        assert!(work.loras.is_empty());
        let noted: Vec<_> = work
            .notes
            .iter()
            .map(|note| (note.kind.clone(), note.value.clone(), note.reference.clone()))
            .collect();
        let expected: Vec<_> = names
            .iter()
            .map(|name| (MetadataType::Lora, MetadataValue::DownloadFailed, Some(name.clone())))
            .collect();
        assert_eq!(noted, expected);
    }
    let set = set(Config::default(), true, false);
    let endless: Vec<Value> = (0..100_000).map(|_| lora("../../x")).collect();
    let work = prepared(&set, &json!({ "payload": { "loras": endless } }))
        .await
        .unwrap();
    assert!(
        work.notes.len() <= horde_client::metadata::MOST_ENTRIES,
        "{}",
        work.notes.len()
    );
}

#[test]
fn what_marks_a_picture_as_replaced_survives_a_refusal_and_a_restart() {
    let set = set(Config::default(), true, false);
    let replaced = Metadata::new(MetadataType::Censorship, MetadataValue::Csam, None);
    let index = Metadata::new(MetadataType::BatchIndex, MetadataValue::SeeRef, Some("0"));
    let submission = horde_client::image::Submission {
        generation: "R2".into(),
        state: State::Csam,
        seed: 7,
        gen_metadata: vec![replaced.clone(), index.clone()],
    };
    let minimal = set.backend.minimal(&submission);
    assert_eq!(
        (minimal.state, minimal.gen_metadata),
        (State::Csam, vec![replaced.clone()])
    );
    let inline = set.backend.inline(&submission, &Bytes::from_static(&[0, 255])).unwrap();
    assert_eq!(
        (inline.generation.as_str(), inline.gen_metadata),
        ("AP8=", vec![replaced, index])
    );
    assert_eq!((inline.state, inline.seed), (State::Csam, 7));
}
