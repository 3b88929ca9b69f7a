//! `setup`: four questions, a key file and a commented configuration. Nothing that exists is overwritten.

use std::fs::OpenOptions;
use std::io::{BufRead, IsTerminal, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use horde_client::agent::WorkerName;
use horde_client::client::{Client, ClientConfig, User};
use horde_client::error::ApiError;
use horde_client::secret::ApiKey;

use super::doctor::{bytes, is_anonymous, is_bad_key};
use super::import::Imported;
use crate::config::{Key, KeySource, Loaded, Places, reason};
use crate::devices;
use crate::program::{Choice, Context, DeviceFound, Program};
use crate::stop::{Code, Stop};
use crate::text::printable;

/// A typing error may be corrected this often.
const MOST_TRIES: usize = 5;
/// Longest answer read.
const MAX_ANSWER_BYTES: u64 = 4096;

/// What the questions brought.
#[derive(Debug, Default, PartialEq, Eq)]
struct Answers {
    worker_name: String,
    device: String,
    models: Vec<String>,
}

/// What the questions are asked with.
pub struct Asking<'a, P: Program> {
    /// The configuration so far and the way to the Horde.
    pub context: &'a Context<P>,
    /// Where a key may have been found already.
    pub loaded: &'a Loaded<P::Config>,
    /// Base directories.
    pub places: &'a Places,
    /// Runs the questions to the Horde.
    pub runtime: &'a tokio::runtime::Runtime,
    /// Answers taken from another worker's configuration.
    pub imported: Imported,
}

/// Asks, checks with the Horde where it can be reached, and writes.
pub fn setup<P: Program>(asking: &Asking<'_, P>, target: &Path) -> Result<(), Stop> {
    if target.exists() {
        return Err(exists(target, P::NAME));
    }
    println!(
        "This writes `{}`. Four questions; Enter takes what stands in [brackets].\n",
        target.display()
    );
    let mut input = Input::new();

    let (key, user) = ask_key(asking, &mut input)?;
    let client = client_with(asking.context, &key);
    let answers = Answers {
        worker_name: ask_name(asking, &client, user.as_ref(), &mut input)?,
        device: ask_device(&devices::probe(P::NAME).unwrap_or_default(), &mut input)?,
        models: ask_models(&P::choices(asking.context), &mut input)?,
    };
    let mut text = fill(P::CONFIG_FILE, P::NAME, P::MODELS_KEY, &answers);
    text = add_imported(&text, &asking.imported);
    write_new(target, &text)?;
    if !asking.imported.left_out.is_empty() {
        let keys: Vec<String> = asking.imported.left_out.iter().map(|key| printable(key)).collect();
        println!(
            "\nNot taken over, as there is no counterpart or it is decided otherwise here: {}.",
            keys.join(", ")
        );
    }
    println!(
        "\nWrote `{}`. Next: `{} doctor`, then `{}`.",
        target.display(),
        P::NAME,
        P::NAME
    );
    Ok(())
}

/// The same line to the Horde with another key.
fn client_with<P: Program>(context: &Context<P>, key: &ApiKey) -> Client {
    Client::new(
        context.transport.clone(),
        ClientConfig {
            api_key: key.clone(),
            ..context.client.config().clone()
        },
    )
}

fn exists(target: &Path, name: &str) -> Stop {
    Stop::new(
        Code::Usage,
        format!("`{}` exists and is not overwritten", target.display()),
    )
    .hint(format!(
        "edit it, move it away, or write another one with `{name} setup --config FILE`"
    ))
}

/// An existing key is taken as it is; a typed or imported one goes into the key file.
fn ask_key<P: Program>(asking: &Asking<'_, P>, input: &mut Input) -> Result<(ApiKey, Option<User>), Stop> {
    if let Ok(key) = &asking.loaded.key {
        println!("1. API key: found in {}.", key.source);
        return Ok((key.api_key.clone(), look_up(asking, &key.api_key).unwrap_or_default()));
    }
    let key_file = asking.places.key_file();
    println!(
        "1. Your API key. It is stored in `{}`, readable by you alone.",
        key_file.display()
    );
    let mut imported = asking.imported.api_key.clone();
    if imported.is_none() {
        println!("   No key yet? https://aihorde.net/register");
    }
    for _ in 0..MOST_TRIES {
        let given = match imported.take() {
            Some(key) => {
                println!("   Taken from the imported file.");
                key
            }
            None => input.ask_secret("   API key: ")?,
        };
        let key = match Key::parse(&given, KeySource::File(key_file.clone())) {
            Ok(key) => key.api_key,
            Err(stop) => {
                print!("   {}", stop.render());
                continue;
            }
        };
        match look_up(asking, &key) {
            Ok(user) => {
                write_new(&key_file, &format!("{}\n", key.expose()))?;
                return Ok((key, user));
            }
            Err(()) => println!("   The Horde does not know this key."),
        }
    }
    Err(Stop::config("no usable API key was given").hint("register at https://aihorde.net/register"))
}

/// The account behind `key`; nothing when the Horde cannot be asked; an error when it says that the key is wrong.
fn look_up<P: Program>(asking: &Asking<'_, P>, key: &ApiKey) -> Result<Option<User>, ()> {
    let client = client_with(asking.context, key);
    match asking.runtime.block_on(client.find_user()) {
        Ok(user) if is_anonymous(&user) => Err(()),
        Ok(user) => {
            let name = user.username.as_deref().map_or_else(|| "known".to_owned(), printable);
            println!("   The Horde knows you as {name}.");
            Ok(Some(user))
        }
        Err(error) if is_bad_key(&error) => Err(()),
        Err(error) => {
            println!("   The key could not be checked: {error}");
            Ok(None)
        }
    }
}

fn ask_name<P: Program>(
    asking: &Asking<'_, P>,
    client: &Client,
    user: Option<&User>,
    input: &mut Input,
) -> Result<String, Stop> {
    println!("\n2. The worker's name, unique among all workers of the Horde.");
    let mut imported = asking.imported.worker_name.clone();
    for _ in 0..MOST_TRIES {
        let typed = match imported.take() {
            Some(name) => {
                println!("   Taken from the imported file: {}", printable(&name));
                name
            }
            None => input.ask(&format!("   Name of this {}: ", P::NAME))?,
        };
        let name = match typed.parse::<WorkerName>() {
            Ok(name) => name,
            Err(error) => {
                println!("   {error}");
                continue;
            }
        };
        match asking.runtime.block_on(client.worker_by_name(name.as_str())) {
            Ok(worker) => {
                let ids = user.and_then(|user| user.worker_ids.as_ref());
                let is_own = matches!((&worker.id, ids), (Some(id), Some(ids)) if ids.contains(id));
                if is_own {
                    println!("   This is a worker of yours already.");
                    return Ok(name.to_string());
                }
                println!("   This name is taken.");
            }
            Err(ApiError::Refused { status, .. }) if status.as_u16() == 404 => return Ok(name.to_string()),
            Err(error) => {
                println!("   The name could not be checked: {error}");
                return Ok(name.to_string());
            }
        }
    }
    Err(Stop::config("no usable worker name was given").hint("choose a name of 5 to 100 characters"))
}

fn ask_device(found: &[DeviceFound], input: &mut Input) -> Result<String, Stop> {
    println!("\n3. The device to run on.");
    for (idx, device) in found.iter().enumerate() {
        let memory = device
            .memory_bytes
            .map_or_else(String::new, |memory| format!(", {}", bytes(memory)));
        println!(
            "   {}  {} ({}{memory})",
            idx + 1,
            device.name,
            printable(&device.description)
        );
    }
    let picked = input.pick("   Number [auto]: ", found.len(), false)?;
    Ok(picked
        .first()
        .and_then(|idx| found.get(*idx))
        .map_or_else(|| "auto".to_owned(), |device| device.name.clone()))
}

fn ask_models(choices: &[Choice], input: &mut Input) -> Result<Vec<String>, Stop> {
    println!("\n4. The models to serve.");
    if choices.is_empty() {
        println!("   None to choose from; the configuration says where to put them.");
        return Ok(Vec::new());
    }
    for (idx, choice) in choices.iter().enumerate() {
        println!(
            "   {}  {} — {}",
            idx + 1,
            printable(&choice.name),
            printable(&choice.description)
        );
    }
    let mut picked = input.pick("   Numbers, separated by commas [1]: ", choices.len(), true)?;
    if picked.is_empty() {
        picked.push(0);
    }
    Ok(picked
        .into_iter()
        .filter_map(|idx| choices.get(idx))
        .map(|choice| choice.name.clone())
        .collect())
}

/// The template with the answers in their places.
fn fill(template: &str, name: &str, models_key: &str, answers: &Answers) -> String {
    let text = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let list = |items: &[String]| {
        let items: Vec<String> = items.iter().map(|item| text(item)).collect();
        format!("[{}]", items.join(", "))
    };
    let mut lines: Vec<String> = template.lines().map(str::to_owned).collect();
    put(&mut lines, None, "worker_name", &text(&answers.worker_name));
    put(
        &mut lines,
        None,
        "devices",
        &list(std::slice::from_ref(&answers.device)),
    );
    if !answers.models.is_empty() {
        // A worker that serves one model has a string there, one that serves several a list.
        let is_list = find(&lines, Some(name), models_key).is_none_or(|idx| lines[idx].contains('['));
        let value = if is_list {
            list(&answers.models)
        } else {
            text(&answers.models[0])
        };
        put(&mut lines, Some(name), models_key, &value);
    }
    lines.join("\n") + "\n"
}

/// What another worker's configuration brought besides the answers.
fn add_imported(text: &str, imported: &Imported) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    if !imported.priority_usernames.is_empty() {
        let names = imported
            .priority_usernames
            .iter()
            .map(|name| toml::Value::String(name.clone()));
        put(
            &mut lines,
            None,
            "priority_usernames",
            &toml::Value::Array(names.collect()).to_string(),
        );
    }
    if let Some(nsfw) = imported.nsfw {
        put(&mut lines, None, "nsfw", &nsfw.to_string());
    }
    if let Some(prefetch) = imported.prefetch {
        put(&mut lines, None, "prefetch", &prefetch.to_string());
    }
    lines.join("\n") + "\n"
}

/// Sets `key` in its section: on the line where it stands, even behind a `#`, else at the section's end.
fn put(lines: &mut Vec<String>, section: Option<&str>, key: &str, value: &str) {
    let line = format!("{key} = {value}");
    match find(lines, section, key) {
        Some(idx) => lines[idx] = line,
        None => {
            let (_, end) = bounds(lines, section);
            lines.insert(end, line);
        }
    }
}

fn find(lines: &[String], section: Option<&str>, key: &str) -> Option<usize> {
    let (start, end) = bounds(lines, section);
    let is_key = |line: &String| {
        let line = line.trim_start_matches(['#', ' ']);
        line.strip_prefix(key)
            .is_some_and(|rest| rest.trim_start().starts_with('='))
    };
    (start..end).find(|idx| is_key(&lines[*idx]))
}

/// The lines of a section, header excluded; of the part above the first one for `None`.
fn bounds(lines: &[String], section: Option<&str>) -> (usize, usize) {
    let is_header = |line: &String| line.starts_with('[');
    let start = match section {
        None => 0,
        Some(name) => {
            let header = format!("[{name}]");
            lines
                .iter()
                .position(|line| line.trim() == header)
                .map_or(lines.len(), |idx| idx + 1)
        }
    };
    let end = lines[start..]
        .iter()
        .position(is_header)
        .map_or(lines.len(), |idx| start + idx);
    (start, end)
}

/// Writes a file that does not exist yet, readable by its owner alone.
fn write_new(path: &Path, text: &str) -> Result<(), Stop> {
    let cannot = |error: std::io::Error| {
        Stop::config(format!("cannot write `{}`: {}", path.display(), reason(&error)))
            .hint("name another place with `--config`, or make the directory writable")
    };
    if let Some(parent) = path.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)
            .map_err(cannot)?;
    }
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .map_err(cannot)
}

/// Answers, from a terminal or from a pipe.
struct Input {
    is_terminal: bool,
}

impl Input {
    fn new() -> Self {
        Self {
            is_terminal: std::io::stdin().is_terminal(),
        }
    }

    fn ask(&mut self, question: &str) -> Result<String, Stop> {
        print!("{question}");
        let _ = std::io::stdout().flush();
        let mut line = String::new();
        let n_read = std::io::Read::take(std::io::stdin().lock(), MAX_ANSWER_BYTES)
            .read_line(&mut line)
            .map_err(|error| Stop::failed(format!("the answer cannot be read: {error}")))?;
        if n_read == 0 {
            return Err(Stop::new(Code::Usage, "the answers ended before the questions did")
                .hint("run `setup` on a terminal, or write the configuration by hand"));
        }
        if !self.is_terminal {
            println!();
        }
        Ok(line.trim().to_owned())
    }

    /// As [`Input::ask`], without showing what is typed.
    fn ask_secret(&mut self, question: &str) -> Result<String, Stop> {
        use crossterm::event::{Event, KeyCode, KeyEventKind, KeyModifiers, read};
        if !self.is_terminal {
            return self.ask(question);
        }
        print!("{question}");
        let _ = std::io::stdout().flush();
        let cannot = |error: std::io::Error| Stop::failed(format!("the terminal cannot be read: {error}"));
        crossterm::terminal::enable_raw_mode().map_err(cannot)?;
        let mut typed = String::new();
        let ended = loop {
            match read() {
                Ok(Event::Key(key)) if key.kind == KeyEventKind::Press => match key.code {
                    KeyCode::Enter => break Ok(()),
                    KeyCode::Char('c' | 'd') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                        break Err(Stop::new(Code::Usage, "setup was left; nothing was written"));
                    }
                    KeyCode::Backspace => drop(typed.pop()),
                    KeyCode::Char(character) if typed.len() < 256 => typed.push(character),
                    _ => {}
                },
                Ok(Event::Paste(text)) => typed.push_str(&text),
                Ok(_) => {}
                Err(error) => break Err(cannot(error)),
            }
        };
        let _ = crossterm::terminal::disable_raw_mode();
        println!();
        ended.map(|()| typed)
    }

    /// Numbers from 1 to `n_choices` as indices; nothing typed is an empty list.
    fn pick(&mut self, question: &str, n_choices: usize, several: bool) -> Result<Vec<usize>, Stop> {
        for _ in 0..MOST_TRIES {
            let typed = self.ask(question)?;
            if typed.is_empty() || typed == "auto" {
                return Ok(Vec::new());
            }
            let numbers: Result<Vec<usize>, _> = typed.split(',').map(|number| number.trim().parse()).collect();
            match numbers {
                Ok(numbers)
                    if (several || numbers.len() == 1)
                        && numbers.iter().all(|number| (1..=n_choices).contains(number)) =>
                {
                    return Ok(numbers.into_iter().map(|number| number - 1).collect());
                }
                _ => println!("   Type a number from the list."),
            }
        }
        Err(Stop::new(Code::Usage, "no number from the list was given"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_replace_lines_in_their_own_section_only() {
        let template =
            "# worker_name = \"x\"\n# devices = [\"auto\"]\n[scribe]\n# worker_name of nobody\n# models = []\n";
        let answers = Answers {
            worker_name: "a \"quoted\" name".to_owned(),
            device: "cuda:0".to_owned(),
            models: vec!["m1".to_owned(), "m2".to_owned()],
        };
        let text = fill(template, "scribe", "models", &answers);
        let table: toml::Table = text.parse().unwrap();
        assert_eq!(table["worker_name"].as_str(), Some("a \"quoted\" name"));
        assert_eq!(table["devices"][0].as_str(), Some("cuda:0"));
        assert_eq!(table["scribe"]["models"][1].as_str(), Some("m2"));
        assert!(text.contains("# worker_name of nobody"));
    }

    #[test]
    fn a_key_the_template_lacks_is_added_to_its_section() {
        let answers = Answers {
            worker_name: "name-5".to_owned(),
            device: "cpu".to_owned(),
            models: vec!["m".to_owned()],
        };
        let table: toml::Table = fill(
            "[scribe]\nmodel = \"old\"\n[scribe.more]\na = 1\n",
            "scribe",
            "model",
            &answers,
        )
        .parse()
        .unwrap();
        assert_eq!(table["scribe"]["model"].as_str(), Some("m"));
        assert_eq!(table["worker_name"].as_str(), Some("name-5"));
    }

    #[test]
    fn nothing_that_exists_is_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/er/scribe.toml");
        write_new(&path, "one").unwrap();
        assert!(write_new(&path, "two").is_err());
        assert_eq!(std::fs::read_to_string(path).unwrap(), "one");
    }
}
