//! The real transport: reqwest over rustls, with redirects, proxies and decompression off unless said otherwise.

use std::time::Duration;

use ::http::header::{CONTENT_LENGTH, LOCATION};
use ::http::{HeaderMap, HeaderValue, Method};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use url::Url;

use crate::guard::Guard;
use crate::transport::{Request, RequestClass, Response, Transferred, Transport, TransportError, Watch};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections are not kept longer, so that a change of address is noticed.
const POOL_IDLE: Duration = Duration::from_secs(50);
const MOST_REDIRECTS: usize = 3;
/// Pieces in which a watched upload is handed to the connection.
const PIECE_BYTES: usize = 64 << 10;

/// What the transport may do beyond public https.
#[derive(Clone, Default)]
pub struct HttpSettings {
    /// Proxy for API and object store; environment variables are never looked at.
    pub proxy: Option<Url>,
    /// Allow plain http and loopback, for a Horde on this machine.
    pub allow_loopback: bool,
    /// `User-Agent`.
    pub user_agent: String,
}

impl std::fmt::Debug for HttpSettings {
    /// Of the proxy only the host is shown: its address may hold a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpSettings")
            .field("proxy", &self.proxy.as_ref().map(host_of))
            .field("allow_loopback", &self.allow_loopback)
            .field("user_agent", &self.user_agent)
            .finish()
    }
}

/// Carries requests over the network. The classes share no connections.
pub struct HttpTransport {
    settings: HttpSettings,
    api: reqwest::Client,
    store: reqwest::Client,
}

impl HttpTransport {
    /// Builds the clients. The error says what of the settings or of the system's certificates is wrong.
    pub fn new(settings: HttpSettings) -> Result<Self, String> {
        // The first caller of the process installs the provider; for later ones it is there already.
        rustls::crypto::ring::default_provider().install_default().ok();
        let client = || builder(&settings)?.build().map_err(|error| plain(&error));
        Ok(Self {
            api: client()?,
            store: client()?,
            settings,
        })
    }

    async fn to_the_horde(
        &self,
        client: &reqwest::Client,
        request: Request,
        watch: Option<&Watch>,
    ) -> Result<Response, TransportError> {
        if request.url.scheme() != "https" && !(self.settings.allow_loopback && is_loopback(&request.url)) {
            return Err(TransportError::Refused {
                reason: format!("`{}` addresses are only used on this machine", request.url.scheme()),
            });
        }
        exchange(client, &request, watch).await
    }

    async fn to_a_stranger(&self, mut request: Request, watch: Option<&Watch>) -> Result<Response, TransportError> {
        let guard = Guard {
            allow_http: self.settings.allow_loopback,
            allow_loopback: self.settings.allow_loopback,
        };
        // Nothing of ours goes along, whatever the caller put in.
        request.headers = HeaderMap::new();
        for _ in 0..=MOST_REDIRECTS {
            let vetted = guard
                .vet(&request.url)
                .await
                .map_err(|reason| TransportError::Refused { reason })?;
            let mut pinned = builder(&self.settings)
                .map_err(|reason| TransportError::Refused { reason })?
                .no_proxy();
            if let Some(name) = &vetted.name {
                pinned = pinned.resolve_to_addrs(name, &vetted.addresses);
            }
            let client = pinned
                .build()
                .map_err(|error| TransportError::Refused { reason: plain(&error) })?;
            let response = exchange(&client, &request, watch).await?;
            if !response.status.is_redirection() {
                return Ok(response);
            }
            let target = response.headers.get(LOCATION).and_then(|value| value.to_str().ok());
            let next = target.and_then(|target| request.url.join(target).ok());
            request.url = next.ok_or_else(|| TransportError::Refused {
                reason: "a redirect led nowhere".to_owned(),
            })?;
        }
        Err(TransportError::Refused {
            reason: format!("more than {MOST_REDIRECTS} redirects"),
        })
    }
}

impl HttpTransport {
    async fn carry(&self, request: Request, watch: Option<Watch>) -> Result<Response, TransportError> {
        let watch = watch.as_ref();
        let (host, deadline) = (host_of(&request.url), request.deadline);
        let exchange = async {
            match request.class {
                RequestClass::Api => self.to_the_horde(&self.api, request, watch).await,
                RequestClass::ObjectStore => self.to_the_horde(&self.store, request, watch).await,
                RequestClass::Stranger => self.to_a_stranger(request, watch).await,
            }
        };
        // One deadline around everything: idle time-outs never end a slow drip.
        tokio::time::timeout(deadline, exchange)
            .await
            .unwrap_or(Err(TransportError::TimedOut { host, deadline }))
    }
}

#[async_trait]
impl Transport for HttpTransport {
    async fn send(&self, request: Request) -> Result<Response, TransportError> {
        self.carry(request, None).await
    }

    async fn send_watched(&self, request: Request, watch: Watch) -> Result<Response, TransportError> {
        self.carry(request, Some(watch)).await
    }
}

fn builder(settings: &HttpSettings) -> Result<reqwest::ClientBuilder, String> {
    let builder = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        // Whatever features other crates switch on: a body is never unpacked, so a cap on it is a cap.
        .no_gzip()
        .no_brotli()
        .no_zstd()
        .no_deflate()
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(POOL_IDLE)
        .user_agent(settings.user_agent.clone());
    match &settings.proxy {
        Some(address) => Ok(builder.proxy(reqwest::Proxy::all(address.clone()).map_err(|error| plain(&error))?)),
        None => Ok(builder),
    }
}

async fn exchange(
    client: &reqwest::Client,
    request: &Request,
    watch: Option<&Watch>,
) -> Result<Response, TransportError> {
    let host = host_of(&request.url);
    let mut headers = request.headers.clone();
    if request.method == Method::PUT {
        // The object store refuses chunked bodies.
        headers.insert(CONTENT_LENGTH, HeaderValue::from(request.body.len()));
    }
    let mut answer = client
        .request(request.method.clone(), request.url.clone())
        .headers(headers)
        .body(body_of(request, watch))
        .send()
        .await
        .map_err(|error| transport_error(&error, &host))?;
    let (status, headers, limit) = (
        answer.status(),
        std::mem::take(answer.headers_mut()),
        request.max_body_bytes,
    );
    // Told before the body comes, and only told: it is shown, never allocated for.
    let total_bytes = headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    let watch = watch.filter(|_| request.method == Method::GET);
    let mut body = BytesMut::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| transport_error(&error, &host))? {
        if body.len() + chunk.len() > limit {
            return Err(TransportError::TooLarge { host, limit });
        }
        body.extend_from_slice(&chunk);
        if let Some(watch) = watch {
            watch(Transferred {
                done_bytes: body.len() as u64,
                total_bytes,
            });
        }
    }
    Ok(Response {
        status,
        headers,
        body: Bytes::from(body),
    })
}

/// The body as it is, or in pieces that are counted as the connection takes them.
fn body_of(request: &Request, watch: Option<&Watch>) -> reqwest::Body {
    let Some(watch) = watch.filter(|_| request.method == Method::PUT).cloned() else {
        return request.body.clone().into();
    };
    let total = request.body.len() as u64;
    let mut rest = request.body.clone();
    reqwest::Body::wrap_stream(futures_util::stream::iter(std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let piece = rest.split_to(rest.len().min(PIECE_BYTES));
        watch(Transferred {
            done_bytes: total - rest.len() as u64,
            total_bytes: Some(total),
        });
        Some(Ok::<_, std::convert::Infallible>(piece))
    })))
}

fn transport_error(error: &reqwest::Error, host: &str) -> TransportError {
    let (host, reason) = (host.to_owned(), plain(error));
    if error.is_builder() {
        TransportError::Refused { reason }
    } else if error.is_connect() {
        TransportError::Unreachable { host, reason }
    } else {
        TransportError::Broken { host, reason }
    }
}

/// The chain of causes without any address: reqwest puts the whole, signed address into its texts.
fn plain(error: &reqwest::Error) -> String {
    let mut causes = Vec::new();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        causes.push(inner.to_string());
        cause = inner.source();
    }
    match causes.pop() {
        Some(last) => last,
        None if error.is_builder() => "the request could not be built".to_owned(),
        None => "the exchange failed".to_owned(),
    }
}

fn host_of(url: &Url) -> String {
    url.host_str().unwrap_or_default().to_owned()
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    }
}
