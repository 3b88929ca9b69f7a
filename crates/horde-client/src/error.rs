//! What an answer means for the worker: one table from `rc` and status to a class, never from English text.

use std::time::Duration;

use ::http::{HeaderMap, StatusCode};
use serde::Deserialize;

use crate::transport::TransportError;

/// Longest wait that a server may ask for; more would make the worker look dead.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// Longest server text that is kept for the log.
const LONGEST_MESSAGE: usize = 300;

/// An API call that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No whole answer was had.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The server answered with an error.
    #[error("the Horde answered {status}{}: {message}", rc.as_deref().map(|rc| format!(" {rc}")).unwrap_or_default())]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// The server's stable code for the reason, where it gave one.
        rc: Option<String>,
        /// The server's text, at most 300 bytes, control characters escaped.
        message: String,
        /// Fields of the body that the server names in `errors`, such as `forms.3`; at most 16.
        fields: Vec<String>,
        /// What to do about it.
        class: ErrorClass,
    },
    /// The answer had a good status but is not what the route promises (a portal page, a cut body).
    #[error("the Horde's answer could not be read: {reason}")]
    BadBody {
        /// What was wrong, without any of the body.
        reason: String,
    },
}

/// What the worker does about an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// The worker cannot go on until its owner changes something.
    Stop(StopReason),
    /// Go on later, at a slower pace.
    SlowDown {
        /// Wait at least this long.
        wait: Duration,
        /// Whether the pace is one for maintenance, a limit or an address block.
        why: SlowReason,
    },
    /// The generation is gone on the server: close it as expired.
    Gone,
    /// The server has this result already: close it as delivered.
    AlreadyAccepted,
    /// May work later; back off.
    Retry {
        /// A wait the server asked for.
        after: Option<Duration>,
    },
    /// The body was refused: the same body will be refused again.
    BadRequest,
}

/// Why the worker stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The API key is unknown, anonymous or of a deleted user.
    Key,
    /// The worker's name is taken, refused or used for another kind.
    Name,
    /// A setting is refused: priority users, models.
    Settings,
    /// The account may not run (more) workers.
    Account,
}

/// Why the worker slows down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowReason {
    /// The worker is in maintenance; its own account's jobs are still served.
    Maintenance,
    /// A rate limit.
    RateLimit,
    /// The address is blocked for a while or for good.
    Address,
}

impl StopReason {
    /// What the owner changes before the worker can go on.
    pub fn hint(self) -> &'static str {
        match self {
            Self::Key => "set the API key of a registered account",
            Self::Name => "choose another worker name: one per program, not taken by anybody, and a plain bridge agent",
            Self::Settings => "write priority users as `alias#id` and models as the reference names them",
            Self::Account => "stop other workers of this account or address, or ask the Horde's team for leave",
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ErrorBody {
    #[serde(deserialize_with = "crate::tolerant::lenient")]
    rc: Option<String>,
    #[serde(deserialize_with = "crate::tolerant::lenient")]
    message: Option<String>,
    errors: Option<serde_json::Value>,
}

impl ApiError {
    /// Reads an error answer.
    pub fn of_answer(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Self {
        let body: ErrorBody = serde_json::from_slice(body).unwrap_or_default();
        let class = classify(status, body.rc.as_deref(), headers);
        let mut message = body.message.unwrap_or_else(|| "no explanation".to_owned());
        let named = body.errors.as_ref().and_then(serde_json::Value::as_object);
        let fields = named.map(|errors| errors.keys().take(16).map(|field| plain(field, 80)).collect());
        if let Some(errors) = body.errors {
            message = format!("{message} {errors}");
        }
        Self::Refused {
            status,
            rc: body.rc,
            message: plain(&message, LONGEST_MESSAGE),
            fields: fields.unwrap_or_default(),
            class,
        }
    }

    /// The place of the item that the server refused in the list `field` of the body: `errors` has `FIELD.N`.
    pub fn refused_item(&self, field: &str) -> Option<usize> {
        let Self::Refused { fields, .. } = self else {
            return None;
        };
        fields
            .iter()
            .find_map(|name| name.strip_prefix(field)?.strip_prefix('.')?.parse().ok())
    }

    /// What to do about it.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Refused { class, .. } => class.clone(),
            Self::Transport(TransportError::Refused { .. }) => ErrorClass::BadRequest,
            Self::Transport(_) | Self::BadBody { .. } => ErrorClass::Retry { after: None },
        }
    }

    /// Whether the same call may work later without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self.class(), ErrorClass::Retry { .. } | ErrorClass::SlowDown { .. })
    }

    /// Whether the server may have acted on the request although no answer came: a pop may have assigned a job.
    pub fn may_have_acted(&self) -> bool {
        matches!(
            self,
            Self::Transport(
                TransportError::Broken { .. } | TransportError::TimedOut { .. } | TransportError::TooLarge { .. }
            ) | Self::BadBody { .. }
        )
    }
}

/// The one table. Codes are the server's stable ones (horde/exceptions, release 5.1.5); unknown codes go by status.
pub fn classify(status: StatusCode, rc: Option<&str>, headers: &HeaderMap) -> ErrorClass {
    use ErrorClass::{AlreadyAccepted, BadRequest, Gone, Retry, SlowDown, Stop};
    let minutes = |n: u64| Duration::from_secs(60 * n);
    match rc {
        Some("InvalidAPIKey" | "AnonForbiddenWorker" | "AnonForbidden" | "DeletedUser" | "UserNotFound") => {
            Stop(StopReason::Key)
        }
        Some(
            "WrongCredentials"
            | "PolymorphicNameConflict"
            | "ProfaneWorkerName"
            | "NameAlreadyExists"
            | "ProfaneBridgeAgent",
        ) => Stop(StopReason::Name),
        Some("InvalidPriorityUsername") => Stop(StopReason::Settings),
        Some("TooManyWorkers" | "TooManyWorkersTrusted" | "TooManySameIPs" | "WorkerInviteOnly") => {
            Stop(StopReason::Account)
        }
        Some("WorkerMaintenance" | "MaintenanceMode") => SlowDown {
            wait: minutes(1),
            why: SlowReason::Maintenance,
        },
        Some("WorkerFlaggedMaintenance") => SlowDown {
            wait: minutes(5),
            why: SlowReason::Maintenance,
        },
        Some("TimeoutIP" | "UnsafeIP" | "TooManyNewIPs") => SlowDown {
            wait: minutes(5),
            why: SlowReason::Address,
        },
        Some("DuplicateGen") => AlreadyAccepted,
        Some("AbortedGen" | "InvalidJobID" | "RequestExpired") => Gone,
        _ => match status.as_u16() {
            429 => SlowDown {
                wait: asked_wait(headers)
                    .unwrap_or(Duration::from_secs(5))
                    .max(Duration::from_secs(1)),
                why: SlowReason::RateLimit,
            },
            401 => Stop(StopReason::Key),
            403 => SlowDown {
                wait: minutes(5),
                why: SlowReason::Address,
            },
            410 => Gone,
            408 | 421 | 425 | 500..=599 => Retry {
                after: asked_wait(headers),
            },
            // A redirect of the API is never followed; it means a wrong address or a portal.
            300..=399 => Retry { after: None },
            _ => BadRequest,
        },
    }
}

/// `Retry-After` in seconds or as a date, else `X-RateLimit-Reset` (seconds since 1970), at most five minutes.
fn asked_wait(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let until =
        |moment: jiff::Timestamp| Duration::try_from(moment.duration_since(jiff::Timestamp::now())).unwrap_or_default();
    let retry_after = text("retry-after").and_then(|value| {
        let seconds = value.parse::<u64>().ok().map(Duration::from_secs);
        seconds.or_else(|| {
            jiff::fmt::rfc2822::parse(value)
                .ok()
                .map(|date| until(date.timestamp()))
        })
    });
    let reset = || {
        let seconds = text("x-ratelimit-reset")?.parse::<f64>().ok()?;
        (seconds.is_finite() && seconds.abs() < 1e11).then_some(())?;
        jiff::Timestamp::from_second(seconds as i64).ok().map(until)
    };
    retry_after.or_else(reset).map(|wait| wait.min(LONGEST_WAIT))
}

/// A stranger's text made fit for a log or a terminal: control characters escaped, cut at `limit` bytes.
pub fn plain(text: &str, limit: usize) -> String {
    let mut out = String::new();
    for character in text.chars() {
        let shown: String = if character.is_control() {
            character.escape_default().collect()
        } else {
            character.into()
        };
        if out.len() + shown.len() > limit {
            out.push('…');
            break;
        }
        out.push_str(&shown);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_item_of_a_list_is_found_by_the_name_of_its_field() {
        let of = |body: &str| ApiError::of_answer(StatusCode::BAD_REQUEST, &HeaderMap::new(), body.as_bytes());
        let named = of(r#"{"errors": {"forms.23": "'annotation' is not one of ['caption']"}, "message": "failed"}"#);
        assert_eq!(named.refused_item("forms"), Some(23));
        assert_eq!(named.refused_item("models"), None);
        for other in [
            r#"{"errors": {"forms.x": "?"}}"#,
            r#"{"errors": ["forms.1"]}"#,
            "<html>",
            r#"{"rc": "x"}"#,
        ] {
            assert_eq!(of(other).refused_item("forms"), None, "{other}");
        }
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (
                    ::http::HeaderName::from_static(name),
                    value.parse().expect("a header value"),
                )
            })
            .collect()
    }

    #[test]
    fn f039_every_code_a_worker_meets_has_its_class() {
        let none = HeaderMap::new();
        for (status, rc, wanted) in [
            (401, "InvalidAPIKey", ErrorClass::Stop(StopReason::Key)),
            (403, "AnonForbiddenWorker", ErrorClass::Stop(StopReason::Key)),
            (403, "WrongCredentials", ErrorClass::Stop(StopReason::Name)),
            (400, "PolymorphicNameConflict", ErrorClass::Stop(StopReason::Name)),
            (403, "TooManyWorkers", ErrorClass::Stop(StopReason::Account)),
            (400, "DuplicateGen", ErrorClass::AlreadyAccepted),
            (400, "AbortedGen", ErrorClass::Gone),
            (404, "InvalidJobID", ErrorClass::Gone),
            (400, "SomethingNew", ErrorClass::BadRequest),
            (503, "SomethingNew", ErrorClass::Retry { after: None }),
        ] {
            let status = StatusCode::from_u16(status).expect("a status");
            assert_eq!(classify(status, Some(rc), &none), wanted, "{rc}");
        }
    }

    #[test]
    fn f011_a_wait_is_read_as_seconds_or_date_and_capped() {
        let wait = |value: &str| asked_wait(&headers(&[("retry-after", value)]));
        assert_eq!(wait("17"), Some(Duration::from_secs(17)));
        assert_eq!(wait("1000000000"), Some(LONGEST_WAIT));
        assert_eq!(wait("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert_eq!(wait("soon"), None);
        assert_eq!(wait("-4"), None);
        assert_eq!(asked_wait(&headers(&[("x-ratelimit-reset", "NaN")])), None);
    }

    #[test]
    fn f032_f033_f034_what_is_over_is_told_apart_from_what_may_be_retried() {
        let refused = |status: u16, body: &str| {
            let status = StatusCode::from_u16(status).expect("a status");
            ApiError::of_answer(status, &HeaderMap::new(), body.as_bytes())
        };
        let gone = refused(
            404,
            r#"{"message": "You have requested this URI but did you mean", "rc": "InvalidJobID"}"#,
        );
        assert!(gone.class() == ErrorClass::Gone && !gone.is_transient());
        assert_eq!(refused(410, "").class(), ErrorClass::Gone);
        let twice = refused(400, r#"{"message": "x", "rc": "DuplicateGen"}"#);
        assert!(twice.class() == ErrorClass::AlreadyAccepted && !twice.is_transient());
        let schema = refused(
            400,
            r#"{"errors": {"seed": "'seed' is a required property"}, "message": "failed"}"#,
        );
        assert!(schema.class() == ErrorClass::BadRequest && schema.to_string().contains("'seed'"));
        // English text decides nothing, and a code of the wrong type does not hide the status.
        let text_only = refused(400, r#"{"message": "DuplicateGen InvalidAPIKey", "rc": 7}"#);
        assert!(text_only.class() == ErrorClass::BadRequest && text_only.to_string().contains("InvalidAPIKey"));
    }

    #[test]
    fn f012_without_retry_after_the_reset_time_counts() {
        let reset = jiff::Timestamp::now().as_second() + 40;
        let wait = asked_wait(&headers(&[("x-ratelimit-reset", &reset.to_string())])).expect("a wait");
        assert!((38..=40).contains(&wait.as_secs()), "{wait:?}");
        let limited = classify(StatusCode::TOO_MANY_REQUESTS, None, &headers(&[("retry-after", "0")]));
        let pace = Duration::from_secs(1);
        assert_eq!(
            limited,
            ErrorClass::SlowDown {
                wait: pace,
                why: SlowReason::RateLimit
            }
        );
    }

    #[test]
    fn f051_texts_of_strangers_are_escaped_and_cut() {
        assert_eq!(plain("a\u{1b}[31mb", 100), "a\\u{1b}[31mb");
        assert!(plain(&"x".repeat(2_000), 300).len() <= 304);
    }
}
