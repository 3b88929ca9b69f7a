//! The smallest HTTP client: one request a connection, in plain sight.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A whole answer.
#[derive(Debug)]
pub struct Told {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Told {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// Sends `method target` with `headers` (each ending in CRLF) and `body`, and reads until the other side closes.
pub async fn raw(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &str,
    body: &[u8],
) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    let head = format!("{method} {target} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer)
}

/// The same, taken apart.
pub async fn send(address: SocketAddr, method: &str, target: &str, headers: &str, body: &[u8]) -> Told {
    let answer = raw(address, method, target, headers, body).await.expect("an answer");
    let split = answer
        .windows(4)
        .position(|bytes| bytes == b"\r\n\r\n")
        .expect("an end of the head");
    let head = String::from_utf8_lossy(&answer[..split]).into_owned();
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|text| text.parse().ok())
        .expect("a status");
    Told {
        status,
        head,
        body: answer[split + 4..].to_vec(),
    }
}

/// A call of the API with a key and a JSON body.
pub async fn api(address: SocketAddr, method: &str, path: &str, key: &str, body: &serde_json::Value) -> Told {
    let body = body.to_string();
    let headers = format!(
        "apikey: {key}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n",
        body.len()
    );
    send(address, method, &format!("/api/v2/{path}"), &headers, body.as_bytes()).await
}
