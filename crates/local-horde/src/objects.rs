//! The object store: presigned addresses that expire, PUT by workers, GET by whoever has the address.

use std::collections::HashMap;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::Instant;

/// Stored objects and the rule by which addresses are signed.
pub struct Objects {
    base: String,
    secret: u64,
    lifetime: Duration,
    started: Instant,
    stored: HashMap<String, Vec<u8>>,
    /// Uploads that were taken, by key.
    pub puts: HashMap<String, u32>,
}

/// Why an object's address did not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// Signature wrong or expired: 403.
    Forbidden,
    /// Nothing there: 404.
    Missing,
    /// No length was told: 411.
    LengthRequired,
}

impl Objects {
    /// `base` is the address in front of the keys, without a trailing slash.
    pub fn new(base: &str, secret: u64, lifetime: Duration) -> Self {
        Self {
            base: base.trim_end_matches('/').to_owned(),
            secret,
            lifetime,
            started: Instant::now(),
            stored: HashMap::new(),
            puts: HashMap::new(),
        }
    }

    /// Moves the store to another address; earlier addresses no longer resolve.
    pub fn set_base(&mut self, base: &str) {
        base.trim_end_matches('/').clone_into(&mut self.base);
    }

    /// An address for `verb` (`PUT` or `GET`) on `key`, good for the store's lifetime.
    pub fn sign(&self, verb: &str, key: &str) -> String {
        let expires = (self.started.elapsed() + self.lifetime).as_secs();
        let signature = self.signature(verb, key, expires);
        format!(
            "{}/objects/{key}?X-Amz-Expires={expires}&X-Amz-Signature={signature}",
            self.base
        )
    }

    /// Stores without an address, for the server's own copies of sources.
    pub fn put_own(&mut self, key: &str, bytes: Vec<u8>) {
        self.stored.insert(key.to_owned(), bytes);
    }

    /// What lies under a key.
    pub fn look(&self, key: &str) -> Option<&Vec<u8>> {
        self.stored.get(key)
    }

    /// Takes an upload.
    pub fn put(&mut self, key: &str, query: &str, length_told: bool, bytes: Vec<u8>) -> Result<(), Denied> {
        self.check("PUT", key, query)?;
        if !length_told {
            return Err(Denied::LengthRequired);
        }
        *self.puts.entry(key.to_owned()).or_default() += 1;
        self.stored.insert(key.to_owned(), bytes);
        Ok(())
    }

    /// Reads an object.
    pub fn get(&self, key: &str, query: &str) -> Result<Vec<u8>, Denied> {
        self.check("GET", key, query)?;
        self.stored.get(key).cloned().ok_or(Denied::Missing)
    }

    fn check(&self, verb: &str, key: &str, query: &str) -> Result<(), Denied> {
        let field = |name: &str| {
            query
                .split('&')
                .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
        };
        let expires: u64 = field("X-Amz-Expires")
            .and_then(|text| text.parse().ok())
            .ok_or(Denied::Forbidden)?;
        let good = field("X-Amz-Signature") == Some(self.signature(verb, key, expires).as_str());
        if good && self.started.elapsed().as_secs() <= expires {
            Ok(())
        } else {
            Err(Denied::Forbidden)
        }
    }

    fn signature(&self, verb: &str, key: &str, expires: u64) -> String {
        let digest = Sha256::digest(format!("{} {verb} {key} {expires}", self.secret));
        digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn f026_an_address_is_good_for_its_verb_its_key_and_its_time() {
        let mut objects = Objects::new("http://o.invalid", 1, Duration::from_secs(1800));
        let query = |address: &str| address.split_once('?').expect("a query").1.to_owned();
        let put = query(&objects.sign("PUT", "a.webp"));
        let get = query(&objects.sign("GET", "a.webp"));
        assert_eq!(objects.get("a.webp", &get), Err(Denied::Missing));
        assert_eq!(objects.put("a.webp", &put, false, vec![1]), Err(Denied::LengthRequired));
        assert_eq!(objects.put("a.webp", &put, true, vec![1]), Ok(()));
        assert_eq!(objects.put("b.webp", &put, true, vec![1]), Err(Denied::Forbidden));
        assert_eq!(objects.get("a.webp", &put), Err(Denied::Forbidden));
        assert_eq!(objects.get("a.webp", &get), Ok(vec![1]));
        tokio::time::advance(Duration::from_secs(1802)).await;
        assert_eq!(objects.get("a.webp", &get), Err(Denied::Forbidden));
    }
}
