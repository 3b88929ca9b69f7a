//! Limits of calls, as fixed windows per caller and route, and the headers that tell of them.

use std::time::Duration;

use http::{HeaderMap, HeaderName};
use serde_json::json;
use tokio::time::Instant;

use crate::answer::Answer;
use crate::routes::Call;
use crate::state::State;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// What counting a call came to.
pub(crate) enum Counted {
    /// It may pass; these headers go out with its answer.
    Within(HeaderMap),
    /// 429.
    Over(Answer),
}

/// Calls within a window that a route allows, and whether each path counts apart.
fn limit(method: &str, path: &str) -> Option<(usize, Duration, String)> {
    let route = |text: &str| format!("{method} {text}");
    Some(match (method, path) {
        (_, "status/heartbeat") => return None,
        ("POST", _) if path.ends_with("/pop") || path.ends_with("/submit") => (60, SECOND, route(path)),
        ("POST", _) if path.ends_with("/async") => (2, SECOND, route(path)),
        ("GET", _) if path.starts_with("generate/check/") => (10, SECOND, route(path)),
        ("GET", _) if path.starts_with("generate/status/") => (10, MINUTE, route(path)),
        ("GET", _) if path.starts_with("generate/text/status/") => (60, MINUTE, route(path)),
        _ if path.starts_with("workers/") => (30, MINUTE, route(path)),
        _ => (90, MINUTE, route(path)),
    })
}

impl State {
    pub(crate) fn count_call(&mut self, call: &Call<'_>, path: &str) -> Counted {
        let Some((limit, window, route)) = limit(call.method, path).filter(|_| self.settings.rate_limits) else {
            return Counted::Within(HeaderMap::new());
        };
        // Requests are limited by key; everything else by address, and all callers here share one.
        let caller = if path.ends_with("/async") {
            call.key.unwrap_or_default()
        } else {
            ""
        };
        let now = Instant::now();
        let calls = self.calls.entry(format!("{route} {caller}")).or_default();
        while calls.front().is_some_and(|at| now.duration_since(*at) >= window) {
            calls.pop_front();
        }
        let over = calls.len() >= limit;
        if !over {
            calls.push_back(now);
        }
        let wait = calls
            .front()
            .map_or(Duration::ZERO, |at| window.saturating_sub(now.duration_since(*at)));
        let mut headers = HeaderMap::new();
        let mut tell = |name: &'static str, number: usize| headers.insert(HeaderName::from_static(name), number.into());
        tell("x-ratelimit-limit", limit);
        tell("x-ratelimit-remaining", limit - calls.len());
        if !over {
            return Counted::Within(headers);
        }
        // Whole seconds, cut: the real server tells 0 for a window that ends within the second.
        tell("retry-after", usize::try_from(wait.as_secs()).unwrap_or(usize::MAX));
        let window = if window == SECOND { "1 second" } else { "1 minute" };
        let mut answer = Answer::json(429, &json!({ "message": format!("{limit} per {window}") }));
        answer.headers.extend(headers);
        Counted::Over(answer)
    }
}
