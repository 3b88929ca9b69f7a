//! The section `[alchemist]` of the configuration.

use serde::{Deserialize, Serialize};

use crate::forms::{self, Wanted};

/// What the owner decides about forms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Forms to serve, as the Horde spells them; empty serves every form whose files are there.
    pub forms: Vec<String>,
    /// Largest source, in tiles of 512×512: 1 to 256. The Horde withholds larger ones. Less is asked for where a form was
    /// measured to be too slow for so many.
    pub max_tiles: u32,
    /// Forms worked on at once per device, 1 to 8.
    pub threads: usize,
    /// Score from which `open_nsfw` calls a picture not safe for work, 0 to 1.
    pub nsfw_threshold: f64,
    /// Serve `palette`, `describe` and `aesthetic` too, whose results no document of the Horde describes.
    pub unconfirmed: bool,
    /// Serve `annotation` where the Horde knows it; one that does not is asked without it from then on.
    pub annotation: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            forms: Vec::new(),
            max_tiles: 16,
            threads: 1,
            nsfw_threshold: 0.8,
            unconfirmed: false,
            annotation: true,
        }
    }
}

impl Config {
    /// Which forms the owner wants.
    pub fn wanted(&self) -> Wanted {
        Wanted {
            named: self.forms.clone(),
            unconfirmed: self.unconfirmed,
            annotation: self.annotation,
        }
    }

    /// The first form that is named and that this worker cannot do.
    pub fn unknown_form(&self) -> Option<&str> {
        let is_known = |name: &str| forms::KNOWN.iter().any(|known| known.as_str() == name);
        self.forms.iter().map(String::as_str).find(|name| !is_known(name))
    }

    /// Why a value cannot be, naming its key.
    pub fn check(&self) -> Result<(), String> {
        if let Some(unknown) = self.unknown_form() {
            return Err(format!(
                "`alchemist.forms` names `{unknown}`, which this worker cannot do"
            ));
        }
        let wanted = self.wanted();
        let switched_off = |name: &&String| {
            forms::KNOWN
                .iter()
                .any(|form| form.as_str() == name.as_str() && !wanted.has(form))
        };
        if let Some(off) = self.forms.iter().find(switched_off) {
            let key = if off == "annotation" {
                "annotation"
            } else {
                "unconfirmed"
            };
            return Err(format!(
                "`alchemist.forms` names `{off}`, which needs `alchemist.{key} = true`"
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
