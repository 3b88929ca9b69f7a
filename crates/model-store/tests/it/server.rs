//! A web server on loopback that does what it is told, good or bad.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use url::Url;

/// One request as it came.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub target: String,
    pub host: String,
    pub range: Option<(usize, usize)>,
    pub authorization: Option<String>,
    pub if_none_match: Option<String>,
}

/// What to answer.
#[derive(Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// Announced length, where it is another than the body's.
    pub announce: Option<u64>,
    /// Close after so many bytes.
    pub cut: Option<usize>,
    /// After the body, zeros for ever (chunked).
    pub endless: bool,
    /// Wait before each 64 KiB.
    pub drip: Duration,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            announce: None,
            cut: None,
            endless: false,
            drip: Duration::ZERO,
        }
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub fn redirect(to: impl Into<String>) -> Self {
        Self::new(302, "").with("location", to)
    }

    /// A well-behaved answer to a request for `file`.
    pub fn file(seen: &Seen, file: &[u8]) -> Self {
        match seen.range {
            Some((start, end)) if start < file.len() => {
                let end = end.min(file.len());
                Self::new(206, &file[start..end])
                    .with("content-range", format!("bytes {start}-{}/{}", end - 1, file.len()))
            }
            Some(_) => Self::new(416, ""),
            None => Self::new(200, file),
        }
    }
}

/// The running server; stops with the test's runtime.
pub struct Server {
    pub port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
    sent: Arc<AtomicU64>,
}

impl Server {
    pub async fn start(answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (seen, sent) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicU64::new(0)));
        let answer = Arc::new(answer);
        let (log, count) = (seen.clone(), sent.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, log, count) = (answer.clone(), log.clone(), count.clone());
                tokio::spawn(async move {
                    let _ = serve(stream, answer.as_ref(), &log, &count).await;
                });
            }
        });
        Self { port, seen, sent }
    }

    pub fn url(&self, path: &str) -> Url {
        Url::parse(&format!("http://127.0.0.1:{}{path}", self.port)).unwrap()
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Body bytes sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }
}

async fn serve(
    stream: TcpStream,
    answer: &(dyn Fn(&Seen) -> Reply + Send + Sync),
    log: &Mutex<Vec<Seen>>,
    count: &AtomicU64,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    loop {
        let mut seen = Seen::default();
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        seen.target = line.split(' ').nth(1).unwrap_or("").to_owned();
        loop {
            line.clear();
            stream.read_line(&mut line).await?;
            let Some((name, value)) = line.trim().split_once(':') else {
                break;
            };
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "host" => seen.host = value.to_owned(),
                "if-none-match" => seen.if_none_match = Some(value.to_owned()),
                "authorization" => seen.authorization = Some(value.to_owned()),
                "range" => {
                    let (start, last) = value.trim_start_matches("bytes=").split_once('-').unwrap();
                    seen.range = Some((start.parse().unwrap(), last.parse::<usize>().unwrap() + 1));
                }
                _ => {}
            }
        }
        log.lock().unwrap().push(seen.clone());
        let reply = answer(&seen);
        let mut head = format!("HTTP/1.1 {} X\r\n", reply.status);
        for (name, value) in &reply.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if reply.endless {
            head.push_str("transfer-encoding: chunked\r\n\r\n");
        } else {
            head.push_str(&format!(
                "content-length: {}\r\n\r\n",
                reply.announce.unwrap_or(reply.body.len() as u64)
            ));
        }
        stream.write_all(head.as_bytes()).await?;
        let body = &reply.body[..reply.cut.unwrap_or(usize::MAX).min(reply.body.len())];
        for part in body.chunks(64 << 10) {
            if !reply.drip.is_zero() {
                tokio::time::sleep(reply.drip).await;
            }
            if reply.endless {
                stream.write_all(format!("{:x}\r\n", part.len()).as_bytes()).await?;
            }
            stream.write_all(part).await?;
            count.fetch_add(part.len() as u64, Ordering::SeqCst);
            if reply.endless {
                stream.write_all(b"\r\n").await?;
            }
        }
        stream.flush().await?;
        if reply.endless {
            loop {
                stream.write_all(b"10000\r\n").await?;
                stream.write_all(&[0u8; 0x10000]).await?;
                stream.write_all(b"\r\n").await?;
                count.fetch_add(0x10000, Ordering::SeqCst);
            }
        }
        if reply.cut.is_some() || reply.announce.is_some() {
            return Ok(());
        }
    }
}

/// Bytes that are no format in particular, the same for the same length.
pub fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    (0..bytes)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}
