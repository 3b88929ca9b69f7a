//! The real transport against sockets on loopback: deadlines, caps, redirects, and a key that goes nowhere else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use horde_client::SignedUrl;
use horde_client::client::DownloadLimits;
use horde_client::http::{HttpSettings, HttpTransport};
use horde_client::transport::{RequestClass, Transferred, Transport, TransportError, Watch};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::sockets::{KEY, Server, client, get, say, transport};

#[tokio::test]
async fn f009_a_slow_drip_ends_at_the_total_deadline() {
    let server = Server::start(|mut stream| async move {
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
            .await
            .ok();
        while stream.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let started = Instant::now();
    let outcome = transport()
        .send(get(
            server.url("/"),
            RequestClass::Api,
            Duration::from_millis(400),
            1 << 20,
        ))
        .await;
    assert!(
        matches!(outcome, Err(TransportError::TimedOut { .. })),
        "{:?}",
        outcome.err()
    );
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn f018_an_endless_body_ends_at_its_cap() {
    let server = Server::start(|mut stream| async move {
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            .await
            .ok();
        let chunk = format!("1000\r\n{}\r\n", "x".repeat(0x1000));
        while stream.write_all(chunk.as_bytes()).await.is_ok() {}
    })
    .await;
    let outcome = transport()
        .send(get(
            server.url("/"),
            RequestClass::Api,
            Duration::from_secs(20),
            1 << 20,
        ))
        .await;
    assert!(matches!(
        outcome,
        Err(TransportError::TooLarge { limit: 1_048_576, .. })
    ));
}

#[tokio::test]
async fn f020_a_redirect_of_the_api_is_not_followed_and_the_key_stays() {
    let other = Server::start(|stream| say(stream, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}".to_owned())).await;
    for status in [301, 302, 307, 308] {
        let target = other.url("/steal");
        let server = Server::start(move |stream| {
            say(
                stream,
                format!("HTTP/1.1 {status} Moved\r\nlocation: {target}\r\ncontent-length: 0\r\n\r\n"),
            )
        })
        .await;
        assert!(client(&server).find_user().await.is_err());
        assert_eq!(server.hits(), 1);
    }
    assert_eq!(other.hits(), 0);
}

#[tokio::test]
async fn f021_a_source_is_fetched_over_at_most_three_hops_and_without_the_key() {
    let server = Server::start(|stream| {
        say(
            stream,
            "HTTP/1.1 302 Moved\r\nlocation: /again\r\ncontent-length: 0\r\n\r\n".to_owned(),
        )
    })
    .await;
    let outcome = transport()
        .send(get(
            server.url("/"),
            RequestClass::Stranger,
            Duration::from_secs(10),
            1 << 20,
        ))
        .await;
    assert!(matches!(outcome, Err(TransportError::Refused { .. })));
    assert_eq!(server.hits(), 4);
    assert!(!String::from_utf8_lossy(&server.asked.lock().await).contains(KEY));
}

#[tokio::test]
async fn f110_a_redirect_to_a_private_address_is_refused_before_it_connects() {
    let server = Server::start(|stream| {
        say(
            stream,
            "HTTP/1.1 302 Moved\r\nlocation: http://169.254.169.254/latest\r\ncontent-length: 0\r\n\r\n".to_owned(),
        )
    })
    .await;
    let outcome = transport()
        .send(get(
            server.url("/"),
            RequestClass::Stranger,
            Duration::from_secs(10),
            1 << 20,
        ))
        .await;
    assert!(matches!(outcome, Err(TransportError::Refused { .. })));
}

#[tokio::test]
async fn without_leave_nothing_goes_to_loopback_or_over_plain_http() {
    let server = Server::start(|stream| say(stream, String::new())).await;
    let strict = HttpTransport::new(HttpSettings::default()).expect("a transport");
    for class in [RequestClass::Api, RequestClass::ObjectStore, RequestClass::Stranger] {
        let outcome = strict
            .send(get(server.url("/"), class, Duration::from_secs(5), 1000))
            .await;
        assert!(matches!(outcome, Err(TransportError::Refused { .. })), "{class:?}");
    }
    assert_eq!(server.hits(), 0);
}

#[tokio::test]
async fn f006_f007_a_reset_tells_whether_the_server_may_have_acted() {
    let server = Server::start(|stream| async move {
        stream.set_zero_linger().ok();
        drop(stream);
    })
    .await;
    let broken = transport()
        .send(get(server.url("/"), RequestClass::Api, Duration::from_secs(5), 1000))
        .await;
    assert!(
        matches!(broken, Err(TransportError::Broken { .. })),
        "{:?}",
        broken.err()
    );
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = closed.local_addr().expect("an address");
    drop(closed);
    let url = format!("http://{address}/").parse().expect("an address");
    let unreachable = transport()
        .send(get(url, RequestClass::Api, Duration::from_secs(5), 1000))
        .await;
    assert!(matches!(unreachable, Err(TransportError::Unreachable { .. })));
}

#[tokio::test]
async fn uploads_name_their_length_carry_no_key_and_keep_the_signature_as_it_is() {
    let server = Server::start(|mut stream| async move {
        let mut body = [0_u8; 5];
        stream.read_exact(&mut body).await.ok();
        say(stream, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned()).await;
    })
    .await;
    let target = SignedUrl::new(server.url("/bucket/a.webp?X-Amz-Credential=a%2Fb&X-Amz-Signature=0123%3D"));
    client(&server)
        .upload(&target, Bytes::from_static(b"12345"))
        .await
        .expect("uploaded");
    let asked = String::from_utf8_lossy(&server.asked.lock().await).to_lowercase();
    assert!(
        asked.starts_with("put /bucket/a.webp?x-amz-credential=a%2fb&x-amz-signature=0123%3d http/1.1"),
        "{asked}"
    );
    assert!(
        asked.contains("content-length: 5")
            && !asked.contains("transfer-encoding")
            && !asked.contains("content-type")
            && !asked.contains("apikey"),
        "{asked}"
    );
}

#[tokio::test]
async fn secrets_are_in_no_error_and_no_debug_text() {
    let server = Server::start(|stream| async move { drop(stream) }).await;
    let target = SignedUrl::new(server.url("/a?X-Amz-Signature=topsecret"));
    let client = client(&server);
    let settings = HttpSettings {
        proxy: Some("http://user:topsecret@proxy.invalid:3128".parse().expect("an address")),
        ..HttpSettings::default()
    };
    let texts = [
        client
            .upload(&target, Bytes::new())
            .await
            .expect_err("broken")
            .to_string(),
        format!(
            "{:?}",
            client
                .download(&target, RequestClass::Stranger, DownloadLimits::default())
                .await
                .expect_err("broken")
        ),
        client.find_user().await.expect_err("broken").to_string(),
        format!("{:?} {target:?} {target}", client.config()),
        format!("{settings:?}"),
        format!(
            "{:?}",
            get(target.expose().clone(), RequestClass::Api, Duration::from_secs(1), 1)
        ),
    ];
    for text in texts {
        assert!(!text.contains("topsecret") && !text.contains(KEY), "{text}");
    }
}

#[tokio::test]
async fn f004_a_server_without_tls_gets_no_byte_of_the_key() {
    let seen = Arc::new(tokio::sync::Mutex::new(Vec::new()));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let kept = Arc::clone(&seen);
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut bytes = vec![0_u8; 4096];
        let n_read = stream.read(&mut bytes).await.unwrap_or(0);
        kept.lock().await.extend_from_slice(&bytes[..n_read]);
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
            .await
            .ok();
    });
    let url = format!("https://{address}/api").parse().expect("an address");
    let outcome = transport()
        .send(get(url, RequestClass::Api, Duration::from_secs(10), 1000))
        .await;
    assert!(
        matches!(outcome, Err(TransportError::Unreachable { .. })),
        "{:?}",
        outcome.err()
    );
    server.await.expect("the server ends");
    let seen = seen.lock().await;
    assert!(!seen.is_empty() && !seen.windows(KEY.len()).any(|window| window == KEY.as_bytes()));
}

#[tokio::test]
async fn f019_a_packed_body_is_neither_asked_for_nor_unpacked() {
    let server = Server::start(|stream| {
        say(
            stream,
            "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 6\r\n\r\npacked".to_owned(),
        )
    })
    .await;
    let response = transport()
        .send(get(
            server.url("/"),
            RequestClass::Stranger,
            Duration::from_secs(5),
            1000,
        ))
        .await
        .expect("an answer");
    assert_eq!(&response.body[..], b"packed");
    let asked = String::from_utf8_lossy(&server.asked.lock().await).to_lowercase();
    assert!(!asked.contains("accept-encoding"), "{asked}");
}

#[tokio::test]
async fn modes_are_asked_without_the_key() {
    let body = r#"{"maintenance_mode": false, "invite_only_mode": true}"#;
    let length = body.len();
    let server = Server::start(move |stream| {
        say(
            stream,
            format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}"),
        )
    })
    .await;
    let modes = client(&server).modes().await.expect("modes");
    assert_eq!(
        (modes.maintenance_mode, modes.invite_only_mode),
        (Some(false), Some(true))
    );
    let asked = String::from_utf8_lossy(&server.asked.lock().await).to_lowercase();
    assert!(
        asked.starts_with("get /api/v2/status/modes") && !asked.contains("apikey"),
        "{asked}"
    );
}

#[tokio::test]
async fn a_watched_transfer_tells_its_bytes_to_the_last_one() {
    const N_BYTES: usize = 200_000;
    let server = Server::start(|mut stream| async move {
        let mut body = vec![0_u8; N_BYTES];
        if stream.read_exact(&mut body).await.is_ok() && body.iter().all(|byte| *byte == 7) {
            say(stream, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned()).await;
        }
    })
    .await;
    let told = Arc::new(std::sync::Mutex::new(Vec::new()));
    let keep = Arc::clone(&told);
    let watch: Watch = Arc::new(move |moved: Transferred| keep.lock().expect("no panic before").push(moved));
    let end = Transferred {
        done_bytes: N_BYTES as u64,
        total_bytes: Some(N_BYTES as u64),
    };
    client(&server)
        .upload_watched(
            &SignedUrl::new(server.url("/a")),
            Bytes::from(vec![7_u8; N_BYTES]),
            Arc::clone(&watch),
        )
        .await
        .expect("uploaded");
    let asked = String::from_utf8_lossy(&server.asked.lock().await).to_lowercase();
    assert!(
        asked.contains("content-length: 200000") && !asked.contains("transfer-encoding"),
        "{asked}"
    );
    let uploads = std::mem::take(&mut *told.lock().expect("no panic before"));
    assert!(uploads.len() > 1 && uploads.is_sorted_by_key(|moved| moved.done_bytes));
    assert_eq!(uploads.last(), Some(&end));

    let server = Server::start(|stream| {
        let body = "y".repeat(N_BYTES);
        say(
            stream,
            format!("HTTP/1.1 200 OK\r\ncontent-length: {N_BYTES}\r\n\r\n{body}"),
        )
    })
    .await;
    let source = SignedUrl::new(server.url("/b"));
    let bytes = client(&server)
        .download_watched(&source, RequestClass::Stranger, DownloadLimits::default(), watch)
        .await
        .expect("downloaded");
    assert_eq!(bytes.len(), N_BYTES);
    assert_eq!(told.lock().expect("no panic before").last(), Some(&end));
}
