//! The section `[alchemist]` of the configuration.

use serde::{Deserialize, Serialize};

use crate::forms;

/// What the owner decides about forms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Forms to serve, as the Horde spells them; empty serves every form whose files are there.
    pub forms: Vec<String>,
    /// Largest source, in tiles of 512×512: 1 to 256. The Horde withholds larger ones.
    pub max_tiles: u32,
    /// Forms worked on at once per device, 1 to 8.
    pub threads: usize,
    /// Score from which `open_nsfw` calls a picture not safe for work, 0 to 1.
    pub nsfw_threshold: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            forms: Vec::new(),
            max_tiles: 16,
            threads: 1,
            nsfw_threshold: 0.8,
        }
    }
}

impl Config {
    /// Why a value cannot be, naming its key.
    pub fn check(&self) -> Result<(), String> {
        if let Some(unknown) = self
            .forms
            .iter()
            .find(|f| !forms::KNOWN.iter().any(|k| k.as_str() == f.as_str()))
        {
            return Err(format!(
                "`alchemist.forms` names `{unknown}`, which this worker cannot do"
            ));
        }
        if !(1..=256).contains(&self.max_tiles) {
            return Err(format!(
                "`alchemist.max_tiles` must be 1 to 256, not `{}`",
                self.max_tiles
            ));
        }
        if !(1..=8).contains(&self.threads) {
            return Err(format!("`alchemist.threads` must be 1 to 8, not `{}`", self.threads));
        }
        if !(0.0..=1.0).contains(&self.nsfw_threshold) {
            return Err(format!(
                "`alchemist.nsfw_threshold` must be 0 to 1, not `{}`",
                self.nsfw_threshold
            ));
        }
        Ok(())
    }
}
