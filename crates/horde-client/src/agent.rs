//! Names by which a worker presents itself: the bridge agent and the worker's own name, refused here where the server
//! would refuse or silently ignore them.

use std::fmt;
use std::str::FromStr;

/// Longest agent the server stores, in characters.
const LONGEST_AGENT: usize = 1000;
/// The server crashes on names longer than this.
const LONGEST_NAME: usize = 100;
/// Renaming enforces this; shorter names work until then.
const SHORTEST_NAME: usize = 5;

/// `Name:version:contact` as the server parses it: split at the first two colons, the version semantic with optional
/// minor and patch numbers. What does not parse there counts as an unknown agent without a sign, so it is refused here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeAgent {
    name: String,
    version: String,
    contact: String,
}

/// A worker's name, unique over all users and kinds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerName(String);

/// Why a name was refused, with what to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NameError(String);

impl BridgeAgent {
    /// Builds an agent from its three parts.
    pub fn new(name: &str, version: &str, contact: &str) -> Result<Self, NameError> {
        let error = |text: String| Err(NameError(text));
        for (part, what) in [(name, "name"), (version, "version"), (contact, "contact")] {
            if part.is_empty() || part.trim() != part || part.chars().any(char::is_control) {
                return error(format!(
                    "the bridge agent's {what} `{}` is empty or has blanks around it",
                    part.escape_default()
                ));
            }
        }
        if name.contains(':') {
            return error(format!("the bridge agent's name `{name}` holds a colon"));
        }
        if !is_lenient_semver(version) {
            return error(format!(
                "the bridge agent's version `{version}` is not like `1`, `1.2`, `1.2.3` or `1.2.3+extra`"
            ));
        }
        let agent = Self {
            name: name.to_owned(),
            version: version.to_owned(),
            contact: contact.to_owned(),
        };
        if agent.to_string().chars().count() > LONGEST_AGENT {
            return error(format!("the bridge agent is longer than {LONGEST_AGENT} characters"));
        }
        Ok(agent)
    }

    /// The part the server looks up in its table; case and blanks count.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Major version, which decides the features of a known name.
    pub fn major(&self) -> u64 {
        self.version
            .split(['.', '+', '-'])
            .next()
            .and_then(|number| number.parse().ok())
            .unwrap_or(0)
    }
}

impl FromStr for BridgeAgent {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.splitn(3, ':').collect::<Vec<_>>()[..] {
            [name, version, contact] => Self::new(name, version, contact),
            _ => Err(NameError(format!(
                "the bridge agent `{}` is not `Name:version:contact`",
                text.escape_default()
            ))),
        }
    }
}

impl fmt::Display for BridgeAgent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.name, self.version, self.contact)
    }
}

impl WorkerName {
    /// The name as sent.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for WorkerName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let n_chars = text.chars().count();
        let lower = text.to_lowercase();
        let refused = |why: String| Err(NameError(format!("the worker name `{}` {why}", text.escape_default())));
        if !(SHORTEST_NAME..=LONGEST_NAME).contains(&n_chars) {
            return refused(format!(
                "has {n_chars} characters; the Horde takes {SHORTEST_NAME} to {LONGEST_NAME}"
            ));
        }
        if text.trim() != text || text.chars().any(char::is_control) {
            return refused("has blanks around it or control characters".to_owned());
        }
        if let Some(character) = text.chars().find(|character| matches!(character, '<' | '>' | '&')) {
            return refused(format!("holds `{character}`, which the Horde rewrites"));
        }
        if let Some(word) = ["colab", "tpu", "google"].into_iter().find(|word| lower.contains(word)) {
            return refused(format!("holds `{word}`, which the Horde refuses"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for WorkerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Semantic version 2.0 where minor and patch may be missing. A pre-release parses but loses its level: refused too.
fn is_lenient_semver(version: &str) -> bool {
    let (numbers, build) = version
        .split_once('+')
        .map_or((version, None), |(numbers, build)| (numbers, Some(build)));
    let numbers: Vec<&str> = numbers.split('.').collect();
    let is_number = |text: &&str| {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        digits && !text.is_empty() && text.len() <= 9 && (text.len() == 1 || !text.starts_with('0'))
    };
    let is_identifier =
        |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    (1..=3).contains(&numbers.len())
        && numbers.iter().all(is_number)
        && build.is_none_or(|build| build.split('.').all(is_identifier))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_the_server_parses_pass_and_others_do_not() {
        for text in [
            "scribe:0.1.0:https://example.org/a:b",
            "AI Horde Worker:24:u",
            "n:13.0.0+scribe.0.1.0:u",
            "n:1.2:u",
        ] {
            let agent: BridgeAgent = text.parse().expect(text);
            assert_eq!(agent.to_string(), text);
        }
        for text in [
            "scribe",
            "scribe:1",
            "n:v13.0.0:u",
            "n:13.0.0rc1:u",
            "n:013.0.0:u",
            "n:13.0.0.1:u",
            " n:1:u",
            "n: 1:u",
            "n:1:u ",
            ":1:u",
            "n::u",
            "n:1:",
            "n:1.0.0-beta.1:u",
        ] {
            assert!(text.parse::<BridgeAgent>().is_err(), "{text} was taken");
        }
        assert!(BridgeAgent::new("n", "1", &"x".repeat(2_000)).is_err());
    }

    #[test]
    fn f122_worker_names_follow_the_servers_rules() {
        for good in ["my-worker", "Wörker 5", "a".repeat(100).as_str()] {
            assert!(good.parse::<WorkerName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "abcd",
            "a".repeat(101).as_str(),
            "my colab box",
            "TPUmaster",
            "ask-Google",
            "a<b>ccc",
            "tom&co",
            " spaced",
            "line\nbreak",
        ] {
            assert!(bad.parse::<WorkerName>().is_err(), "{bad}");
        }
    }
}
