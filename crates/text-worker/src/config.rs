//! The section `[scribe]`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use textgen::bridge::{BridgeSettings, Dialect};
use textgen::settings::LlamaSettings;

/// What the owner sets for text. Defaults serve the demo model on whatever device there is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What writes the text.
    pub engine: EngineKind,
    /// The GGUF file: a path, or a name in the models directory or its folder `text`.
    pub model: String,
    /// Name at the Horde; empty makes `koboldcpp/NAME` from the file.
    pub model_name: String,
    /// Longest answer offered, in tokens; 0 follows from measured speed.
    pub max_length: u32,
    /// Longest context offered, in tokens; 0 offers what a slot holds and the speed allows.
    pub max_context_length: u32,
    /// Hand very fast answers in late enough that the Horde does not take them for faked.
    pub hold_back: bool,
    /// Take chat jobs too, where the model's file brings a template for conversations.
    pub chat: bool,
    /// llama.cpp's settings.
    pub llama: LlamaSettings,
    /// The other program, for `kobold` and `openai`.
    pub bridge: BridgeSettings,
}

/// What writes the text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// llama.cpp inside scribe.
    #[default]
    Llama,
    /// KoboldCpp, or what speaks its API.
    Kobold,
    /// Aphrodite, TabbyAPI, vLLM, llama-server: what has `/v1/completions`.
    OpenAi,
}

/// The model that comes first when nothing is configured.
pub(crate) const DEMO_MODEL: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

impl Default for Config {
    fn default() -> Self {
        Self {
            engine: EngineKind::default(),
            model: DEMO_MODEL.to_owned(),
            model_name: String::new(),
            max_length: 0,
            max_context_length: 0,
            hold_back: true,
            chat: false,
            llama: LlamaSettings::default(),
            bridge: BridgeSettings::default(),
        }
    }
}

impl Config {
    /// The language of the other program; `None` where llama.cpp inside scribe writes.
    pub fn dialect(&self) -> Option<Dialect> {
        match self.engine {
            EngineKind::Llama => None,
            EngineKind::Kobold => Some(Dialect::Kobold),
            EngineKind::OpenAi => Some(Dialect::OpenAi),
        }
    }

    /// Where the model's file lies, or would lie.
    pub fn model_path(&self, models_dir: &Path) -> PathBuf {
        let named = Path::new(&self.model);
        let places = [
            named.to_owned(),
            models_dir.join("text").join(named),
            models_dir.join(named),
        ];
        let first = usize::from(!named.is_absolute());
        places[first..]
            .iter()
            .find(|path| path.is_file())
            .unwrap_or(&places[first])
            .clone()
    }

    /// llama.cpp's settings with the file in them.
    pub(crate) fn llama_settings(&self, models_dir: &Path) -> LlamaSettings {
        LlamaSettings {
            model: self.model_path(models_dir),
            ..self.llama.clone()
        }
    }
}
