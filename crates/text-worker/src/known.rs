//! Whether the Horde's text reference knows the name that is offered. A copy of it is kept in the models directory and asked
//! for again when it is a day old; nothing waits for it.

use std::path::PathBuf;
use std::time::Duration;

use model_store::fetch::{Downloader, FetchSettings, HttpSettings};
use model_store::reference::load::{ReferenceSettings, load_offline};
use model_store::reference::refresh::{Refreshed, refresh};
use model_store::reference::{Catalogue, Kind};
use worker_app::{Check, Common, Verdict};

/// The Horde's text reference, with a copy of it here.
pub(crate) struct Reference {
    /// The folder with the copy.
    folder: PathBuf,
    /// Where it is asked for; `None` asks nobody.
    source: Option<(ReferenceSettings, Downloader)>,
}

/// The folder of the models directory with copies of the Horde's references.
const FOLDER: &str = "references";
/// The text reference in it, in the shape of the Horde's `db.json` or of its newer service.
const FILE: &str = "text_generation.json";
/// How old the copy may grow.
const MAX_AGE: Duration = Duration::from_secs(24 * 3_600);
/// How often a running worker looks at its age, and at the name where that is not known yet.
const LOOK: Duration = Duration::from_secs(3_600);
const LOOK_FOR_NAME: Duration = Duration::from_secs(10);
/// Names of engines that stand before names of models.
const ENGINES: [&str; 3] = ["koboldcpp/", "aphrodite/", "tabbyapi/"];
/// Names less alike than this are not proposed (Jaro-Winkler, 0 to 1).
const ALIKE: f64 = 0.85;
/// Most names that are proposed.
const PROPOSED: usize = 3;

impl Reference {
    /// As configured. A Horde on this machine has no reference.
    pub(crate) fn of(common: &Common) -> Self {
        let settings = FetchSettings {
            http: HttpSettings {
                proxy: common.proxy.clone(),
                ..HttpSettings::default()
            },
            ..FetchSettings::default()
        };
        let downloader = Downloader::new(settings).ok().filter(|_| !common.is_on_loopback());
        Self {
            folder: common.models_dir.join(FOLDER),
            source: downloader.map(|downloader| (ReferenceSettings::default(), downloader)),
        }
    }

    /// Has the copy at most a day old, where that can be; an older one is as good as none is bad.
    pub(crate) async fn freshen(&self) {
        let Some((settings, downloader)) = &self.source else {
            return;
        };
        if let Refreshed::Failed(problems) = refresh(Kind::Text, settings, &self.folder, MAX_AGE, downloader).await {
            tracing::debug!(?problems, "the Horde's text reference cannot be had");
        }
    }

    /// Looks `name` up in the copy; `None` without one.
    pub(crate) fn check(&self, name: &str) -> Option<Check> {
        if !self.folder.join(FILE).is_file() {
            return None;
        }
        let catalogue = load_offline(&[Kind::Text], &self.folder);
        if is_known(&catalogue, name) {
            return Some(Check::ok("name", format!("the Horde's reference knows `{name}`")));
        }
        let message = format!("the Horde's reference does not know `{name}`: such a name earns a fraction");
        let alike = alike(&catalogue, name);
        Some(Check::warn("name", message).hint(match alike.split_first() {
            Some((first, others)) => {
                let others: Vec<String> = others.iter().map(|name| format!("`{name}`")).collect();
                let others = if others.is_empty() {
                    String::new()
                } else {
                    format!(" (also near: {})", others.join(", "))
                };
                format!("if it is the same model, set `scribe.model_name = \"{first}\"`{others}")
            }
            None => "set `scribe.model_name` to the reference's name of this model, if it has one".to_owned(),
        }))
    }

    /// For `doctor`: freshens, then looks up. Blocks until the sources have answered or their deadline is over.
    pub(crate) fn asked(self, name: &str) -> Option<Check> {
        // A thread of its own: doctor may stand within an async runtime.
        let asking = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            match runtime {
                Ok(runtime) => runtime.block_on(self.freshen()),
                Err(error) => tracing::warn!(%error, "the Horde's text reference cannot be asked for"),
            }
            self
        });
        asking.join().ok()?.check(name)
    }

    /// While the worker runs: keeps the copy fresh and tells what it says of the name, once for each name. `name` is `None`
    /// while it is not known.
    pub(crate) async fn follow(self, name: impl Fn() -> Option<String>) {
        let (mut told, mut misses, mut due) = (None, false, tokio::time::Instant::now());
        loop {
            if due <= tokio::time::Instant::now() {
                self.freshen().await;
                due = tokio::time::Instant::now() + LOOK;
            }
            let offered = name();
            if let Some(name) = offered.as_ref().filter(|name| told.as_ref() != Some(*name)) {
                match self.check(name) {
                    Some(check) => {
                        tell(&check);
                        told = offered.clone();
                    }
                    None if self.source.is_some() && !misses => {
                        misses = true;
                        tracing::info!(
                            "the Horde's text reference cannot be had: whether it knows `{name}` is not checked"
                        );
                    }
                    None => {}
                }
            }
            tokio::time::sleep(if offered.is_some() { LOOK } else { LOOK_FOR_NAME }).await;
        }
    }
}

fn tell(check: &Check) {
    match check.verdict {
        Verdict::Ok => tracing::debug!("{}", check.message),
        Verdict::Warn | Verdict::Fail => {
            tracing::warn!(hint = check.hint.as_deref().unwrap_or_default(), "{}", check.message);
        }
    }
}

/// Engine and model of a name; the engine with its slash, empty where none stands there.
fn parts(name: &str) -> (&str, &str) {
    let engine = ENGINES.iter().find(|engine| name.starts_with(**engine));
    name.split_at(engine.map_or(0, |engine| engine.len()))
}

/// What a model of the reference is called with `engine` before it: the newer reference has names without engines, and
/// KoboldCpp's form of them has no organisation.
fn in_form_of(engine: &str, name: &str) -> Option<String> {
    match parts(name) {
        (theirs, _) if theirs == engine => Some(name.to_owned()),
        ("", model) if engine == "koboldcpp/" => model.rsplit('/').next().map(|model| format!("{engine}{model}")),
        ("", model) => Some(format!("{engine}{model}")),
        _ => None,
    }
}

fn is_known(catalogue: &Catalogue, name: &str) -> bool {
    let (engine, model) = parts(name);
    catalogue.get(Kind::Text, name).is_some()
        || catalogue.get(Kind::Text, model).is_some()
        || catalogue
            .of_kind(Kind::Text)
            .any(|known| in_form_of(engine, &known.name).as_deref() == Some(name))
}

/// Names of the reference in the form of `name` that look most like it, the nearest first.
fn alike(catalogue: &Catalogue, name: &str) -> Vec<String> {
    let (engine, model) = parts(name);
    let model = model.to_lowercase();
    let mut scored: Vec<(f64, String)> = catalogue
        .of_kind(Kind::Text)
        .filter_map(|known| in_form_of(engine, &known.name))
        .map(|known| (strsim::jaro_winkler(&model, &parts(&known).1.to_lowercase()), known))
        .filter(|(score, _)| *score >= ALIKE)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    scored.dedup_by(|a, b| a.1 == b.1);
    scored.into_iter().take(PROPOSED).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const REFERENCE: &str = r#"{
        "koboldcpp/Mistral-7B": {"name": "koboldcpp/Mistral-7B", "parameters": 7000000000},
        "koboldcpp/Mistral-7B-Instruct": {"name": "koboldcpp/Mistral-7B-Instruct", "parameters": 7000000000},
        "aphrodite/org/Mistral-7B-it": {"name": "aphrodite/org/Mistral-7B-it", "parameters": 7000000000},
        "org/Lite-8B": {"name": "org/Lite-8B", "parameters": 8000000000},
        "Plain-3B": {"name": "Plain-3B", "parameters": 3000000000}
    }"#;

    /// A copy in a folder of its own; `source` is where it is asked for.
    fn reference(source: Option<&str>) -> (tempfile::TempDir, Reference) {
        let folder = tempfile::tempdir().unwrap();
        let source = source.map(|url| {
            let url = |path: &str| url::Url::parse(url).unwrap().join(path).unwrap();
            let settings = ReferenceSettings {
                primary: url("v2/"),
                legacy_image: url("image/"),
                legacy_text: url("text/"),
                deadline: Duration::from_secs(5),
            };
            let http = HttpSettings {
                private_network: true,
                ..HttpSettings::default()
            };
            let fetch = FetchSettings {
                http,
                ..FetchSettings::default()
            };
            (settings, Downloader::new(fetch).unwrap())
        });
        let reference = Reference {
            folder: folder.path().join(FOLDER),
            source,
        };
        (folder, reference)
    }

    #[test]
    fn names_are_looked_up_where_the_reference_lies() {
        let (_folder, reference) = reference(None);
        assert_eq!(reference.check("koboldcpp/Mistral-7B"), None, "without a reference");
        std::fs::create_dir_all(&reference.folder).unwrap();
        std::fs::write(reference.folder.join(FILE), REFERENCE).unwrap();
        let verdict = |name: &str| {
            let check = reference.check(name).expect("the reference is there");
            (check.verdict, check.hint.unwrap_or_default())
        };
        for known in [
            "koboldcpp/Mistral-7B",
            "koboldcpp/Lite-8B",
            "aphrodite/org/Lite-8B",
            "koboldcpp/Plain-3B",
        ] {
            assert_eq!(verdict(known), (Verdict::Ok, String::new()), "{known}");
        }
        let nearest = |name: &str, names: &[&str]| {
            let (verdict, hint) = verdict(name);
            assert_eq!(verdict, Verdict::Warn, "{name}");
            let quoted: Vec<&str> = hint.split(['`', '"']).filter(|part| part.contains('/')).collect();
            assert_eq!(quoted, names, "{hint}");
        };
        // Only names of the same engine, whatever their beginning has in common.
        nearest(
            "koboldcpp/Mistral-7B-it",
            &["koboldcpp/Mistral-7B", "koboldcpp/Mistral-7B-Instruct"],
        );
        nearest("koboldcpp/lite-8b", &["koboldcpp/Lite-8B"]);
        nearest("koboldcpp/Something-Else", &[]);
    }

    /// Answers the legacy file with the reference, or nothing at all; counts what it is asked.
    fn server(has_it: bool) -> (String, Arc<AtomicUsize>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let mut lines = BufReader::new(stream.try_clone().unwrap())
                    .lines()
                    .map_while(Result::ok);
                let line = lines.next().unwrap_or_default();
                lines.take_while(|line| !line.is_empty()).for_each(drop);
                count.fetch_add(1, Ordering::SeqCst);
                let (status, body) = if has_it && line.contains("/text/db.json") {
                    ("200 OK", REFERENCE)
                } else {
                    ("404 Not Found", "")
                };
                write!(
                    stream,
                    "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                )
                .ok();
            }
        });
        (url, asked)
    }

    #[test]
    fn doctor_fetches_the_reference_once_a_day_and_does_without_it() {
        let (url, asked) = server(true);
        let (folder, first) = reference(Some(&url));
        let check = first.asked("koboldcpp/Lite-8B").expect("fetched");
        assert_eq!(
            (check.verdict, asked.load(Ordering::SeqCst)),
            (Verdict::Ok, 2),
            "the newer service, then the file"
        );
        let (_other, mut again) = reference(Some(&url));
        again.folder = folder.path().join(FOLDER);
        assert_eq!(
            again.asked("koboldcpp/Nobodys").map(|check| check.verdict),
            Some(Verdict::Warn)
        );
        assert_eq!(asked.load(Ordering::SeqCst), 2, "a young copy is not asked for");
        let (url, _) = server(false);
        let (_folder, without) = reference(Some(&url));
        assert_eq!(without.asked("koboldcpp/Lite-8B"), None);
        let (_other, mut old) = reference(Some(&url));
        old.folder = folder.path().join(FOLDER);
        let past = std::time::SystemTime::now() - 2 * MAX_AGE;
        let copy = std::fs::File::options()
            .append(true)
            .open(old.folder.join(FILE))
            .unwrap();
        copy.set_modified(past).unwrap();
        let check = old.asked("koboldcpp/Lite-8B");
        assert_eq!(
            check.map(|check| check.verdict),
            Some(Verdict::Ok),
            "the old copy is used"
        );
    }

    #[tokio::test]
    async fn a_running_worker_looks_up_each_name_once_it_has_one() {
        let (url, asked) = server(true);
        let (_folder, reference) = reference(Some(&url));
        let folder = reference.folder.clone();
        let (told, mut names) = tokio::sync::mpsc::unbounded_channel();
        let following = tokio::spawn(reference.follow(move || {
            let _ = told.send(());
            Some("koboldcpp/Mistral-7B-it".to_owned())
        }));
        // It asks for the name when it has the reference.
        tokio::time::timeout(Duration::from_secs(30), names.recv())
            .await
            .expect("asked for a name");
        assert!(folder.join(FILE).is_file());
        assert_eq!(asked.load(Ordering::SeqCst), 2);
        following.abort();
    }
}
