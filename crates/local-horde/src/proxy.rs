//! A TCP proxy that spoils connections on purpose: between a worker and a Horde, or any two ends on loopback.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What happens to a connection.
#[derive(Clone, Debug, PartialEq)]
pub enum Spoil {
    /// Passed on untouched.
    Nothing,
    /// Held back this long before the first byte of the answer.
    Delay(Duration),
    /// The answer comes one byte at a time, each after this long.
    Drip(Duration),
    /// The answer ends with a reset after this many bytes.
    ResetAnswerAt(u64),
    /// The request is passed on up to this many bytes, then both sides are reset.
    ResetRequestAt(u64),
    /// Taken and never answered.
    BlackHole,
    /// The request is passed on whole; the answer side is closed without a byte.
    HalfClose,
    /// Answered by the proxy with this status and an HTML page.
    Answer(u16),
}

/// A running proxy; it ends when this is dropped.
pub struct FaultProxy {
    /// Where it listens.
    pub address: SocketAddr,
    plan: Arc<Mutex<Spoil>>,
    connections: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl FaultProxy {
    /// Listens on a free loopback port and passes connections on to `target`.
    ///
    /// # Errors
    /// No port could be had.
    pub async fn start(target: SocketAddr, spoil: Spoil) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let plan = Arc::new(Mutex::new(spoil));
        let connections = Arc::new(AtomicU64::new(0));
        let (shared, counter) = (Arc::clone(&plan), Arc::clone(&connections));
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::Relaxed);
                let spoil = shared.lock().unwrap_or_else(PoisonError::into_inner).clone();
                tokio::spawn(async move {
                    // Either side may break at any time; that is the point.
                    carry(client, target, spoil).await.ok();
                });
            }
        });
        Ok(Self {
            address,
            plan,
            connections,
            task,
        })
    }

    /// Changes what happens to connections from now on.
    pub fn set(&self, spoil: Spoil) {
        *self.plan.lock().unwrap_or_else(PoisonError::into_inner) = spoil;
    }

    /// Connections taken so far.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(mut client: TcpStream, target: SocketAddr, spoil: Spoil) -> std::io::Result<()> {
    match spoil {
        Spoil::BlackHole => {
            let mut sink = [0_u8; 4096];
            while client.read(&mut sink).await? > 0 {}
            return Ok(());
        }
        Spoil::Answer(status) => {
            let mut head = [0_u8; 65_536];
            let _ = client.read(&mut head).await?;
            let page = format!("<html><h1>{status}</h1></html>");
            let answer = format!(
                "HTTP/1.1 {status} Spoiled\r\ncontent-type: text/html\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{page}",
                page.len()
            );
            client.write_all(answer.as_bytes()).await?;
            return client.shutdown().await;
        }
        _ => {}
    }
    let mut server = TcpStream::connect(target).await?;
    if pass(&mut client, &mut server, &spoil).await? == End::Reset {
        // Closing with unsent bytes and no linger sends RST instead of FIN.
        client.set_zero_linger()?;
        server.set_zero_linger()?;
    }
    Ok(())
}

/// How a spoiled connection is to be closed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// As both sides wished.
    Orderly,
    /// With a reset to both sides.
    Reset,
}

/// Passes bytes both ways. Borrows the streams: owned halves would say FIN when they are dropped, before any reset.
async fn pass(client: &mut TcpStream, server: &mut TcpStream, spoil: &Spoil) -> std::io::Result<End> {
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let request_limit = if let Spoil::ResetRequestAt(limit) = spoil {
        *limit
    } else {
        u64::MAX
    };
    let request = async {
        let mut passed = 0_u64;
        let mut buffer = [0_u8; 16_384];
        loop {
            let n = from_client.read(&mut buffer).await?;
            let room = usize::try_from(request_limit - passed).unwrap_or(usize::MAX).min(n);
            to_server.write_all(&buffer[..room]).await?;
            passed += room as u64;
            if n == 0 {
                return to_server.shutdown().await.map(|()| End::Orderly);
            }
            if passed >= request_limit {
                return Ok(End::Reset);
            }
        }
    };
    let answer = async {
        let mut passed = 0_u64;
        let mut buffer = [0_u8; 16_384];
        if *spoil == Spoil::HalfClose {
            let _ = from_server.read(&mut buffer).await?;
            return to_client.shutdown().await.map(|()| End::Orderly);
        }
        if let Spoil::Delay(time) = spoil {
            let n = from_server.read(&mut buffer).await?;
            tokio::time::sleep(*time).await;
            to_client.write_all(&buffer[..n]).await?;
        }
        loop {
            let n = from_server.read(&mut buffer).await?;
            if n == 0 {
                return to_client.shutdown().await.map(|()| End::Orderly);
            }
            match spoil {
                Spoil::Drip(time) => {
                    for byte in &buffer[..n] {
                        to_client.write_all(&[*byte]).await?;
                        tokio::time::sleep(*time).await;
                    }
                }
                Spoil::ResetAnswerAt(limit) if passed + n as u64 >= *limit => {
                    let room = usize::try_from(limit - passed).unwrap_or(0).min(n);
                    to_client.write_all(&buffer[..room]).await?;
                    return Ok(End::Reset);
                }
                _ => to_client.write_all(&buffer[..n]).await?,
            }
            passed += n as u64;
        }
    };
    tokio::pin!(request);
    tokio::pin!(answer);
    tokio::select! {
        cut = &mut request => {
            if cut? == End::Reset {
                return Ok(End::Reset);
            }
            answer.await
        }
        done = &mut answer => done,
    }
}
