//! Values that must not be seen: they print as `****` and are let out by name only.

/// An API key of the Horde or another service.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

/// A presigned address: whoever has it may read or write the object.
#[derive(Clone, PartialEq, Eq)]
pub struct SignedUrl(url::Url);

impl ApiKey {
    /// Wraps a key. Surrounding white space is dropped.
    pub fn new(key: impl AsRef<str>) -> Self {
        Self(key.as_ref().trim().to_owned())
    }

    /// The key itself, for the header that carries it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl SignedUrl {
    /// Wraps an address.
    pub fn new(url: url::Url) -> Self {
        Self(url)
    }

    /// The address itself, for the request that uses it.
    pub fn expose(&self) -> &url::Url {
        &self.0
    }
}

macro_rules! prints_as_stars {
    ($($name:ident),*) => {$(
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("****")
            }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("****")
            }
        }
    )*};
}
prints_as_stars!(ApiKey, SignedUrl);
