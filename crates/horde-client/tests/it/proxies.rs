//! Which proxies the transport uses: the configured one, never those of the environment.

use std::time::Duration;

use horde_client::http::{HttpSettings, HttpTransport};
use horde_client::transport::{RequestClass, Transport};

use crate::sockets::{Server, get, say, transport};

/// Set for the child of the next test: where to send the request.
const CHILD: &str = "HORDE_CLIENT_TEST_TARGET";

#[tokio::test]
async fn f022_proxies_of_the_environment_are_not_used() {
    if let Ok(target) = std::env::var(CHILD) {
        let target = target.parse().expect("an address");
        transport()
            .send(get(target, RequestClass::Api, Duration::from_secs(10), 1000))
            .await
            .expect("an answer");
        return;
    }
    let proxy = Server::start(|stream| say(stream, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned())).await;
    let target = Server::start(|stream| say(stream, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned())).await;
    // A process of its own, because an environment belongs to a whole process.
    let mut child = tokio::process::Command::new(std::env::current_exe().expect("this program"));
    child.args(["--exact", "proxies::f022_proxies_of_the_environment_are_not_used"]);
    for name in [
        "http_proxy",
        "HTTP_PROXY",
        "https_proxy",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ] {
        child.env(name, proxy.url("/").as_str());
    }
    child.env_remove("no_proxy").env_remove("NO_PROXY");
    let outcome = child
        .env(CHILD, target.url("/").as_str())
        .output()
        .await
        .expect("the child runs");
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stdout));
    assert_eq!((target.hits(), proxy.hits()), (1, 0));
}

#[tokio::test]
async fn a_proxy_that_was_configured_is_used_for_the_api_and_not_for_strangers() {
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let proxy = Server::start(move |stream| say(stream, answer.to_owned())).await;
    let target = Server::start(move |stream| say(stream, answer.to_owned())).await;
    let transport = HttpTransport::new(HttpSettings {
        proxy: Some(proxy.url("/")),
        allow_loopback: true,
        user_agent: "horde-workers-test".to_owned(),
    })
    .expect("a transport");
    for (class, hits) in [(RequestClass::Api, (0, 1)), (RequestClass::Stranger, (1, 1))] {
        transport
            .send(get(target.url("/"), class, Duration::from_secs(10), 1000))
            .await
            .expect("an answer");
        assert_eq!((target.hits(), proxy.hits()), hits, "{class:?}");
    }
}
