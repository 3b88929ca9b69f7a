//! Downloads that end well, whatever happens on the way.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use model_store::digest::Sha256Sum;
use model_store::fetch::{
    Backoff, Control, Downloader, Event, FetchError, FetchPlan, FetchSettings, HttpSettings, JsonLines, Patience,
    Progress, Silent,
};
use model_store::token::{HostToken, Token};

use crate::server::{Reply, Server, noise};

pub fn settings() -> FetchSettings {
    FetchSettings {
        http: HttpSettings {
            private_network: true,
            patience: Patience {
                silence: Duration::from_secs(5),
                ..Patience::default()
            },
            ..HttpSettings::default()
        },
        chunk_bytes: Some(1 << 20),
        floor_bytes: 0,
        backoff: Backoff {
            floor: Duration::from_millis(5),
            ceiling: Duration::from_millis(20),
        },
        ..FetchSettings::default()
    }
}

pub fn plan(dir: &tempfile::TempDir, server: &Server, file: &[u8]) -> FetchPlan {
    FetchPlan {
        size_bytes: Some(file.len() as u64),
        sha256: Some(Sha256Sum::of(file)),
        ..FetchPlan::new("model", dir.path().join("model.bin"))
    }
    .url(server.url("/model.bin"))
}

/// Fails if anything but the finished file and its stamp is left.
pub fn assert_only_the_file_is_there(dir: &tempfile::TempDir) {
    let mut names: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, [".model.bin.sum", "model.bin"]);
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<Event>>>);

impl Progress for Log {
    fn event(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }
}

#[tokio::test]
async fn a_file_arrives_over_several_ranges_and_is_not_fetched_twice() {
    let file = noise(5_300_000);
    let served = file.clone();
    let server = Server::start(move |seen| Reply::file(seen, &served)).await;
    let dir = tempfile::tempdir().unwrap();
    let downloader = Downloader::new(settings()).unwrap();
    let plan = plan(&dir, &server, &file);
    let fetched = downloader.fetch(&plan, &Silent, &Control::default()).await.unwrap();
    assert_eq!(std::fs::read(&fetched.path).unwrap(), file);
    assert_eq!((fetched.bytes, fetched.already_there), (file.len() as u64, false));
    assert_eq!(server.seen().len(), 6);
    assert_eq!(server.sent(), file.len() as u64);
    assert_only_the_file_is_there(&dir);
    let again = downloader.fetch(&plan, &Silent, &Control::default()).await.unwrap();
    assert!(again.already_there);
    assert_eq!(server.seen().len(), 6);
}

#[tokio::test]
async fn size_and_sum_need_not_be_known() {
    let file = noise(2_500_000);
    let served = file.clone();
    let server = Server::start(move |seen| Reply::file(seen, &served).with("etag", "\"one\"")).await;
    let dir = tempfile::tempdir().unwrap();
    let plan = FetchPlan::new("model", dir.path().join("model.bin")).url(server.url("/m"));
    let fetched = Downloader::new(settings())
        .unwrap()
        .fetch(&plan, &Silent, &Control::default())
        .await
        .unwrap();
    assert_eq!(fetched.sha256, Sha256Sum::of(&file));
}

#[tokio::test]
async fn a_truncated_body_is_gone_on_with_where_it_ended() {
    let file = noise(4_000_000);
    let served = file.clone();
    let calls = AtomicUsize::new(0);
    let server = Server::start(move |seen| {
        let mut reply = Reply::file(seen, &served);
        // Every second answer breaks off after 300 kB.
        if calls.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
            reply.cut = Some(300_000);
        }
        reply
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(&dir, &server, &file);
    Downloader::new(settings())
        .unwrap()
        .fetch(&plan, &Silent, &Control::default())
        .await
        .unwrap();
    assert_eq!(std::fs::read(&plan.dest).unwrap(), file);
    assert_eq!(server.sent(), file.len() as u64, "no byte was fetched twice");
}

#[tokio::test]
async fn a_stopped_download_resumes_without_fetching_anything_twice() {
    let file = noise(6_000_000);
    let served = file.clone();
    let server = Server::start(move |seen| Reply {
        drip: Duration::from_millis(10),
        ..Reply::file(seen, &served)
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(&dir, &server, &file);
    let control = Control::default();
    let stopper = control.clone();
    let downloader = Downloader::new(FetchSettings {
        connections_per_file: 2,
        ..settings()
    })
    .unwrap();
    let first = downloader.fetch(&plan, &Silent, &control);
    let (first, ()) = tokio::join!(first, async {
        while server.sent() < 1_500_000 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stopper.stop();
    });
    assert!(matches!(first, Err(FetchError::Stopped)), "{first:?}");
    assert!(!plan.dest.exists());
    let second = downloader.fetch(&plan, &Silent, &Control::default()).await.unwrap();
    assert!(second.resumed_bytes > 1_000_000, "{second:?}");
    assert_eq!(std::fs::read(&plan.dest).unwrap(), file);
    // What was on the wire when the owner stopped is lost, nothing else: at most a socket's buffers per connection.
    let twice = server.sent() - file.len() as u64;
    assert!(twice < 2_000_000, "{twice} bytes came twice");
    assert_only_the_file_is_there(&dir);
}

#[tokio::test]
async fn a_pause_closes_the_connections_and_a_resume_goes_on() {
    let file = noise(3_000_000);
    let served = file.clone();
    let server = Server::start(move |seen| Reply {
        drip: Duration::from_millis(5),
        ..Reply::file(seen, &served)
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(&dir, &server, &file);
    let control = Control::default();
    let log = Log::default();
    let owner = control.clone();
    let seen = log.clone();
    let downloader = Downloader::new(settings()).unwrap();
    let (fetched, ()) = tokio::join!(downloader.fetch(&plan, &log, &control), async {
        while server.sent() < 500_000 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        owner.pause();
        while !seen
            .0
            .lock()
            .unwrap()
            .iter()
            .any(|event| matches!(event, Event::Paused { .. }))
        {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        owner.resume();
    });
    fetched.unwrap();
    assert_eq!(std::fs::read(&plan.dest).unwrap(), file);
}

#[tokio::test]
async fn a_server_without_ranges_is_read_in_one_stream() {
    let file = noise(3_000_000);
    let served = file.clone();
    let server = Server::start(move |_| Reply::new(200, served.clone())).await;
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(&dir, &server, &file);
    Downloader::new(settings())
        .unwrap()
        .fetch(&plan, &Silent, &Control::default())
        .await
        .unwrap();
    assert_eq!(std::fs::read(&plan.dest).unwrap(), file);
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn a_range_answered_with_the_whole_file_starts_again_from_zero() {
    let file = noise(3_000_000);
    let served = file.clone();
    let calls = AtomicUsize::new(0);
    let server = Server::start(move |seen| match calls.fetch_add(1, Ordering::SeqCst) {
        0 => Reply {
            cut: Some(400_000),
            ..Reply::file(seen, &served)
        },
        _ => Reply::new(200, served.clone()),
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(&dir, &server, &file);
    let downloader = Downloader::new(FetchSettings {
        connections_per_file: 1,
        ..settings()
    })
    .unwrap();
    downloader.fetch(&plan, &Silent, &Control::default()).await.unwrap();
    assert_eq!(std::fs::read(&plan.dest).unwrap(), file);
}

#[tokio::test]
async fn an_expired_link_is_asked_for_again_at_its_resolver() {
    let file = noise(4_000_000);
    let served = file.clone();
    let uses = AtomicUsize::new(0);
    let issued = AtomicUsize::new(0);
    let server = Server::start(move |seen| {
        if seen.target == "/model.bin" {
            uses.store(0, Ordering::SeqCst);
            return Reply::redirect(format!("/signed?n={}", issued.fetch_add(1, Ordering::SeqCst)));
        }
        if uses.fetch_add(1, Ordering::SeqCst) >= 2 {
            return Reply::new(403, "expired");
        }
        Reply::file(seen, &served)
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(&dir, &server, &file);
    let downloader = Downloader::new(FetchSettings {
        connections_per_file: 1,
        ..settings()
    })
    .unwrap();
    downloader.fetch(&plan, &Silent, &Control::default()).await.unwrap();
    assert_eq!(std::fs::read(&plan.dest).unwrap(), file);
    let resolved = server.seen().iter().filter(|seen| seen.target == "/model.bin").count();
    assert_eq!(resolved, 2, "the resolver is asked once per link, not once per range");
}

#[tokio::test]
async fn a_busy_server_is_tried_again_after_the_time_it_names() {
    let file = noise(10_000);
    let served = file.clone();
    let calls = AtomicUsize::new(0);
    let server = Server::start(move |seen| match calls.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::new(503, "later").with("retry-after", "1"),
        _ => Reply::file(seen, &served),
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let start = Instant::now();
    Downloader::new(settings())
        .unwrap()
        .fetch(&plan(&dir, &server, &file), &Silent, &Control::default())
        .await
        .unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn two_pulls_of_the_same_file_fetch_it_once() {
    let file = noise(3_000_000);
    let served = file.clone();
    let server = Server::start(move |seen| Reply {
        drip: Duration::from_millis(2),
        ..Reply::file(seen, &served)
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(&dir, &server, &file);
    // Locks belong to open files, so two downloaders stand for two processes.
    let (one, other) = (
        Downloader::new(settings()).unwrap(),
        Downloader::new(settings()).unwrap(),
    );
    let control = Control::default();
    let (first, second) = tokio::join!(
        one.fetch(&plan, &Silent, &control),
        other.fetch(&plan, &Silent, &control)
    );
    let (first, second) = (first.unwrap(), second.unwrap());
    assert!(first.already_there != second.already_there);
    assert_eq!(server.sent(), file.len() as u64);
    assert_only_the_file_is_there(&dir);
}

#[tokio::test]
async fn the_bandwidth_cap_holds_over_all_connections() {
    let file = noise(1_000_000);
    let served = file.clone();
    let server = Server::start(move |seen| Reply::file(seen, &served)).await;
    let dir = tempfile::tempdir().unwrap();
    let downloader = Downloader::new(FetchSettings {
        bytes_per_second: Some(2_000_000),
        chunk_bytes: Some(100_000),
        ..settings()
    })
    .unwrap();
    let start = Instant::now();
    downloader
        .fetch(&plan(&dir, &server, &file), &Silent, &Control::default())
        .await
        .unwrap();
    assert!(start.elapsed() >= Duration::from_millis(480), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_token_goes_to_its_host_and_not_along_a_redirect_to_another() {
    let file = noise(10_000);
    let served = file.clone();
    let server = Server::start(move |seen| {
        if seen.host.starts_with("127.") {
            let port = seen.host.split(':').nth(1).unwrap();
            return Reply::redirect(format!("http://localhost:{port}/storage"));
        }
        Reply::file(seen, &served)
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings();
    settings.http.tokens.push(HostToken {
        host: "127.0.0.1".into(),
        token: Token::new("secret"),
    });
    Downloader::new(settings)
        .unwrap()
        .fetch(&plan(&dir, &server, &file), &Silent, &Control::default())
        .await
        .unwrap();
    let seen: Vec<_> = server
        .seen()
        .into_iter()
        .map(|seen| (seen.target, seen.authorization))
        .collect();
    assert_eq!(
        seen,
        [
            ("/model.bin".into(), Some("Bearer secret".into())),
            ("/storage".into(), None)
        ]
    );
}

#[tokio::test]
async fn a_configured_proxy_carries_everything() {
    let file = noise(10_000);
    let served = file.clone();
    let proxy = Server::start(move |seen| Reply::file(seen, &served)).await;
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings();
    settings.http.proxy = Some(proxy.url("/"));
    // Nobody listens at this address: only the proxy can have answered.
    let plan = FetchPlan::new("model", dir.path().join("model.bin")).url("http://127.0.0.1:9/through".parse().unwrap());
    Downloader::new(settings)
        .unwrap()
        .fetch(&plan, &Silent, &Control::default())
        .await
        .unwrap();
    assert_eq!(proxy.seen()[0].target, "http://127.0.0.1:9/through");
}

#[tokio::test]
async fn progress_is_machine_readable_line_by_line() {
    let file = noise(10_000);
    let served = file.clone();
    let server = Server::start(move |seen| Reply::file(seen, &served)).await;
    let dir = tempfile::tempdir().unwrap();
    let out = tempfile::NamedTempFile::new().unwrap();
    let lines = JsonLines::new(out.reopen().unwrap());
    let downloader = Downloader::new(settings()).unwrap();
    downloader
        .fetch_all(&[plan(&dir, &server, &file)], &lines, &Control::default())
        .await;
    let text = std::fs::read_to_string(out.path()).unwrap();
    let events: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.first().unwrap()["event"], "planned");
    let last = events.last().unwrap();
    assert_eq!(
        (last["event"].as_str(), last["bytes"].as_u64()),
        (Some("done"), Some(10_000))
    );
}
