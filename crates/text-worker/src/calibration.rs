//! What was measured of an embedded engine, kept in the state folder so that the next start need not measure again.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use textgen::settings::LlamaSettings;

/// Everything that a speed depends on; one that differs in anything is measured anew.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setup {
    /// The program that measured.
    pub build: Build,
    /// The model's file.
    pub model: File,
    /// The device's name, as configured.
    pub device: String,
    /// The processor, where the system names it.
    pub processor: String,
    /// Every setting, with slots and context as the memory plan chose them.
    pub llama: LlamaSettings,
}

/// A build of this program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Build {
    /// Its version.
    pub version: String,
    /// Its executable, of which every build has another.
    pub executable: File,
}

/// A file as far as a glance tells it from another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct File {
    /// Where it lies.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// When it was written, in milliseconds of Unix time.
    pub modified_unix_ms: u64,
}

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Jobs at once.
    pub slots: usize,
    /// Tokens written per second and slot, with every slot busy.
    pub write_per_second: f64,
    /// Prompt tokens read per second, with every slot busy.
    pub read_per_second: f64,
    /// Prompt tokens of one batch that take about half a second.
    pub prefill_tokens: u32,
    /// When it was measured, in milliseconds of Unix time.
    pub unix_ms: u64,
    /// How long that took, in milliseconds.
    pub took_ms: u64,
}

/// One measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Of what.
    pub setup: Setup,
    /// What was found.
    pub measured: Measured,
}

/// The measurements of one device, the newest first.
#[derive(Clone, Debug)]
pub struct Calibrations {
    path: PathBuf,
}

/// What an engine is started with, and where what is measured of it goes.
#[derive(Debug, Default)]
pub struct Calibration {
    /// What was measured before.
    pub known: Option<Measured>,
    /// Whether fewer slots than the engine has may be used, where they are too slow all together.
    pub may_use_fewer_slots: bool,
    /// Prompt tokens of one batch, as the engine has them.
    pub prefill_tokens: u32,
    place: Option<(Calibrations, Setup)>,
}

/// The folder in the state folder; a file for each device, as each has a process of its own.
const FOLDER: &str = "calibration";
/// Setups that are kept: more than an owner switches between.
const MOST: usize = 16;
/// Largest file that is read.
const MAX_BYTES: u64 = 256 << 10;

impl Setup {
    /// For `llama`, with slots and context chosen, on `device`.
    ///
    /// # Errors
    /// The model or this program cannot be looked at.
    pub fn of(llama: &LlamaSettings, device: &str) -> std::io::Result<Self> {
        Ok(Self {
            build: Build {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                executable: File::of(&std::env::current_exe()?)?,
            },
            model: File::of(&llama.model)?,
            device: device.to_owned(),
            processor: processor(),
            llama: LlamaSettings {
                model: PathBuf::new(),
                ..llama.clone()
            },
        })
    }
}

impl File {
    fn of(path: &Path) -> std::io::Result<Self> {
        let path = path.canonicalize()?;
        let about = path.metadata()?;
        Ok(Self {
            bytes: about.len(),
            modified_unix_ms: unix_ms(about.modified()?),
            path,
        })
    }
}

impl Measured {
    /// Whether an engine could have been found like that: a file may hold anything.
    fn is_sane(&self) -> bool {
        let is_speed = |speed: f64| speed.is_finite() && speed > 0.0;
        (1..=64).contains(&self.slots)
            && is_speed(self.write_per_second)
            && is_speed(self.read_per_second)
            && (16..=512).contains(&self.prefill_tokens)
    }
}

impl Calibration {
    /// What is known in `state_dir` of `llama`, with slots and context chosen, on `device`.
    pub fn of(state_dir: &Path, llama: &LlamaSettings, device: &str) -> Self {
        let setup = match Setup::of(llama, device) {
            Ok(setup) => setup,
            Err(error) => {
                tracing::warn!(%error, "what is measured cannot be kept");
                return Self::default();
            }
        };
        let calibrations = Calibrations::of(state_dir, device);
        Self {
            known: calibrations.find(&setup),
            place: Some((calibrations, setup)),
            ..Self::default()
        }
    }

    /// Keeps `measured` for the next start.
    pub fn keep(&mut self, measured: Measured) {
        self.known = Some(measured);
        if let Some((calibrations, setup)) = &self.place {
            calibrations.keep(setup, measured);
        }
    }
}

impl Calibrations {
    /// Those of `device` in `state_dir`.
    pub fn of(state_dir: &Path, device: &str) -> Self {
        let name: String = device
            .chars()
            .map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' })
            .collect();
        Self {
            path: state_dir.join(FOLDER).join(format!("{name}.json")),
        }
    }

    /// Those of every device in `state_dir`.
    pub fn all(state_dir: &Path) -> Vec<Self> {
        let files = std::fs::read_dir(state_dir.join(FOLDER)).into_iter().flatten();
        let paths = files.filter_map(Result::ok).map(|file| file.path());
        let mut all: Vec<Self> = paths
            .filter(|path| path.extension().is_some_and(|end| end == "json"))
            .map(|path| Self { path })
            .collect();
        all.sort_by(|a, b| a.path.cmp(&b.path));
        all
    }

    /// The device they are of, as far as the file's name tells.
    pub fn device(&self) -> String {
        self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// All of them; none where nothing was measured.
    ///
    /// # Errors
    /// Says in words what is wrong with the file.
    pub fn read(&self) -> Result<Vec<Record>, String> {
        let mut text = String::new();
        let read = std::fs::File::open(&self.path).and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text));
        match read {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error.to_string()),
        }
        let records: Vec<Record> = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        match records.iter().find(|record| !record.measured.is_sane()) {
            Some(record) => Err(format!("it holds the impossible {:?}", record.measured)),
            None => Ok(records),
        }
    }

    /// What was measured of `setup`. A file that cannot be used is told once and counts for nothing.
    pub fn find(&self, setup: &Setup) -> Option<Measured> {
        match self.read() {
            Ok(records) => records
                .into_iter()
                .find(|record| record.setup == *setup)
                .map(|record| record.measured),
            Err(why) => {
                let path = self.path.display().to_string();
                tracing::warn!(
                    path,
                    why,
                    "what was measured before cannot be used; the engine is measured anew"
                );
                None
            }
        }
    }

    /// Keeps `measured` for `setup`, first of all. What cannot be written is told and measured again the next time.
    pub fn keep(&self, setup: &Setup, measured: Measured) {
        let mut records = self.read().unwrap_or_default();
        records.retain(|record| record.setup != *setup);
        records.insert(
            0,
            Record {
                setup: setup.clone(),
                measured,
            },
        );
        records.truncate(MOST);
        if let Err(error) = self.write(&records) {
            let path = self.path.display().to_string();
            tracing::warn!(path, %error, "what was measured cannot be kept; the next start measures again");
        }
    }

    /// Forgets all of them.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn forget(&self) -> std::io::Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn write(&self, records: &[Record]) -> std::io::Result<()> {
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let temporary = self.path.with_extension("new");
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(records)?)?;
        file.sync_all()?;
        std::fs::rename(&temporary, &self.path)
    }
}

/// Now, in milliseconds of Unix time.
pub fn now_unix_ms() -> u64 {
    unix_ms(SystemTime::now())
}

/// Milliseconds, as far as they can be counted.
pub fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn unix_ms(time: SystemTime) -> u64 {
    milliseconds(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("model name"));
    let name = line.and_then(|line| line.split_once(':'));
    name.map_or("", |(_, name)| name.trim()).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(write_per_second: f64) -> Measured {
        Measured {
            slots: 2,
            write_per_second,
            read_per_second: 80.0,
            prefill_tokens: 128,
            unix_ms: 1,
            took_ms: 2,
        }
    }

    #[test]
    fn a_speed_is_known_for_the_setup_it_was_measured_of_alone() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("m.gguf");
        std::fs::write(&model, "weights").unwrap();
        let setup = |llama: LlamaSettings| {
            Setup::of(
                &LlamaSettings {
                    model: model.clone(),
                    ..llama
                },
                "cuda:0",
            )
            .unwrap()
        };
        let first = setup(LlamaSettings::default());
        let kept = Calibrations::of(folder.path(), "cuda:0");
        assert_eq!(kept.find(&first), None, "nothing was measured");
        kept.keep(&first, measured(20.0));
        assert_eq!(kept.find(&first), Some(measured(20.0)));
        assert_eq!(
            Calibrations::of(folder.path(), "cpu").find(&first),
            None,
            "another device"
        );
        type Change = fn(&mut Setup);
        let differing: [(&str, Change); 7] = [
            ("slots", |setup| setup.llama.slots = 3),
            ("threads", |setup| setup.llama.threads = 7),
            ("flash", |setup| {
                setup.llama.flash_attention = textgen::settings::Flash::Off
            }),
            ("model", |setup| setup.model.bytes += 1),
            ("version", |setup| setup.build.version.push('a')),
            ("build", |setup| setup.build.executable.modified_unix_ms += 1),
            ("processor", |setup| setup.processor.push('!')),
        ];
        for (what, change) in differing {
            let mut other = first.clone();
            change(&mut other);
            assert_eq!(kept.find(&other), None, "{what}");
        }
        // An owner who switches between two models has both.
        let second = setup(LlamaSettings {
            threads: 7,
            ..LlamaSettings::default()
        });
        kept.keep(&second, measured(30.0));
        kept.keep(&first, measured(21.0));
        assert_eq!(
            (kept.find(&first), kept.find(&second)),
            (Some(measured(21.0)), Some(measured(30.0)))
        );
        assert_eq!(kept.read().unwrap().len(), 2);
        assert_eq!(Calibrations::all(folder.path()).len(), 1);
        std::fs::write(&model, "other weights").unwrap();
        assert_eq!(
            kept.find(&setup(LlamaSettings::default())),
            None,
            "another file of that name"
        );
        kept.forget().unwrap();
        assert_eq!(kept.find(&first), None, "forgotten");
        kept.forget().unwrap();
    }

    #[test]
    fn a_file_that_holds_nonsense_counts_for_nothing_and_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("m.gguf");
        std::fs::write(&model, "weights").unwrap();
        let setup = Setup::of(&LlamaSettings::for_model(&model), "cpu").unwrap();
        let kept = Calibrations::of(folder.path(), "cpu");
        let with = |change: fn(&mut Measured)| {
            let mut measured = measured(20.0);
            change(&mut measured);
            serde_json::to_string(&[Record {
                setup: setup.clone(),
                measured,
            }])
            .unwrap()
        };
        kept.keep(&setup, measured(20.0));
        for text in [
            String::new(),
            "[{".into(),
            "\0\0\0".into(),
            "[".repeat(200_000),
            with(|measured| measured.write_per_second = -1.0),
            with(|measured| measured.read_per_second = 0.0),
            with(|measured| measured.slots = 0),
            with(|measured| measured.slots = 1_000_000),
            with(|measured| measured.prefill_tokens = 1),
        ] {
            std::fs::write(&kept.path, &text).unwrap();
            assert!(kept.read().is_err(), "{}", text.chars().take(60).collect::<String>());
            assert_eq!(kept.find(&setup), None);
        }
        kept.keep(&setup, measured(25.0));
        assert_eq!(kept.find(&setup), Some(measured(25.0)));
    }
}
