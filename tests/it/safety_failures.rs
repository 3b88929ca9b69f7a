//! A content check that fails lets nothing through, whenever and however it fails; and what it found is in no log.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use e2e::demo::civitai::{self, TELLING};
use e2e::demo::dreamer::settings;
use e2e::demo::stage::start_worker_with_log;
use e2e::listening::process_tree;
use e2e::programs::Program;
use local_horde::{Horde, http};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use test_support::merge;

use crate::bad_jobs::{End, ended, script};
use crate::post::Network;
use crate::safety::install;
use crate::scripted;

/// Loading and drawing on two busy cores, with room.
const PATIENCE: Duration = Duration::from_secs(240);
const NUDE: &str = "a large red circle on a white background";

/// open_nsfw's layout with one channel, which overflows where a picture is far greener than red. The last layer then has
/// infinities to weigh against each other and gives no number; any other picture is harmless to it.
fn fails_at_green(models: &Path) {
    let mut network = Network::default();
    network.conv("conv_1", [1, 3], &[0.0, 1e36, -1e36], -90e36);
    network.0.push(("fc_nsfw.weight".into(), vec![2, 1], vec![1e9, -1e9]));
    network.0.push(("fc_nsfw.bias".into(), vec![2], vec![10.0, 0.0]));
    network.write(&models.join("nsfw/open_nsfw.safetensors"));
}

/// A dreamer with a check in `folder`, and its log there.
fn dreamer(folder: &Path, running: &http::Running, more: &[(&str, &str)]) -> Program {
    let models = folder.join("models");
    std::fs::create_dir_all(&models).expect("a folder");
    install(&models);
    let usual = settings(&models).expect("the tiny model is part of the repository");
    let usual = usual.iter().map(|(key, value)| (*key, value.as_str()));
    let environment: Vec<_> = usual.chain(more.iter().copied()).collect();
    let log = std::fs::File::create(folder.join("log")).expect("a log");
    start_worker_with_log(
        "dreamer",
        &running.base(),
        &folder.join("state"),
        &environment,
        Stdio::from(log),
    )
    .expect("dreamer starts")
}

fn drawn(horde: &Horde, prompt: &str, change: Value) -> String {
    let mut whole =
        json!({ "payload": { "prompt": prompt, "ddim_steps": 20, "cfg_scale": 5.0, "sampler_name": "k_euler_a" } });
    merge(&mut whole, &change);
    script(horde, &whole)
}

async fn end_of(horde: &Horde, what: &str, id: &str) -> End {
    scripted::outcome(what, Instant::now() + PATIENCE, || ended(horde, id)).await
}

fn is_uploaded(horde: &Horde, id: &str) -> bool {
    horde.state().objects.look(&format!("{id}.webp")).is_some()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_that_fails_at_one_picture_or_breaks_under_the_running_dreamer_lets_nothing_through() {
    let (horde, running) = scripted::horde().await;
    let folder = tempfile::tempdir().expect("a folder");
    fails_at_green(&folder.path().join("models"));
    let mut worker = dreamer(folder.path(), &running, &[("DREAMER_MAX_POWER", "16")]);
    let (green, yellow) = (
        "a large green square on a white background",
        "a large yellow square on a black background",
    );
    let jobs = [
        drawn(&horde, NUDE, json!({})),
        drawn(&horde, green, json!({})),
        drawn(&horde, yellow, json!({})),
    ];
    let made = |notes: &[&str]| End::Made((64, 64), notes.iter().map(|note| (*note).to_owned()).collect());
    assert_eq!(end_of(&horde, "red", &jobs[0]).await, made(&["information nsfw"]));
    assert_eq!(end_of(&horde, "green", &jobs[1]).await, End::HandedBack);
    assert_eq!(end_of(&horde, "yellow", &jobs[2]).await, made(&[]));
    assert!(is_uploaded(&horde, &jobs[0]) && !is_uploaded(&horde, &jobs[1]));

    // The weights tear, and the engine dies in the middle of a job: there is no check any more.
    let clip = folder.path().join("models/clip/model.safetensors");
    let bytes = std::fs::read(&clip).expect("the tiny CLIP");
    std::fs::write(&clip, &bytes[..bytes.len() / 2]).expect("half of it");
    let long = json!({ "payload": { "width": 576, "height": 576, "ddim_steps": 500 } });
    let last = [drawn(&horde, NUDE, long), drawn(&horde, NUDE, json!({}))];
    scripted::outcome("the long job's pop", Instant::now() + PATIENCE, || {
        horde.state().ledger.generations.contains_key(&last[0]).then_some(())
    })
    .await;
    let pid = worker.pid().expect("it runs");
    let engines: BTreeSet<u32> = process_tree(pid).into_iter().filter(|one| *one != pid).collect();
    for engine in engines {
        kill(
            Pid::from_raw(i32::try_from(engine).expect("a process")),
            Signal::SIGKILL,
        )
        .expect("it runs");
    }
    let exit = worker.wait(PATIENCE).await.expect("dreamer ends by itself");
    assert_eq!(exit.code(), Some(66), "{exit}");
    assert_eq!(end_of(&horde, "the long job", &last[0]).await, End::HandedBack);
    // The other was popped and handed back, or never popped.
    assert!(last.iter().all(|id| !is_uploaded(&horde, id)));
    let summary = horde.state().ledger.summary();
    assert_eq!((summary.accepted, summary.open, summary.expired), (2, 0, 0));
}

/// All that a worker left on this machine: its log and the files of its state.
fn left_behind(folder: &Path) -> Vec<u8> {
    let mut all = Vec::new();
    let mut todo = vec![folder.join("log"), folder.join("state")];
    while let Some(path) = todo.pop() {
        match std::fs::read_dir(&path) {
            Ok(entries) => todo.extend(entries.flatten().map(|entry| entry.path())),
            Err(_) => all.extend(std::fs::read(&path).unwrap_or_default()),
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_word_of_a_prompt_and_no_number_of_the_check_is_left_behind_even_when_everything_is_logged() {
    let (horde, running) = scripted::horde().await;
    let copy = civitai::serve().await.expect("a copy of the API");
    let folder = tempfile::tempdir().expect("a folder");
    fails_at_green(&folder.path().join("models"));
    let more = [
        ("HORDE_LOG", "trace"),
        ("DREAMER_CENSORLIST", "syzygy"),
        ("DREAMER_CIVITAI_URL", copy.as_str()),
    ];
    let worker = dreamer(folder.path(), &running, &more);
    let lora = json!({ "payload": { "loras": [{ "name": TELLING.to_string(), "is_version": true, "model": 0.0, "clip": 0.0 }] } });
    let green = "a large green square on a white background, quincunx";
    let jobs = [
        drawn(
            &horde,
            &format!("{NUDE}, quincunx, a kindergartner ### zeugma"),
            json!({}),
        ),
        drawn(&horde, &format!("{NUDE}, syzygy ### zeugma"), lora),
        drawn(&horde, green, json!({})),
    ];
    let csam = End::Made((64, 64), vec!["censorship csam".into()]);
    assert_eq!(end_of(&horde, "words", &jobs[0]).await, csam);
    assert_eq!(end_of(&horde, "a LoRA", &jobs[1]).await, csam);
    assert_eq!(end_of(&horde, "a failure", &jobs[2]).await, End::HandedBack);
    scripted::drained(&horde, worker).await;

    let log = std::fs::read_to_string(folder.path().join("log")).expect("a log");
    assert!(
        log.contains("a picture was checked") && log.contains("TRACE"),
        "all is logged"
    );
    let all = String::from_utf8_lossy(&left_behind(folder.path())).to_lowercase();
    for word in [
        "quincunx",
        "kindergartner",
        "zeugma",
        "syzygy",
        "a small child",
        "circle",
        "square",
        "cosine",
        "under_age",
        "hides_",
        "sexual",
    ] {
        let at = all.find(word);
        let around = at.map(|at| {
            all.chars()
                .skip(all[..at].chars().count().saturating_sub(200))
                .take(300)
                .collect::<String>()
        });
        assert_eq!(around, None, "`{word}` was left behind");
    }
}
