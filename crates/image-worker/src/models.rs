//! Which models are served: the owner's words against the references, and what of it lies on disk and is sound.

use std::path::{Path, PathBuf};
use std::time::Duration;

use diffusion::ModelFiles;
use model_store::fetch::{Downloader, FetchSettings, HttpSettings};
use model_store::reference::select::{Popularity, Selection, select};
use model_store::reference::{Baseline, Catalogue, Kind, Model, Purpose};
use model_store::store::Store;
use serde::{Deserialize, Serialize};
use worker_app::{Common, Stop};

use crate::config::Config;

/// A model that can be served.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Served {
    /// By the Horde's name.
    pub name: String,
    /// A checkpoint, or a folder in diffusers' layout.
    pub checkpoint: PathBuf,
    /// A U-Net of its own.
    pub unet: Option<PathBuf>,
    /// A VAE of its own.
    pub vae: Option<PathBuf>,
    /// Its family as the reference has it.
    pub baseline: Option<Baseline>,
    /// The reference flags it.
    pub nsfw: bool,
    /// `anime`, `realistic`, …
    pub style: String,
}

impl Served {
    /// For the engine.
    pub fn files(&self) -> ModelFiles {
        ModelFiles {
            checkpoint: self.checkpoint.clone(),
            unet: self.unet.clone(),
            vae: self.vae.clone(),
        }
    }
}

/// What the owner's words came to.
#[derive(Debug, Default)]
pub struct Resolved {
    /// Sorted by name.
    pub served: Vec<Served>,
    /// Models that were wanted, and why they are not served.
    pub missing: Vec<(String, String)>,
    /// Those of them that could be served if their files were fetched.
    pub to_fetch: Vec<String>,
}

/// Resolves `dreamer.models` and looks at the files; the first look at a file reads it whole.
///
/// # Errors
/// A name nobody knows, a word that needs statistics which could not be had, a broken `models.toml`.
pub fn resolve(config: &Config, common: &Common, models_dir: &Path) -> Result<Resolved, Stop> {
    let catalogue = worker_app::models::catalogue(models_dir, &[Kind::Image])?;
    let store = Store::new(models_dir);
    let wants_statistics = config.models.iter().chain(&config.skip).any(|text| is_ranking(text));
    let popularity = if wants_statistics {
        statistics(common, models_dir)
    } else {
        None
    };
    let selection = Selection {
        wanted: config.models.clone(),
        skip: config.skip.clone(),
        large_models: false,
    };
    let selected = select(&selection, Kind::Image, &catalogue, popularity.as_ref(), &unusable).map_err(|error| {
        Stop::config(format!("`dreamer.models`: {error}")).hint("name the models, or try again when the Horde answers")
    })?;
    if let Some((unknown, similar)) = selected.unknown.first() {
        let stop = Stop::config(format!("`dreamer.models` names `{unknown}`, which nobody knows"));
        return Err(match similar {
            Some(similar) => stop.hint(format!("did you mean `{similar}`?")),
            None => stop.hint("`dreamer models list --all` shows the names; your own models belong into `models.toml`"),
        });
    }
    let mut resolved = Resolved::default();
    for model in selected
        .names
        .iter()
        .filter_map(|name| catalogue.get(Kind::Image, name))
    {
        match served(model, &store) {
            Ok(served) => resolved.served.push(served),
            Err(why) => {
                if unusable(model).is_none() && model.files.iter().all(|file| file.local_path.is_none()) {
                    resolved.to_fetch.push(model.name.clone());
                }
                resolved.missing.push((model.name.clone(), why));
            }
        }
    }
    Ok(resolved)
}

/// Every model of the catalogue whose files are there, without reading them.
pub fn on_disk(catalogue: &Catalogue, store: &Store) -> Vec<String> {
    let there = |model: &&Model| {
        use model_store::store::State;
        unusable(model).is_none() && matches!(store.state(model), State::Verified | State::Present)
    };
    catalogue
        .of_kind(Kind::Image)
        .filter(there)
        .map(|model| model.name.clone())
        .collect()
}

/// Why the engine cannot run a model, whatever lies on disk.
fn unusable(model: &Model) -> Option<String> {
    match &model.baseline {
        None | Some(Baseline::Sd1 | Baseline::Sd2At512 | Baseline::Sd2At768 | Baseline::Sdxl | Baseline::Infer) => {}
        Some(other) => return Some(format!("this build cannot run the family `{other}`")),
    }
    let whole = |purpose: &Purpose| *purpose == Purpose::Whole;
    (!model.files.iter().any(|file| whole(&file.purpose))).then(|| "it has no checkpoint in one file".to_owned())
}

fn served(model: &Model, store: &Store) -> Result<Served, String> {
    if let Some(why) = unusable(model) {
        return Err(why);
    }
    let paths = store.verified_paths(model).map_err(|report| match report.problem {
        Some(problem) => format!("`{}`: {problem}", report.path.display()),
        None => format!("`{}` is not there", report.path.display()),
    })?;
    let of = |purpose: Purpose| {
        let mut files = model.files.iter().zip(&paths);
        files
            .find(|(file, _)| file.purpose == purpose)
            .map(|(_, path)| path.clone())
    };
    Ok(Served {
        name: model.name.clone(),
        checkpoint: of(Purpose::Whole).unwrap_or_default(),
        unet: of(Purpose::Unet),
        vae: of(Purpose::Vae),
        baseline: model.baseline.clone(),
        nsfw: model.nsfw,
        style: model.style.clone(),
    })
}

fn is_ranking(text: &str) -> bool {
    let first = text.split_whitespace().next().unwrap_or_default();
    first.eq_ignore_ascii_case("top") || first.eq_ignore_ascii_case("bottom")
}

/// Age up to which a copy of the statistics is as good as new.
const FRESH: Duration = Duration::from_secs(24 * 3600);

/// What the Horde's users ask for: today's copy, or a new one, or an old one.
fn statistics(common: &Common, models_dir: &Path) -> Option<Popularity> {
    let copy = models_dir.join("references/image_statistics.json");
    let written = std::fs::metadata(&copy).and_then(|meta| meta.modified()).ok();
    let age = written.and_then(|at| at.elapsed().ok());
    let read = || Popularity::parse(&std::fs::read(&copy).ok()?).ok();
    if age.is_some_and(|age| age < FRESH)
        && let Some(known) = read()
    {
        return Some(known);
    }
    match asked(common) {
        Ok(text) => {
            let known = Popularity::parse(&text).ok()?;
            let kept = copy
                .parent()
                .map_or(Ok(()), std::fs::create_dir_all)
                .and_then(|()| std::fs::write(&copy, &text));
            if let Err(error) = kept {
                tracing::debug!(%error, "the statistics are not kept");
            }
            Some(known)
        }
        Err(reason) => {
            tracing::warn!(reason, "the Horde's statistics could not be had");
            read()
        }
    }
}

/// Asks from a thread of its own: the caller may stand within an async runtime.
fn asked(common: &Common) -> Result<Vec<u8>, String> {
    let url = common
        .horde_url
        .join("v2/stats/img/models")
        .map_err(|error| error.to_string())?;
    let settings = FetchSettings {
        http: HttpSettings {
            proxy: common.proxy.clone(),
            private_network: common.is_on_loopback(),
            ..HttpSettings::default()
        },
        ..FetchSettings::default()
    };
    let asking = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| error.to_string())?;
        let downloader = Downloader::new(settings).map_err(|error| error.to_string())?;
        let document = downloader.get_document(&url, 4 << 20, Duration::from_secs(20));
        runtime.block_on(document).map_err(|error| error.to_string())
    });
    asking.join().unwrap_or_else(|_| Err("asking ended in a panic".into()))
}

#[cfg(test)]
mod tests {
    use model_store::reference::local;

    use super::*;

    #[test]
    fn only_families_this_build_runs_and_whole_checkpoints_are_usable() {
        let text = |baseline: &str, purpose: &str| {
            format!(
                "[[model]]\nname = \"m\"\nkind = \"image\"\nbaseline = \"{baseline}\"\n[[model.file]]\npath = \"m.safetensors\"\npurpose = \"{purpose}\"\nlocal_path = \"/m\"\n"
            )
        };
        let why = |baseline: &str, purpose: &str| {
            let catalogue = local::parse(&text(baseline, purpose)).unwrap();
            unusable(catalogue.get(Kind::Image, "m").unwrap())
        };
        assert_eq!(why("stable_diffusion_1", "whole"), None);
        assert!(why("flux_1", "whole").unwrap().contains("flux_1"));
        assert!(why("stable_diffusion_xl", "vae").unwrap().contains("checkpoint"));
    }

    #[test]
    fn words_that_rank_need_statistics() {
        assert!(is_ranking("top 3") && is_ranking(" BOTTOM 2"));
        assert!(!is_ranking("Topaz") && !is_ranking("ALL SDXL"));
    }
}
