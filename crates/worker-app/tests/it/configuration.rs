//! Layers, traps and defaults.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;
use worker_app::Stop;
use worker_app::config::{Loaded, Places, Sources, load};

/// A section with every form of value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Section {
    pub models: Vec<String>,
    pub context_tokens: u32,
    pub temperature: f64,
    pub adapter: Option<String>,
    pub layers: Option<u32>,
    pub engine: Engine,
    pub limits: Limits,
    pub hub_token: Option<String>,
    pub weights: BTreeMap<String, f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    Llama,
    Bridge,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    pub max_length: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_length: 512 }
    }
}

impl Default for Section {
    fn default() -> Self {
        Self {
            models: Vec::new(),
            context_tokens: 4096,
            temperature: 1.0,
            adapter: None,
            layers: None,
            engine: Engine::Llama,
            limits: Limits::default(),
            hub_token: None,
            weights: BTreeMap::new(),
        }
    }
}

/// A home directory of its own for one test.
pub struct House {
    pub dir: tempfile::TempDir,
    pub sources: Sources,
}

impl House {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_owned();
        let places = Places::from_env(&|name| (name == "HOME").then(|| home.to_string_lossy().into_owned())).unwrap();
        Self {
            sources: Sources {
                file: None,
                places,
                env: BTreeMap::new(),
                flags: serde_json::Map::new(),
            },
            dir,
        }
    }

    /// With a configuration at the default place.
    pub fn with_file(text: impl AsRef<[u8]>) -> Self {
        let house = Self::new();
        house.write(&house.sources.places.config_file("scribe"), text.as_ref(), 0o600);
        house
    }

    pub fn write(&self, path: &Path, bytes: &[u8], mode: u32) {
        use std::os::unix::fs::PermissionsExt;
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.sources.env.insert(name.to_owned(), value.to_owned());
        self
    }

    pub fn flag(mut self, key: &str, value: serde_json::Value) -> Self {
        self.sources.flags.insert(key.to_owned(), value);
        self
    }

    pub fn load(&self) -> Result<Loaded<Section>, Stop> {
        load("scribe", "0.1.0", &self.sources)
    }

    /// What an owner would see, without the test's own paths.
    pub fn refusal(&self) -> String {
        let stop = self.load().expect_err("must be refused");
        self.tidy(&format!("[{}] {}", stop.code as u8, stop.render()))
    }

    pub fn tidy(&self, text: &str) -> String {
        text.replace(&*self.dir.path().to_string_lossy(), "~")
    }
}

#[test]
fn without_anything_the_defaults_hold() {
    let loaded = House::new().load().unwrap();
    assert_eq!(loaded.section, Section::default());
    assert_eq!(loaded.common.horde_url.as_str(), "https://aihorde.net/api/");
    assert_eq!(loaded.common.devices, ["auto"]);
    assert_eq!(loaded.common.prefetch, 1);
    assert!(
        loaded
            .common
            .bridge_agent
            .to_string()
            .starts_with("scribe:0.1.0:https://")
    );
    assert!(!loaded.is_named && loaded.file.is_none());
}

#[test]
fn flags_stand_over_environment_over_file_over_defaults() {
    let file =
        "worker_name = \"from file\"\nprefetch = 0\nnsfw = false\ngrace = \"10s\"\n[scribe]\ncontext_tokens = 1\n";
    let house = House::with_file(file)
        .env("HORDE_WORKER_NAME", "from shared env")
        .env("SCRIBE_WORKER_NAME", "from own env")
        .env("HORDE_GRACE", "20s")
        .env("SCRIBE_CONTEXT_TOKENS", "2")
        .flag("grace", json!("30s"));
    let loaded = house.load().unwrap();
    assert_eq!(loaded.common.worker_name.as_str(), "from own env");
    assert_eq!(loaded.common.grace.as_secs(), 30);
    assert_eq!(loaded.common.prefetch, 0);
    assert!(!loaded.common.nsfw);
    assert_eq!(loaded.section.context_tokens, 2);
}

#[test]
fn text_of_digits_in_the_environment_stays_text_and_numbers_become_numbers() {
    let house = House::new()
        .env("SCRIBE_ADAPTER", "0000000000")
        .env("SCRIBE_LAYERS", "12")
        .env("SCRIBE_TEMPERATURE", "1")
        .env("SCRIBE_WORKER_NAME", "12345678")
        .env("HORDE_PREFETCH", " 2 ")
        .env("HORDE_NSFW", "false")
        .env("HORDE_API_KEY", "0123456789012345678901");
    let loaded = house.load().unwrap();
    assert_eq!(loaded.section.adapter.as_deref(), Some("0000000000"));
    assert_eq!(loaded.section.layers, Some(12));
    assert!((loaded.section.temperature - 1.0).abs() < f64::EPSILON);
    assert_eq!(loaded.common.worker_name.as_str(), "12345678");
    assert_eq!(loaded.common.prefetch, 2);
    assert!(!loaded.common.nsfw);
    assert_eq!(loaded.key.unwrap().api_key.expose(), "0123456789012345678901");
}

#[test]
fn lists_in_the_environment_are_toml_or_separated_by_commas() {
    let loaded = House::new()
        .env("HORDE_DEVICES", "cuda:0, cuda:1")
        .env("SCRIBE_MODELS", "[\"a, b\", \"c\"]")
        .load()
        .unwrap();
    assert_eq!(loaded.common.devices, ["cuda:0", "cuda:1"]);
    assert_eq!(loaded.section.models, ["a, b", "c"]);
}

#[test]
fn strangers_in_the_environment_are_left_alone_and_near_misses_are_told() {
    let loaded = House::new()
        .env("HORDE_SDK_DISABLE_CUSTOM_SINKS", "1")
        .env("HORDE_NSFW", "")
        .env("SCRIBE_CONTXT_TOKENS", "5")
        .load()
        .unwrap();
    assert!(loaded.common.nsfw, "an empty variable is as if unset");
    assert_eq!(loaded.warnings.len(), 1);
    assert!(
        loaded.warnings[0].contains("`SCRIBE_CONTEXT_TOKENS`"),
        "{:?}",
        loaded.warnings
    );
}

#[test]
fn what_a_worker_refuses_later_is_told_with_the_place_where_it_was_set() {
    let house = House::with_file("[scribe]\n\ncontext_tokens = 5\n[scribe.limits]\nmax_length = 1\n")
        .env("SCRIBE_LAYERS", "900");
    let loaded = house.load().unwrap();
    let told = |message: &str| house.tidy(&loaded.with_origin(Stop::config(message)).message);
    let file = "`~/.config/horde-workers/scribe.toml`";
    assert_eq!(
        told("`scribe.context_tokens` is `5`"),
        format!("{file}, line 3: `scribe.context_tokens` is `5`")
    );
    assert_eq!(
        told("`scribe.limits.max_length` is `1`"),
        format!("{file}, line 5: `scribe.limits.max_length` is `1`")
    );
    assert_eq!(
        told("`scribe.layers` is `900`"),
        "`SCRIBE_LAYERS` in the environment: `scribe.layers` is `900`"
    );
    assert_eq!(told("`scribe.temperature` is `9`"), "`scribe.temperature` is `9`");
}

#[test]
fn byte_order_mark_crlf_and_tabs_are_no_trouble() {
    let house =
        House::with_file("\u{feff}worker_name\t=\t\"from windows\"\r\n\r\n[scribe]\r\n\tcontext_tokens = 77\r\n");
    let loaded = house.load().unwrap();
    assert_eq!(loaded.common.worker_name.as_str(), "from windows");
    assert_eq!(loaded.section.context_tokens, 77);
}

#[test]
fn a_path_is_taken_as_it_is_and_never_searched_for_above() {
    let mut house = House::with_file("worker_name = \"default place\"\n");
    house.sources.file = Some(PathBuf::from("scribe.toml"));
    assert!(house.load().unwrap_err().message.contains("no such file"));
}

#[test]
fn paths_begin_at_home_and_state_and_models_have_places() {
    let loaded = House::with_file("models_dir = \"~/models\"\nstate_dir = \"/var/lib/x\"\n")
        .load()
        .unwrap();
    assert!(loaded.common.models_dir.is_absolute() && loaded.common.models_dir.ends_with("models"));
    assert_eq!(loaded.common.state_dir, Path::new("/var/lib/x"));
    let defaults = House::new();
    let loaded = defaults.load().unwrap();
    assert_eq!(
        loaded.common.state_dir,
        defaults.dir.path().join(".local/state/horde-workers/scribe")
    );
    assert_eq!(
        loaded.common.models_dir,
        defaults.dir.path().join(".cache/horde-workers/models")
    );
}

#[test]
fn the_files_in_configs_load_and_share_their_common_part() {
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    let mut common_parts = Vec::new();
    for name in ["scribe", "alchemist", "dreamer"] {
        let path = configs.join(format!("{name}.toml"));
        let text = std::fs::read_to_string(&path).unwrap();
        let mut house = House::new();
        house.sources.file = Some(path);
        // Each worker's own tests look at its section; here any key will do there.
        let loaded: Loaded<BTreeMap<String, serde_json::Value>> = load(name, "0.1.0", &house.sources).unwrap();
        assert!(loaded.is_named);
        let (common, _) = text.split_once(&format!("\n[{name}]")).unwrap();
        let keys: Vec<String> = common
            .lines()
            .map(|line| line.trim_start_matches("# "))
            .filter(|line| is_setting(line))
            .filter_map(|line| Some(line.split_once(" = ")?.0.to_owned()))
            .collect();
        common_parts.push(keys);
        // What stands behind a `#` is a default: uncommented, the file still loads and changes nothing else.
        let uncommented: String = common
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest) if is_setting(rest) && !rest.starts_with("proxy") && !rest.starts_with("api_key_file") => {
                    rest
                }
                _ => line,
            })
            .collect::<Vec<_>>()
            .join("\n");
        let house = House::new();
        let file = house.sources.places.config_file(name);
        house.write(&file, uncommented.as_bytes(), 0o600);
        let again: Loaded<BTreeMap<String, serde_json::Value>> = load(name, "0.1.0", &house.sources).unwrap();
        assert_eq!(again.common.grace, loaded.common.grace);
        assert_eq!(again.common.devices, loaded.common.devices);
        assert_eq!(again.common.prefetch, loaded.common.prefetch);
        assert_eq!(again.common.nsfw, loaded.common.nsfw);
        assert_eq!(again.common.log, loaded.common.log);
        assert_eq!(again.common.horde_url, loaded.common.horde_url);
    }
    assert!(
        common_parts.iter().all(|part| *part == common_parts[0]),
        "{common_parts:#?}"
    );
}

fn is_setting(line: &str) -> bool {
    line.split_once(" = ")
        .is_some_and(|(key, _)| key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'))
}
