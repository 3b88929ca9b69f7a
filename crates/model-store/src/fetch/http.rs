//! The download client: own redirects, secrets for their hosts only, no way into the private network.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, ETAG, HeaderValue, IF_NONE_MATCH, LOCATION, RANGE, RETRY_AFTER};
use url::{Host, Url};

use super::plan::{FetchError, Patience, SourceFailure};
use crate::token::{HostToken, Token};

/// How the network may be used.
#[derive(Clone, Debug, Default)]
pub struct HttpSettings {
    /// Proxy for everything, such as `http://proxy.lan:3128`. None is taken from the environment.
    pub proxy: Option<Url>,
    /// Secrets, each with the host it belongs to.
    pub tokens: Vec<HostToken>,
    /// Allow plain http and private addresses (a mirror in the owner's network, tests on loopback).
    pub private_network: bool,
    /// Deadlines.
    pub patience: Patience,
}

/// Most redirects followed for one request.
const MAX_REDIRECTS: usize = 6;

/// Sends GET requests with the rules above.
#[derive(Clone, Debug)]
pub(crate) struct Http {
    client: reqwest::Client,
    settings: HttpSettings,
}

/// What came back at the end of the redirects.
pub(crate) struct Answer {
    pub response: reqwest::Response,
    /// Where the last request went: asked directly the next time, since resolvers count requests.
    pub url: Url,
    /// Sum of the file as the hub announced it on the way (`X-Linked-Etag`), where it did.
    pub linked_sum: Option<String>,
}

/// A small document.
#[derive(Clone, Debug)]
pub struct Document {
    /// What it holds.
    pub body: Vec<u8>,
    /// What the server calls this state of it, where it says so.
    pub etag: Option<String>,
}

/// A failed request.
pub(crate) enum Miss {
    /// Worth another try, not before the given wait.
    Transient { reason: String, wait: Option<Duration> },
    /// This source will not give the file.
    Final(SourceFailure),
}

impl From<Miss> for SourceFailure {
    fn from(miss: Miss) -> Self {
        match miss {
            Miss::Transient { reason, .. } => Self::Unreachable { reason },
            Miss::Final(failure) => failure,
        }
    }
}

impl Http {
    pub(crate) fn new(settings: HttpSettings) -> Result<Self, FetchError> {
        // Another part of the program may have installed a provider already; either is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("horde-workers/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .connect_timeout(settings.patience.connect)
            .read_timeout(settings.patience.silence)
            .no_proxy();
        if let Some(proxy) = &settings.proxy {
            let proxy = reqwest::Proxy::all(proxy.clone()).map_err(|e| FetchError::Settings(plain(&e)))?;
            builder = builder.proxy(proxy);
        } else if !settings.private_network {
            builder = builder.dns_resolver(Arc::new(PublicOnly));
        }
        let client = builder.build().map_err(|e| FetchError::Settings(plain(&e)))?;
        Ok(Self { client, settings })
    }

    pub(crate) fn patience(&self) -> Patience {
        self.settings.patience
    }

    /// GET, following redirects; success statuses only. `range` is half-open, `None` the whole file.
    pub(crate) async fn get(&self, start: &Url, range: Option<(u64, u64)>) -> Result<Answer, Miss> {
        self.get_unless(start, range, None).await
    }

    /// The same; with `etag` also the answer that nothing has changed since it was given (304, without a body).
    async fn get_unless(&self, start: &Url, range: Option<(u64, u64)>, etag: Option<&str>) -> Result<Answer, Miss> {
        let mut url = start.clone();
        let mut linked_sum = None;
        for _ in 0..=MAX_REDIRECTS {
            self.check(&url)
                .map_err(|reason| Miss::Final(SourceFailure::Address { reason }))?;
            let mut request = self
                .client
                .get(url.clone())
                .header(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            if let Some((from, to)) = range {
                request = request.header(RANGE, format!("bytes={from}-{}", to.saturating_sub(1)));
            }
            if let Some(etag) = etag.and_then(|etag| HeaderValue::from_str(etag).ok()) {
                request = request.header(IF_NONE_MATCH, etag);
            }
            if let Some(token) = self.token_for(&url) {
                let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose())).map_err(|_| {
                    Miss::Final(SourceFailure::Address {
                        reason: "the token of this host has characters that no header may carry".into(),
                    })
                })?;
                value.set_sensitive(true);
                request = request.header(AUTHORIZATION, value);
            }
            let response = request.send().await.map_err(|e| transient(&e))?;
            if linked_sum.is_none() {
                linked_sum = header_text(&response, "x-linked-etag").map(|tag| tag.trim_matches('"').to_owned());
            }
            let status = response.status();
            if status.is_redirection() && status.as_u16() != 304 {
                url = self.redirect_target(&url, &response).map_err(Miss::Final)?;
                continue;
            }
            if status.is_success() || (status.as_u16() == 304 && etag.is_some()) {
                return Ok(Answer {
                    response,
                    url,
                    linked_sum,
                });
            }
            let status = status.as_u16();
            if status >= 500 || matches!(status, 408 | 425 | 429) {
                let wait = header_text(&response, RETRY_AFTER.as_str())
                    .and_then(|text| text.trim().parse().ok())
                    .map(|seconds: u64| Duration::from_secs(seconds.min(120)));
                return Err(Miss::Transient {
                    reason: format!("the server answered {status}"),
                    wait,
                });
            }
            return Err(Miss::Final(SourceFailure::Refused { status }));
        }
        Err(Miss::Final(SourceFailure::Redirect {
            reason: format!("more than {MAX_REDIRECTS} in a row"),
        }))
    }

    /// GET of a small document within a total deadline.
    pub(crate) async fn get_small(&self, url: &Url, max_bytes: usize, deadline: Duration) -> Result<Vec<u8>, Miss> {
        let document = self.get_small_unless(url, max_bytes, deadline, None).await?;
        Ok(document.map(|document| document.body).unwrap_or_default())
    }

    /// The same; `None` where it is still the document that came with `etag`.
    pub(crate) async fn get_small_unless(
        &self,
        url: &Url,
        max_bytes: usize,
        deadline: Duration,
        etag: Option<&str>,
    ) -> Result<Option<Document>, Miss> {
        let read = async {
            let mut answer = self.get_unless(url, None, etag).await?;
            if answer.response.status().as_u16() == 304 {
                return Ok(None);
            }
            let etag = header_text(&answer.response, ETAG.as_str());
            let mut body = Vec::new();
            while let Some(part) = answer.response.chunk().await.map_err(|e| transient(&e))? {
                if body.len() + part.len() > max_bytes {
                    return Err(Miss::Final(SourceFailure::TooLong {
                        limit: max_bytes as u64,
                    }));
                }
                body.extend_from_slice(&part);
            }
            Ok(Some(Document { body, etag }))
        };
        tokio::time::timeout(deadline, read).await.unwrap_or_else(|_| {
            Err(Miss::Transient {
                reason: format!("no whole answer within {} s", deadline.as_secs()),
                wait: None,
            })
        })
    }

    fn token_for(&self, url: &Url) -> Option<&Token> {
        let encrypted = url.scheme() == "https" || (self.settings.private_network && is_local(url));
        let host = url.host_str().filter(|_| encrypted)?;
        self.settings
            .tokens
            .iter()
            .find(|token| token.covers(host))
            .map(|token| &token.token)
    }

    fn redirect_target(&self, from: &Url, response: &reqwest::Response) -> Result<Url, SourceFailure> {
        let refuse = |reason: &str| SourceFailure::Redirect {
            reason: reason.to_owned(),
        };
        let location = header_text(response, LOCATION.as_str()).ok_or_else(|| refuse("it names no target"))?;
        let target = from.join(&location).map_err(|_| refuse("its target is no address"))?;
        if from.scheme() == "https" && target.scheme() != "https" {
            return Err(refuse("it leaves https"));
        }
        if is_private_literal(&target) && !is_private_literal(from) {
            return Err(refuse("it leads from a public into a private network"));
        }
        Ok(target)
    }

    fn check(&self, url: &Url) -> Result<(), String> {
        if !url.username().is_empty() || url.password().is_some() {
            return Err("it carries a user name or password".into());
        }
        match url.scheme() {
            "https" => {}
            "http" if self.settings.private_network && is_local(url) => {}
            "http" => return Err("plain http is not used".into()),
            other => return Err(format!("`{other}` is not https")),
        }
        if !self.settings.private_network && (is_private_literal(url) || url.host_str() == Some("localhost")) {
            return Err("it is in a private network".into());
        }
        Ok(())
    }
}

/// `host` or `host:port`, for messages and per-host limits; never the path or the query.
pub(crate) fn authority(url: &Url) -> String {
    match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (Some(host), None) => host.to_owned(),
        (None, _) => "address without host".to_owned(),
    }
}

/// The causes of a reqwest error as one line without its address, which may hold a signature.
pub(crate) fn plain(error: &reqwest::Error) -> String {
    use std::error::Error;
    let mut text = if error.is_timeout() {
        "timed out".to_owned()
    } else if error.is_connect() {
        "could not connect".to_owned()
    } else {
        "the connection broke".to_owned()
    };
    let mut cause = error.source();
    let mut deepest = None;
    while let Some(inner) = cause {
        deepest = Some(inner.to_string());
        cause = inner.source();
    }
    if let Some(deepest) = deepest.filter(|deepest| !deepest.contains("://")) {
        text.push_str(": ");
        text.push_str(&deepest);
    }
    text
}

fn transient(error: &reqwest::Error) -> Miss {
    Miss::Transient {
        reason: plain(error),
        wait: None,
    }
}

pub(crate) fn header_text(response: &reqwest::Response, name: &str) -> Option<String> {
    Some(response.headers().get(name)?.to_str().ok()?.to_owned())
}

fn is_local(url: &Url) -> bool {
    is_private_literal(url) || url.host_str() == Some("localhost")
}

fn is_private_literal(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => !is_public(IpAddr::V4(ip)),
        Some(Host::Ipv6(ip)) => !is_public(IpAddr::V6(ip)),
        _ => false,
    }
}

/// False for loopback, private, link-local, shared, documentation, multicast and reserved addresses, and for IPv6
/// forms that wrap one of those (RFC 6890 and its successors).
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            !(ip.is_unspecified()
                || ip.is_loopback()
                || ip.is_private()
                || ip.is_link_local()
                || ip.is_broadcast()
                || ip.is_documentation()
                || a == 0
                || a >= 224
                || (a == 100 && (64..128).contains(&b))
                || (a == 192 && b == 0 && c == 0)
                || (a == 198 && (b == 18 || b == 19)))
        }
        IpAddr::V6(ip) => {
            let segments = ip.segments();
            if let Some(inner) = ip.to_ipv4() {
                return is_public(IpAddr::V4(inner)) && segments[5] == 0xffff;
            }
            // NAT64 (64:ff9b::/96) and 6to4 (2002::/16) carry an IPv4 address inside.
            if segments[..2] == [0x64, 0xff9b] {
                let [a, b] = segments[6].to_be_bytes();
                let [c, d] = segments[7].to_be_bytes();
                return is_public(IpAddr::from([a, b, c, d]));
            }
            segments[0] & 0xe000 == 0x2000 && segments[0] != 0x2002 && segments[..2] != [0x2001, 0x0db8]
        }
    }
}

/// Resolves by the system and drops every address that is not public.
struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let host = name.as_str().to_owned();
            let found: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), 0)).await?.collect();
            let public: Vec<SocketAddr> = found.iter().copied().filter(|at| is_public(at.ip())).collect();
            if public.is_empty() {
                return Err(format!("`{host}` has no public address").into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_addresses_are_told_from_public_ones() {
        for private in [
            "127.0.0.1",
            "10.1.2.3",
            "172.20.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "198.18.0.1",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "224.0.0.1",
            "2001:db8::1",
        ] {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
        for public in [
            "1.1.1.1",
            "104.16.0.1",
            "2606:4700::1111",
            "64:ff9b::101:101",
            "::ffff:1.1.1.1",
        ] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }

    #[test]
    fn only_https_to_public_hosts_is_spoken_unless_the_owner_allows_more() {
        let strict = Http::new(HttpSettings::default()).unwrap();
        for bad in [
            "http://example.org/a",
            "ftp://example.org/a",
            "https://u:p@example.org/",
            "https://127.0.0.1/",
            "https://localhost/",
            "https://0x7f.1/",
        ] {
            assert!(strict.check(&Url::parse(bad).unwrap()).is_err(), "{bad}");
        }
        assert!(strict.check(&Url::parse("https://example.org/a").unwrap()).is_ok());
        let lax = Http::new(HttpSettings {
            private_network: true,
            ..HttpSettings::default()
        })
        .unwrap();
        assert!(lax.check(&Url::parse("http://127.0.0.1:1/a").unwrap()).is_ok());
        assert!(lax.check(&Url::parse("http://example.org/a").unwrap()).is_err());
    }
}
