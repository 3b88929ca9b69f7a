//! Downloads that must not end well: each has a clear outcome and leaves nothing under the final name.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use model_store::fetch::{Control, Downloader, FetchError, FetchPlan, FetchSettings, Silent, SourceFailure};

use crate::fetch_good::{assert_only_the_file_is_there, plan, settings};
use crate::server::{Reply, Server, noise};

async fn outcome(plan: &FetchPlan, settings: FetchSettings) -> FetchError {
    let outcome = Downloader::new(settings)
        .unwrap()
        .fetch(plan, &Silent, &Control::default())
        .await;
    assert!(!plan.dest.exists(), "a bad file stands under the final name");
    outcome.expect_err("this download must fail")
}

async fn failure(plan: &FetchPlan) -> SourceFailure {
    match outcome(plan, settings()).await {
        FetchError::AllSourcesFailed { mut tried, .. } => tried.pop().expect("one source was tried").1,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn wrong_bytes_are_refused_and_nothing_is_left() {
    let file = noise(2_000_000);
    let mut served = file.clone();
    served[1_234_567] ^= 1;
    let server = Server::start(move |seen| Reply::file(seen, &served)).await;
    let dir = tempfile::tempdir().unwrap();
    let failure = failure(&plan(&dir, &server, &file)).await;
    assert!(matches!(failure, SourceFailure::WrongHash { .. }), "{failure}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_mirror_takes_over_when_the_first_source_has_other_bytes() {
    let file = noise(2_000_000);
    let served = file.clone();
    let server = Server::start(move |seen| match seen.target.as_str() {
        "/mirror" => Reply::file(seen, &served),
        _ => Reply::file(seen, &noise(2_000_001)[1..]),
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(&dir, &server, &file).url(server.url("/mirror"));
    Downloader::new(settings())
        .unwrap()
        .fetch(&plan, &Silent, &Control::default())
        .await
        .unwrap();
    assert_eq!(std::fs::read(&plan.dest).unwrap(), file);
    assert_only_the_file_is_there(&dir);
}

#[tokio::test]
async fn a_host_out_of_reach_is_left_for_the_mirror_soon() {
    let file = noise(100_000);
    let served = file.clone();
    let server = Server::start(move |seen| Reply::file(seen, &served)).await;
    let dir = tempfile::tempdir().unwrap();
    let mut plan = plan(&dir, &server, &file);
    plan.sources.insert(
        0,
        model_store::fetch::Source::Url {
            url: "http://127.0.0.1:9/".parse().unwrap(),
        },
    );
    Downloader::new(settings())
        .unwrap()
        .fetch(&plan, &Silent, &Control::default())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_web_page_instead_of_the_file_is_named_as_such() {
    let file = noise(2_000_000);
    let server =
        Server::start(|_| Reply::new(200, "<html>log in</html>").with("content-type", "text/html; charset=utf-8"))
            .await;
    let dir = tempfile::tempdir().unwrap();
    let mut plan = plan(&dir, &server, &file);
    let by_type = failure(&plan).await;
    assert!(matches!(by_type, SourceFailure::NotTheFile { .. }), "{by_type}");
    // The same page labelled as a stream of bytes, and no size known.
    let server =
        Server::start(|_| Reply::new(200, "\n<!DOCTYPE html>").with("content-type", "application/octet-stream")).await;
    plan = FetchPlan::new("model", dir.path().join("model.bin")).url(server.url("/"));
    let by_content = failure(&plan).await;
    assert!(matches!(by_content, SourceFailure::NotTheFile { .. }), "{by_content}");
}

#[tokio::test]
async fn twenty_gigabytes_where_two_hundred_megabytes_were_announced_are_refused_unread() {
    let server = Server::start(|_| Reply {
        announce: Some(20 << 30),
        ..Reply::new(200, vec![0; 1 << 20])
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let plan = FetchPlan {
        size_bytes: Some(200 << 20),
        ..FetchPlan::new("model", dir.path().join("model.bin"))
    }
    .url(server.url("/"));
    let failure = failure(&plan).await;
    assert_eq!(
        failure,
        SourceFailure::WrongLength {
            announced: 20 << 30,
            expected: 200 << 20
        }
    );
}

#[tokio::test]
async fn an_endless_body_ends_at_the_expected_size_or_the_limit() {
    let server = Server::start(|_| Reply {
        endless: true,
        ..Reply::new(200, noise(1000))
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let mut plan = FetchPlan {
        max_bytes: 3 << 20,
        ..FetchPlan::new("model", dir.path().join("model.bin"))
    }
    .url(server.url("/"));
    assert_eq!(failure(&plan).await, SourceFailure::TooLong { limit: 3 << 20 });
    plan.size_bytes = Some(500_000);
    assert_eq!(failure(&plan).await, SourceFailure::TooLong { limit: 500_000 });
}

#[tokio::test]
async fn a_body_that_is_shorter_than_the_reference_says_is_refused() {
    let file = noise(100_000);
    let served = file[..90_000].to_vec();
    let server = Server::start(move |seen| Reply::file(seen, &served)).await;
    let dir = tempfile::tempdir().unwrap();
    let failure = failure(&plan(&dir, &server, &file)).await;
    assert_eq!(
        failure,
        SourceFailure::WrongLength {
            announced: 90_000,
            expected: 100_000
        }
    );
}

#[tokio::test]
async fn an_answer_for_another_range_is_refused() {
    let file = noise(3_000_000);
    let server = Server::start(|_| Reply::new(206, vec![0; 10]).with("content-range", "bytes 5-14/3000000")).await;
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(failure(&plan(&dir, &server, &file)).await, SourceFailure::WrongRange);
}

#[tokio::test]
async fn a_file_the_hub_announces_with_another_sum_is_refused_unread() {
    let file = noise(3_000_000);
    let server = Server::start(|seen| match seen.target.as_str() {
        "/model.bin" => Reply::redirect("/storage").with("x-linked-etag", format!("\"{}\"", "ab".repeat(32))),
        _ => Reply::file(seen, &noise(3_000_000)),
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let failure = failure(&plan(&dir, &server, &file)).await;
    assert!(matches!(failure, SourceFailure::WrongHash { .. }), "{failure}");
    assert!(server.seen().len() <= 2);
}

#[tokio::test]
async fn a_missing_file_and_a_closed_door_are_final_and_carry_a_hint() {
    for (status, word) in [(404, "moved or removed"), (401, "token"), (403, "token")] {
        let server = Server::start(move |_| Reply::new(status, "no")).await;
        let dir = tempfile::tempdir().unwrap();
        let error = outcome(&plan(&dir, &server, b"x"), settings()).await;
        assert!(
            error.hint().is_some_and(|hint| hint.contains(word)),
            "{error}: {:?}",
            error.hint()
        );
        assert!(!error.is_transient());
        assert_eq!(server.seen().len(), 1, "asked once, not again and again");
    }
}

#[tokio::test]
async fn a_server_that_breaks_off_without_a_byte_is_given_up_after_the_agreed_failures() {
    let server = Server::start(|_| Reply {
        cut: Some(0),
        ..Reply::new(200, vec![1; 100])
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let error = outcome(&plan(&dir, &server, &[1; 100]), settings()).await;
    assert!(error.is_transient(), "{error}");
    assert_eq!(server.seen().len(), 6);
}

#[tokio::test]
async fn redirects_into_a_loop_or_out_of_http_are_refused() {
    let server = Server::start(|seen| match seen.target.as_str() {
        "/loop" => Reply::redirect("/loop"),
        _ => Reply::redirect("ftp://127.0.0.1/file"),
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let at = |path: &str| FetchPlan::new("model", dir.path().join("model.bin")).url(server.url(path));
    let looped = failure(&at("/loop")).await;
    assert!(matches!(looped, SourceFailure::Redirect { .. }), "{looped}");
    let left = failure(&at("/ftp")).await;
    assert!(matches!(left, SourceFailure::Address { .. }), "{left}");
}

#[tokio::test]
async fn a_private_address_is_not_asked_unless_the_owner_allows_it() {
    let server = Server::start(|seen| Reply::file(seen, b"secret of the router")).await;
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings();
    settings.http.private_network = false;
    let mut plan = FetchPlan::new("model", dir.path().join("model.bin"));
    plan = plan.url(format!("https://127.0.0.1:{}/", server.port).parse().unwrap());
    plan = plan.url(format!("https://localhost:{}/", server.port).parse().unwrap());
    plan = plan.url(server.url("/"));
    let error = outcome(&plan, settings).await;
    let FetchError::AllSourcesFailed { tried, .. } = error else {
        panic!("{error:?}")
    };
    assert!(
        tried
            .iter()
            .all(|(_, failure)| matches!(failure, SourceFailure::Address { .. })),
        "{tried:?}"
    );
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn the_disk_floor_is_checked_before_anything_is_asked() {
    let file = noise(3_000_000);
    let server = Server::start(|_| Reply::new(500, "")).await;
    let dir = tempfile::tempdir().unwrap();
    let settings = FetchSettings {
        floor_bytes: 1_000_000,
        free_space: Arc::new(|_| Ok(3_500_000)),
        ..settings()
    };
    let error = outcome(&plan(&dir, &server, &file), settings).await;
    assert!(
        matches!(
            error,
            FetchError::DiskFloor {
                needed_bytes: 3_000_000,
                ..
            }
        ),
        "{error}"
    );
    assert!(server.seen().is_empty());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_disk_that_fills_up_meanwhile_stops_the_download_and_room_lets_it_go_on() {
    let file = noise(4_000_000);
    let served = file.clone();
    let server = Server::start(move |seen| Reply {
        drip: Duration::from_millis(30),
        ..Reply::file(seen, &served)
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(&dir, &server, &file);
    let free = Arc::new(AtomicU64::new(1 << 30));
    let shown = free.clone();
    let settings = FetchSettings {
        floor_bytes: 1 << 20,
        connections_per_file: 1,
        free_space: Arc::new(move |_| Ok(shown.load(Ordering::SeqCst))),
        ..settings()
    };
    let (error, ()) = tokio::join!(outcome(&plan, settings.clone()), async {
        while server.sent() < 1_200_000 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        free.store(0, Ordering::SeqCst);
    });
    assert!(matches!(error, FetchError::DiskFloor { .. }), "{error}");
    free.store(1 << 30, Ordering::SeqCst);
    let fetched = Downloader::new(settings)
        .unwrap()
        .fetch(&plan, &Silent, &Control::default())
        .await
        .unwrap();
    assert!(fetched.resumed_bytes > 0);
    assert_eq!(std::fs::read(&plan.dest).unwrap(), file);
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_to_is_named() {
    let server = Server::start(|seen| Reply::file(seen, b"x")).await;
    let dir = tempfile::tempdir().unwrap();
    // A file where a directory is wanted: refused for every user, the administrator included.
    std::fs::write(dir.path().join("models"), b"").unwrap();
    let plan = FetchPlan::new("model", dir.path().join("models/model.bin")).url(server.url("/"));
    let error = outcome(&plan, settings()).await;
    assert!(
        matches!(error, FetchError::NotWritable { .. } | FetchError::Io { .. }),
        "{error:?}"
    );
    // A file system that takes no new files.
    let plan = FetchPlan::new("model", "/sys/kernel/model.bin").url(server.url("/"));
    let error = outcome(&plan, settings()).await;
    assert!(matches!(error, FetchError::NotWritable { .. }), "{error:?}");
    assert!(error.hint().is_some());
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn the_right_bytes_of_a_broken_format_are_refused() {
    let server = Server::start(|seen| Reply::file(seen, &[0xff; 4096])).await;
    let dir = tempfile::tempdir().unwrap();
    for name in ["model.safetensors", "model.gguf"] {
        let plan = FetchPlan::new("model", dir.path().join(name)).url(server.url("/"));
        let failure = failure(&plan).await;
        assert!(matches!(failure, SourceFailure::Malformed { .. }), "{failure}");
    }
}

#[tokio::test]
async fn a_journal_that_lies_costs_a_new_start_and_nothing_else() {
    let file = noise(2_000_000);
    let served = file.clone();
    let server = Server::start(move |seen| Reply::file(seen, &served)).await;
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(&dir, &server, &file);
    for journal in [
        "{",
        "[]",
        r#"{"total_bytes":9,"boot":"","done":[[0,99]],"synced":[[0,1]]}"#,
    ] {
        std::fs::write(dir.path().join("model.bin.part"), vec![7; 2_000_000]).unwrap();
        std::fs::write(dir.path().join("model.bin.part.json"), journal).unwrap();
        Downloader::new(settings())
            .unwrap()
            .fetch(&plan, &Silent, &Control::default())
            .await
            .unwrap();
        assert_eq!(std::fs::read(&plan.dest).unwrap(), file);
        std::fs::remove_file(&plan.dest).unwrap();
    }
}
