//! SHA-256 sums: parsed in either case, printed in lower case, taken of files in bounded memory.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;

/// A SHA-256 sum. References write 45 of theirs in upper case, so only the bytes are compared.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sha256Sum([u8; 32]);

impl Sha256Sum {
    /// The sum of bytes in memory.
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// The sum of a whole file, read in steps of 1 MiB.
    pub fn of_file(path: &Path) -> io::Result<Self> {
        Self::of_file_with(path, &mut |_| true)
    }

    /// As [`Self::of_file`]; `step` is told the bytes read so far and stops the reading with `false`.
    pub fn of_file_with(path: &Path, step: &mut dyn FnMut(u64) -> bool) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let mut sum = sha2::Sha256::new();
        let mut buffer = vec![0u8; 1 << 20];
        let mut done = 0u64;
        loop {
            let n = file.read(&mut buffer)?;
            if n == 0 {
                return Ok(Self(sum.finalize().into()));
            }
            sum.update(&buffer[..n]);
            done += n as u64;
            if !step(done) {
                return Err(io::Error::new(io::ErrorKind::Interrupted, "stopped"));
            }
        }
    }

    /// The 32 bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(crate) fn finish(hasher: sha2::Sha256) -> Self {
        Self(hasher.finalize().into())
    }
}

/// A text that is not 64 hexadecimal digits.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a SHA-256 sum (64 hexadecimal digits)")]
pub struct NotASum(String);

impl FromStr for Sha256Sum {
    type Err = NotASum;
    fn from_str(text: &str) -> Result<Self, NotASum> {
        let mut bytes = [0u8; 32];
        hex::decode_to_slice(text.trim(), &mut bytes)
            .map_err(|_| NotASum(text.chars().take(80).collect()))
            .map(|()| Self(bytes))
    }
}

impl fmt::Display for Sha256Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Sha256Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for Sha256Sum {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sha256Sum {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upper_and_lower_case_are_the_same_sum() {
        let sum = Sha256Sum::of(b"abc");
        let text = sum.to_string();
        assert_eq!(text, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(text.to_uppercase().parse::<Sha256Sum>().unwrap(), sum);
        assert!("abc".parse::<Sha256Sum>().is_err());
        assert!("zz".repeat(32).parse::<Sha256Sum>().is_err());
    }
}
