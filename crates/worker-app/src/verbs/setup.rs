//! `setup`: four questions, a key file and a commented configuration. Nothing that exists is overwritten.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use horde_client::agent::WorkerName;
use horde_client::client::{Client, ClientConfig, User};
use horde_client::error::ApiError;
use horde_client::secret::ApiKey;

use super::doctor::{bytes, is_anonymous, is_bad_key};
use super::import::Imported;
use super::questions::Input;
use super::template::{Answers, add_imported, fill};
use crate::config::{Key, KeySource, Loaded, Places, reason};
use crate::devices;
use crate::program::{Choice, Context, DeviceFound, Program};
use crate::stop::{Code, Stop};
use crate::text::printable;

/// A typing error may be corrected this often.
pub(super) const MOST_TRIES: usize = 5;

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
    /// Ask nobody: take what is set and what is proposed.
    pub is_silent: bool,
}

/// Asks, checks with the Horde where it can be reached, and writes.
pub fn setup<P: Program>(asking: &Asking<'_, P>, target: &Path) -> Result<(), Stop> {
    if target.exists() {
        return Err(exists(target, P::NAME));
    }
    if asking.is_silent {
        println!("This writes `{}`, without a question.\n", target.display());
    } else {
        println!(
            "This writes `{}`.\nFour questions; Enter takes what stands in [brackets].\n",
            target.display()
        );
    }
    let mut input = Input::new(asking.is_silent);

    let (key, user) = ask_key(asking, &mut input)?;
    let client = client_with(asking.context, &key);
    let worker_name = ask_name(asking, &client, user.as_ref(), &mut input)?;
    let found = devices::probe(P::NAME).unwrap_or_default();
    let device = ask_device(&found, &mut input)?;
    let choices = P::choices_on(asking.context, &device, &found);
    let models = ask_models(P::MODELS_KEY, &choices, &mut input)?;
    let left_to_do = P::after_setup(asking.context, &models);
    let answers = Answers {
        worker_name,
        device,
        models,
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
    if let Some(lines) = left_to_do {
        println!("\n{lines}");
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
    if imported.is_none() && asking.is_silent {
        return Err(Stop::config("there is no API key").hint(format!(
            "put it into `{}` or into HORDE_API_KEY; a new one is at https://aihorde.net/register",
            key_file.display()
        )));
    }
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
    let mut set = asking
        .loaded
        .is_named
        .then(|| asking.loaded.common.worker_name.to_string());
    if imported.is_none() && set.is_none() && asking.is_silent {
        return Err(Stop::config("the worker has no name").hint("give it with `--name NAME` or HORDE_WORKER_NAME"));
    }
    for _ in 0..MOST_TRIES {
        let typed = match imported.take() {
            Some(name) => {
                println!("   Taken from the imported file: {}", printable(&name));
                name
            }
            None => match set.take() {
                Some(name) => {
                    println!("   Set already: {}", printable(&name));
                    name
                }
                None => input.ask(&format!("   Name of this {}: ", P::NAME))?,
            },
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

/// `key` is what the configuration calls them.
fn ask_models(key: &str, choices: &[Choice], input: &mut Input) -> Result<Vec<String>, Stop> {
    println!("\n4. The {}s to serve.", key.trim_end_matches('s'));
    if choices.is_empty() {
        println!("   None to choose from; the configuration says where to put them.");
        return Ok(Vec::new());
    }
    let width = choices.len().to_string().len();
    for (idx, choice) in choices.iter().enumerate() {
        println!(
            "   {:>width$}  {} — {}",
            idx + 1,
            printable(&choice.name),
            printable(&choice.description)
        );
    }
    let mut proposed: Vec<usize> = (0..choices.len())
        .filter(|idx| choices.get(*idx).is_some_and(|choice| choice.is_proposed))
        .collect();
    if proposed.is_empty() {
        proposed.push(0);
    }
    let numbers: Vec<String> = proposed.iter().map(|idx| (idx + 1).to_string()).collect();
    let question = format!("   Numbers, separated by commas [{}]: ", numbers.join(","));
    let mut picked = input.pick(&question, choices.len(), true)?;
    if picked.is_empty() {
        picked = proposed;
    }
    Ok(picked
        .into_iter()
        .filter_map(|idx| choices.get(idx))
        .map(|choice| choice.name.clone())
        .collect())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_exists_is_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/er/scribe.toml");
        write_new(&path, "one").unwrap();
        assert!(write_new(&path, "two").is_err());
        assert_eq!(std::fs::read_to_string(path).unwrap(), "one");
    }
}
