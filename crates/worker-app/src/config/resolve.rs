//! From what was written to what is meant: ranges, forms and defaults that depend on the machine.

use std::time::Duration;

use horde_client::agent::{BridgeAgent, NameError, WorkerName};
use url::Url;

use super::origin::Origin;
use super::raw::Raw;
use super::{Common, LogSettings, Places, Window};
use crate::stop::Stop;
use crate::text::printable;

/// More jobs ahead than this only age in the queue.
const MAX_PREFETCH: i64 = 2;
/// More devices than any board carries.
const MAX_DEVICES: usize = 32;
const MAX_PRIORITY_USERNAMES: usize = 100;
const MAX_GRACE: Duration = Duration::from_secs(3600);

pub(super) fn common(
    raw: &Raw,
    name: &str,
    version: &str,
    places: &Places,
    origin: &Origin<'_>,
) -> Result<Common, Stop> {
    if !(0..=MAX_PREFETCH).contains(&raw.prefetch) {
        return Err(origin
            .refuse("prefetch", format!("is `{}`", raw.prefetch))
            .hint(format!("use 0 to {MAX_PREFETCH}; 1 keeps the device busy")));
    }
    Ok(Common {
        horde_url: horde_url(raw, origin)?,
        worker_name: worker_name(raw, name, origin)?,
        proxy: proxy(raw, origin)?,
        bridge_agent: bridge_agent(raw, name, version, origin)?,
        devices: devices(raw, origin)?,
        prefetch: usize::try_from(raw.prefetch).unwrap_or_default(),
        nsfw: raw.nsfw,
        priority_usernames: priority_usernames(raw, origin)?,
        pause_between: pause_between(raw, origin)?,
        grace: grace(raw, origin)?,
        log: LogSettings {
            filter: log_filter(raw, origin)?,
            format: raw.log_format,
        },
        state_dir: raw
            .state_dir
            .as_ref()
            .map_or_else(|| places.state_dir(name), |path| places.absolute(path)),
        models_dir: raw
            .models_dir
            .as_ref()
            .map_or_else(|| places.models_dir(), |path| places.absolute(path)),
    })
}

fn horde_url(raw: &Raw, origin: &Origin<'_>) -> Result<Url, Stop> {
    let refuse = |why: String| {
        origin
            .refuse("horde_url", why)
            .hint("the public Horde is `https://aihorde.net/api/`")
    };
    let mut url: Url = raw
        .horde_url
        .trim()
        .parse()
        .map_err(|error| refuse(format!("is no address: {error}")))?;
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        // Not shown: it may hold a password.
        return Err(refuse("must have no user, password, query or fragment".to_owned()));
    }
    if url.host().is_none() {
        return Err(refuse("names no host".to_owned()));
    }
    match url.scheme() {
        "https" => {}
        "http" if is_loopback(&url) => {}
        "http" => {
            return Err(refuse(
                "would send the key unencrypted; only loopback may use `http`".to_owned(),
            ));
        }
        other => return Err(refuse(format!("has the scheme `{}`", printable(other)))),
    }
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    Ok(url)
}

/// Whether `url` leads to this machine.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(domain)) => domain == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

fn proxy(raw: &Raw, origin: &Origin<'_>) -> Result<Option<Url>, Stop> {
    let refuse = |why: &str| {
        origin
            .refuse("proxy", why)
            .hint("write an address like `http://proxy.example:3128` or `socks5://127.0.0.1:1080`")
    };
    let Some(text) = &raw.proxy else { return Ok(None) };
    // Not shown: it may hold a password.
    let url: Url = text.trim().parse().map_err(|_| refuse("is no address"))?;
    if url.host().is_none() || !matches!(url.scheme(), "http" | "https" | "socks5" | "socks5h") {
        return Err(refuse(
            "has no host or a scheme that is none of `http`, `https`, `socks5`",
        ));
    }
    Ok(Some(url))
}

fn worker_name(raw: &Raw, name: &str, origin: &Origin<'_>) -> Result<WorkerName, Stop> {
    let text = raw
        .worker_name
        .as_deref()
        .map_or_else(|| format!("unnamed {name}"), |text| text.trim().to_owned());
    text.parse().map_err(|error: NameError| {
        origin
            .refuse("worker_name", format!("is refused: {}", printable(&error.to_string())))
            .hint("choose a name of 5 to 100 characters that no other worker of the Horde has")
    })
}

fn bridge_agent(raw: &Raw, name: &str, version: &str, origin: &Origin<'_>) -> Result<BridgeAgent, Stop> {
    let agent = match &raw.bridge_agent {
        Some(agent) => agent.parse(),
        None => BridgeAgent::new(name, version, env!("CARGO_PKG_REPOSITORY")),
    };
    agent.map_err(|error: NameError| {
        origin
            .refuse("bridge_agent", format!("is refused: {}", printable(&error.to_string())))
            .hint(format!(
                "leave it out for the worker's own name, or write `{name}:{version}:CONTACT`"
            ))
    })
}

fn devices(raw: &Raw, origin: &Origin<'_>) -> Result<Vec<String>, Stop> {
    let refuse = |why: String| {
        origin
            .refuse("devices", why)
            .hint("write `[\"auto\"]`, `[\"cpu\"]` or a list like `[\"cuda:0\", \"cuda:1\"]`")
    };
    let devices: Vec<String> = raw.devices.iter().map(|device| device.trim().to_lowercase()).collect();
    if devices.is_empty() {
        return Err(refuse("is empty".to_owned()));
    }
    if devices.len() > MAX_DEVICES {
        return Err(refuse(format!(
            "names {} devices; {MAX_DEVICES} is the most",
            devices.len()
        )));
    }
    for (idx, device) in devices.iter().enumerate() {
        if !is_device(device) {
            return Err(refuse(format!("names `{}`, which is no device", printable(device))));
        }
        if devices[..idx].contains(device) {
            return Err(refuse(format!("names `{device}` twice")));
        }
    }
    if devices.len() > 1 && devices.iter().any(|device| device == "auto") {
        return Err(refuse("mixes `auto` with other devices".to_owned()));
    }
    Ok(devices)
}

/// `cpu`, `cuda:0`: a word, and a number of at most three digits for what there can be several of.
fn is_device(text: &str) -> bool {
    let (word, number) = text
        .split_once(':')
        .map_or((text, None), |(word, number)| (word, Some(number)));
    let is_word = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase());
    is_word
        && number
            .is_none_or(|number| (1..=3).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit()))
}

fn priority_usernames(raw: &Raw, origin: &Origin<'_>) -> Result<Vec<String>, Stop> {
    let refuse = |why: String| {
        origin
            .refuse("priority_usernames", why)
            .hint("write each as the Horde shows it, with its number: `[\"somebody#1234\"]`")
    };
    if raw.priority_usernames.len() > MAX_PRIORITY_USERNAMES {
        return Err(refuse(format!("names more than {MAX_PRIORITY_USERNAMES} users")));
    }
    let mut usernames = Vec::with_capacity(raw.priority_usernames.len());
    for username in &raw.priority_usernames {
        let username = username.trim();
        let is_whole = username
            .rsplit_once('#')
            .is_some_and(|(name, id)| !name.is_empty() && !id.is_empty() && id.bytes().all(|b| b.is_ascii_digit()));
        if !is_whole {
            return Err(refuse(format!(
                "names `{}`, which has no `#` and number",
                printable(username)
            )));
        }
        usernames.push(username.to_owned());
    }
    Ok(usernames)
}

fn pause_between(raw: &Raw, origin: &Origin<'_>) -> Result<Vec<Window>, Stop> {
    let parsed: Result<Vec<Window>, String> = raw.pause_between.iter().map(|text| text.trim().parse()).collect();
    parsed.map_err(|why| {
        origin
            .refuse("pause_between", format!("is wrong: {}", printable(&why)))
            .hint("write local times of day: `[\"18:00-23:30\"]`")
    })
}

fn grace(raw: &Raw, origin: &Origin<'_>) -> Result<Duration, Stop> {
    let refuse = |why: String| {
        origin
            .refuse("grace", why)
            .hint("write a time like `60s` or `2m`, at most `1h`")
    };
    let grace = humantime::parse_duration(raw.grace.trim())
        .map_err(|error| refuse(format!("is `{}`: {error}", printable(&raw.grace))))?;
    if grace > MAX_GRACE {
        return Err(refuse(format!("is `{}`, which is too long", printable(&raw.grace))));
    }
    Ok(grace)
}

fn log_filter(raw: &Raw, origin: &Origin<'_>) -> Result<String, Stop> {
    tracing_subscriber::EnvFilter::builder()
        .parse(raw.log.trim())
        .map(|_| raw.log.trim().to_owned())
        .map_err(|error| {
            origin
                .refuse("log", format!("is no filter: {}", printable(&error.to_string())))
                .hint("use `error`, `warn`, `info`, `debug` or `trace`")
        })
}
