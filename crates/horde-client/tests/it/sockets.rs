//! Servers on loopback that answer as a test wants, and the real transport to them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use horde_client::client::ClientConfig;
use horde_client::http::{HttpSettings, HttpTransport};
use horde_client::transport::{Request, RequestClass};
use horde_client::{ApiKey, Client};
use http::{HeaderMap, Method};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub const KEY: &str = "canary-key-0123456789";

/// Serves each connection with `answer` after its head has been read; counts connections and keeps what was asked.
pub struct Server {
    address: std::net::SocketAddr,
    hits: Arc<AtomicUsize>,
    pub asked: Arc<tokio::sync::Mutex<Vec<u8>>>,
}

impl Server {
    pub async fn start<F, Fut>(answer: F) -> Self
    where
        F: Fn(TcpStream) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (hits, asked) = (Arc::new(AtomicUsize::new(0)), Arc::default());
        let server = Self {
            address,
            hits: Arc::clone(&hits),
            asked: Arc::clone(&asked),
        };
        let answer = Arc::new(answer);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                hits.fetch_add(1, Ordering::SeqCst);
                let (answer, asked) = (Arc::clone(&answer), Arc::clone(&asked));
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    let mut byte = [0_u8; 1];
                    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).await.is_ok_and(|n| n == 1) {
                        head.push(byte[0]);
                    }
                    asked.lock().await.extend(&head);
                    answer(stream).await;
                });
            }
        });
        server
    }

    pub fn url(&self, path: &str) -> url::Url {
        format!("http://{}{path}", self.address).parse().expect("an address")
    }

    pub fn hits(&self) -> usize {
        self.hits.load(Ordering::SeqCst)
    }
}

pub fn transport() -> HttpTransport {
    HttpTransport::new(HttpSettings {
        allow_loopback: true,
        user_agent: "horde-workers-test".to_owned(),
        proxy: None,
    })
    .expect("a transport")
}

pub fn client(server: &Server) -> Client {
    let config = ClientConfig {
        base_url: server.url("/api"),
        api_key: ApiKey::new(KEY),
        client_agent: "test:1:x".to_owned(),
    };
    Client::new(Arc::new(transport()), config)
}

pub fn get(url: url::Url, class: RequestClass, deadline: Duration, max_body_bytes: usize) -> Request {
    let mut headers = HeaderMap::new();
    headers.insert("apikey", KEY.parse().expect("a value"));
    Request {
        method: Method::GET,
        url,
        headers,
        body: Bytes::new(),
        class,
        deadline,
        max_body_bytes,
    }
}

pub async fn say(mut stream: TcpStream, text: String) {
    stream.write_all(text.as_bytes()).await.ok();
    stream.shutdown().await.ok();
}
