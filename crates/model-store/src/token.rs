//! Secrets of download services, each tied to the host it may be shown to.

use std::fmt;

/// A secret that prints as `****`.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Wraps a token; surrounding white space is dropped.
    pub fn new(token: impl AsRef<str>) -> Self {
        Self(token.as_ref().trim().to_owned())
    }

    /// The token itself, for the header that carries it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("****")
    }
}

/// A token and the only host, with its subdomains, that ever gets it.
#[derive(Clone, Debug)]
pub struct HostToken {
    /// Host name in lower case, without port.
    pub host: String,
    /// The secret.
    pub token: Token,
}

impl HostToken {
    /// A token for CivitAI and its subdomains.
    pub fn civitai(token: Token) -> Self {
        Self {
            host: "civitai.com".into(),
            token,
        }
    }

    /// A token for the Hugging Face hub. Its storage hosts live under another domain and get signed links instead.
    pub fn hub(token: Token) -> Self {
        Self {
            host: "huggingface.co".into(),
            token,
        }
    }

    pub(crate) fn covers(&self, host: &str) -> bool {
        let inside = host.strip_suffix(self.host.as_str());
        inside.is_some_and(|front| front.is_empty() || front.ends_with('.'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_for_its_host_and_subdomains_only() {
        let token = HostToken::civitai(Token::new(" secret\n"));
        assert!(token.covers("civitai.com") && token.covers("api.civitai.com"));
        assert!(
            !token.covers("evilcivitai.com")
                && !token.covers("civitai.com.evil.org")
                && !token.covers("huggingface.co")
        );
        assert_eq!(format!("{token:?}"), "HostToken { host: \"civitai.com\", token: **** }");
        assert_eq!(token.token.expose(), "secret");
    }
}
