//! States, times and the server's reasons in an owner's words.

use worker_runtime::Status;
use worker_runtime::status::State;

/// How the runtime says that an answer was empty.
const NO_WORK: &str = "the Horde has no work for this worker";

/// A length of time, short: `45 s`, `12 min`, `2 h 05 min`, `3 d 4 h`.
pub fn span(seconds: f64) -> String {
    // A broken clock or an estimate of NaN must not break the display.
    let seconds = if seconds.is_finite() {
        seconds.clamp(0.0, 1e9) as u64
    } else {
        0
    };
    match seconds {
        0..=179 => format!("{seconds} s"),
        180..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// A figure that can be shown: no NaN, no infinity, no negative zero.
pub fn sane(figure: f64) -> f64 {
    if figure.is_finite() { figure + 0.0 } else { 0.0 }
}

/// The state in one or two words.
pub fn state(status: &Status) -> String {
    match (status.state, status.paused_until_unix_ms) {
        (State::Starting, _) => "starting".to_owned(),
        (State::Running, _) if status.rest.is_some() => "resting".to_owned(),
        (State::Running, _) => "serving".to_owned(),
        (State::Paused, Some(until)) => {
            format!("paused for {}", span((until - status.updated_unix_ms) as f64 / 1000.0))
        }
        (State::Paused, None) => "paused".to_owned(),
        (State::Finishing, _) => "finishing".to_owned(),
        (State::Stopping, _) => "stopping".to_owned(),
    }
}

/// Why there is no job, in words; `None` while there is one.
pub fn why_idle(status: &Status) -> Option<String> {
    if !status.jobs.is_empty() {
        return None;
    }
    if let Some(rest) = &status.rest {
        let why = status.idle.as_deref().unwrap_or(&rest.why);
        return Some(format!("resting for {}: {why}", span(rest.left_s)));
    }
    let skipped = skipped(status);
    match (&status.idle, skipped) {
        // The runtime gives the server's reasons as they came; here they are put into words.
        (Some(idle), Some(skipped)) if idle.starts_with(NO_WORK) => Some(format!("{NO_WORK}: {skipped}")),
        (Some(idle), _) => Some(idle.clone()),
        (None, _) => None,
    }
}

/// What the server passed over in its last empty answer, the most frequent reasons first.
fn skipped(status: &Status) -> Option<String> {
    let mut skipped: Vec<(&String, &i64)> = status.poll.skipped.iter().filter(|(_, count)| **count > 0).collect();
    skipped.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    if skipped.is_empty() {
        return None;
    }
    let reasons: Vec<String> = skipped
        .iter()
        .take(3)
        .map(|(reason, count)| format!("{count} {}", skip_reason(reason)))
        .collect();
    Some(format!("passed over {}", reasons.join("; ")))
}

/// The server's reason for passing a request over, after a number of requests.
fn skip_reason(reason: &str) -> String {
    match reason {
        "models" => "that want models that are not served here",
        "max_pixels" => "that are larger than this worker takes",
        "max_length" => "that want longer answers than this worker gives",
        "max_context_length" => "that bring a longer context than this worker reads",
        "nsfw" => "that are NSFW",
        "blacklist" => "that hold a word of the blacklist",
        "untrusted" => "that want a trusted worker",
        "worker_id" => "that want other workers",
        "kudos" => "that come from users without the kudos asked for",
        "performance" => "that want a faster worker",
        "bridge_version" => "that want a bridge agent with more features (see `doctor`)",
        "img2img" => "that start from a picture",
        "painting" => "that are inpainting",
        "post-processing" => "that want post-processing",
        "lora" => "that want LoRAs",
        "controlnet" => "that want ControlNet",
        "step_count" => "that want more steps than this worker makes",
        "unsafe_ip" => "that come from an address that hides its user",
        "matching_softprompt" => "that want a soft prompt that is not here",
        "unknown" => "for a reason the Horde does not give",
        other => return format!("for `{}`", crate::text::printable(other)),
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_short_and_survive_nonsense() {
        assert_eq!(span(45.9), "45 s");
        assert_eq!(span(720.0), "12 min");
        assert_eq!(span(7500.0), "2 h 05 min");
        assert_eq!(span(273_600.0), "3 d 4 h");
        for nonsense in [f64::NAN, f64::NEG_INFINITY, f64::INFINITY, -3.0] {
            assert_eq!(span(nonsense), "0 s");
        }
    }

    #[test]
    fn skip_reasons_become_sentences_the_most_frequent_first() {
        let mut status = Status {
            state: State::Running,
            ..Status::default()
        };
        status.idle = Some(format!("{NO_WORK}; passed over: 3 for models"));
        status.poll.skipped = [("models", 3), ("nsfw", 20), ("new\x1b", 1), ("zero", 0)]
            .map(|(reason, count)| (reason.to_owned(), count))
            .into();
        assert_eq!(
            why_idle(&status).unwrap(),
            "the Horde has no work for this worker: passed over 20 that are NSFW; 3 that want models that are not served here; 1 for `new\\u{1b}`"
        );
    }
}
