//! The same server on a socket.

use std::net::SocketAddr;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State as Shared};
use axum::response::Response;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::answer::Answer;
use crate::memory::Horde;
use crate::routes::Call;

/// Largest body taken: a picture of the largest size in base64.
const LARGEST_BODY: usize = 64 << 20;

/// A server on a socket; it ends when this is dropped.
pub struct Running {
    /// Where it listens.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Running {
    /// Base address of the API, such as `http://127.0.0.1:40123/api`.
    pub fn base(&self) -> String {
        format!("http://{}/api", self.address)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves `horde` on `address` (port 0: any free one); objects get addresses on the same port.
///
/// # Errors
/// The address cannot be listened on.
pub async fn serve(horde: Horde, address: SocketAddr) -> std::io::Result<Running> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    horde.state().objects.set_base(&format!("http://{address}"));
    let app = Router::new().fallback(handle).with_state(horde);
    let task = tokio::spawn(async move {
        // An accept loop of axum ends only with its task.
        axum::serve(listener, app).await.ok();
    });
    Ok(Running { address, task })
}

async fn handle(Shared(horde): Shared<Horde>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, LARGEST_BODY).await else {
        return respond(Answer::html(413));
    };
    let text = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok());
    let answer = horde.answer(&Call {
        method: parts.method.as_str(),
        path: parts.uri.path(),
        query: parts.uri.query().unwrap_or_default(),
        key: text("apikey"),
        length_told: parts.headers.contains_key("content-length"),
        json: text("content-type").is_some_and(|kind| kind.starts_with("application/json")),
        body: &body,
    });
    respond(answer)
}

fn respond(answer: Answer) -> Response {
    let mut response = Response::new(Body::from(answer.body));
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    response.headers_mut().insert(
        "content-type",
        axum::http::HeaderValue::from_static(answer.content_type),
    );
    response
}
