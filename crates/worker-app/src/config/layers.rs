//! Reads the four layers and lays them over each other.
//!
//! Traps handled here: a file that does not exist is an error where it was asked for; the path is taken as it is and
//! never searched in parent directories; environment values are taken as text where text is wanted, so a key made of
//! digits stays a key; variables nobody knows are left alone; error paths lose the profile they begin with.

use std::collections::BTreeMap;
use std::path::PathBuf;

use figment::value::{Dict, Map};
use figment::{Figment, Metadata, Profile, Provider};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::environment::environment;
use super::file::File;
use super::key::Key;
use super::origin::Origin;
use super::raw::Raw;
use super::{Common, Places, resolve};
use crate::stop::Stop;

/// Names of layers, as errors give them.
pub(super) const FLAGS: &str = "the command line";
pub(super) const DEFAULTS: &str = "defaults";

/// Where the layers come from; tests give their own.
#[derive(Clone, Debug)]
pub struct Sources {
    /// `--config`, or `NAME_CONFIG`; must exist when given.
    pub file: Option<PathBuf>,
    /// Base directories.
    pub places: Places,
    /// The environment.
    pub env: BTreeMap<String, String>,
    /// Flags of the command line, by common key.
    pub flags: serde_json::Map<String, Value>,
}

/// A whole configuration.
#[derive(Debug)]
pub struct Loaded<C> {
    /// The common part.
    pub common: Common,
    /// The worker's own section.
    pub section: C,
    /// The key, or why there is none. Verbs that do not speak to the Horde ignore it.
    pub key: Result<Key, Stop>,
    /// The file that was read, if there was one.
    pub file: Option<PathBuf>,
    /// Whether the owner named the worker; without a name it cannot run.
    pub is_named: bool,
    /// What looks wrong and is not.
    pub warnings: Vec<String>,
    /// Where each value that is no default was set, by its key (`worker_name`, `scribe.model`).
    pub origins: BTreeMap<String, String>,
}

impl<C> Loaded<C> {
    /// `stop`, with the place where the first key it names was set.
    pub fn with_origin(&self, stop: Stop) -> Stop {
        let mut quoted = stop.message.split('`').skip(1).step_by(2);
        match quoted.find_map(|key| self.origins.get(key)) {
            Some(origin) => Stop {
                message: format!("{origin}: {}", stop.message),
                ..stop
            },
            None => stop,
        }
    }
}

/// Loads the configuration of the worker `name` (version `version`) whose own section is `C`.
pub fn load<C>(name: &str, version: &str, sources: &Sources) -> Result<Loaded<C>, Stop>
where
    C: Serialize + DeserializeOwned + Default,
{
    let defaults = Defaults::of::<C>(name)?;
    let file = File::read(name, sources)?;
    if let Some(file) = &file {
        file.refuse_unknown_keys(&defaults)?;
    }
    let (env, env_names, mut warnings) = environment::<C>(&defaults, &sources.env);

    let mut figment = Figment::from(Layer::new(DEFAULTS, &defaults.all)?);
    if let Some(file) = &file {
        figment = figment.merge(Layer::new(&file.shown(), &file.value)?);
    }
    figment = figment
        .merge(Layer::new("the environment", &env)?)
        .merge(Layer::new(FLAGS, &Value::Object(sources.flags.clone()))?);

    let origin = Origin {
        figment: &figment,
        file: file.as_ref(),
        env_names: &env_names,
    };
    let mut origins = BTreeMap::new();
    let flags = Value::Object(sources.flags.clone());
    for layer in [file.as_ref().map(|file| &file.value), Some(&env), Some(&flags)]
        .into_iter()
        .flatten()
    {
        each_key(layer, "", &mut |key| {
            drop(origins.insert(key.to_owned(), origin.of(key)))
        });
    }
    let raw: Raw = figment.extract().map_err(|error| origin.explain(error, None))?;
    let section: C = figment
        .focus(name)
        .extract()
        .map_err(|error| origin.explain(error, Some(name)))?;
    let common = resolve::common(&raw, name, version, &sources.places, &origin)?;
    let key = Key::find(&raw, &sources.places, &origin, &mut warnings);
    Ok(Loaded {
        is_named: raw.worker_name.is_some(),
        common,
        section,
        key,
        file: file.map(|file| file.path),
        warnings,
        origins,
    })
}

/// The serialised defaults: both the lowest layer and the list of known keys.
pub(super) struct Defaults {
    pub(super) name: String,
    pub(super) all: Value,
}

impl Defaults {
    fn of<C: Serialize + Default>(name: &str) -> Result<Self, Stop> {
        let broken = |error: serde_json::Error| Stop::failed(format!("the built-in defaults are broken: {error}"));
        let mut all = serde_json::to_value(Raw::default()).map_err(broken)?;
        let section = serde_json::to_value(C::default()).map_err(broken)?;
        if let Value::Object(all) = &mut all {
            all.insert(name.to_owned(), section);
        }
        Ok(Self {
            name: name.to_owned(),
            all,
        })
    }

    pub(super) fn common_keys(&self) -> impl Iterator<Item = &str> {
        keys(&self.all).filter(|key| *key != self.name)
    }

    pub(super) fn section_keys(&self) -> impl Iterator<Item = &str> {
        self.all.get(&self.name).into_iter().flat_map(keys)
    }
}

fn keys(value: &Value) -> impl Iterator<Item = &str> {
    value.as_object().into_iter().flatten().map(|(key, _)| key.as_str())
}

/// Calls `told` with every key of `layer`, sections and what is in them.
fn each_key(layer: &Value, prefix: &str, told: &mut dyn FnMut(&str)) {
    for (name, value) in layer.as_object().into_iter().flatten() {
        let key = if prefix.is_empty() {
            name.clone()
        } else {
            format!("{prefix}.{name}")
        };
        told(&key);
        each_key(value, &key, told);
    }
}

/// One layer for figment.
struct Layer {
    name: String,
    dict: Dict,
}

impl Layer {
    fn new(name: &str, value: &Value) -> Result<Self, Stop> {
        let dict = figment::value::Value::serialize(value)
            .ok()
            .and_then(figment::value::Value::into_dict)
            .ok_or_else(|| Stop::failed(format!("the layer {name} is no table")))?;
        Ok(Self {
            name: name.to_owned(),
            dict,
        })
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.dict.clone()))
    }
}
