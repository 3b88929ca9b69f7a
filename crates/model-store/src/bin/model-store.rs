//! `model-store pull NAME… --to DIR`: fetches the models that come with this program, for demos and tests.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use model_store::fetch::{Bars, Control, Downloader, FetchSettings, HttpSettings, JsonLines, Progress};
use model_store::formats::sandbox::Converter;
use model_store::reference::local;
use model_store::store::Store;

#[derive(Parser)]
#[command(version, about = "Fetches the models that come with the workers")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fetch models by name; what is there already is only checked
    Pull {
        /// Names, see `list`
        #[arg(required = true)]
        names: Vec<String>,
        /// Models directory
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        /// Progress as JSON lines on standard output
        #[arg(long)]
        json: bool,
        /// Further models in the shape of models.toml
        #[arg(long, value_name = "FILE")]
        models: Option<PathBuf>,
        /// Cap in bytes per second
        #[arg(long, value_name = "BYTES")]
        rate: Option<u64>,
        /// Proxy, such as http://proxy.lan:3128
        #[arg(long)]
        proxy: Option<url::Url>,
        /// Allow plain http and private addresses
        #[arg(long)]
        private_network: bool,
        /// Bytes that must stay free on the disk
        #[arg(long, default_value_t = 256 << 20)]
        floor: u64,
    },
    /// Standard input is a checkpoint, standard output becomes safetensors
    #[command(hide = true)]
    ConvertPickle,
    /// Show the names that can be pulled
    List,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if matches!(arguments.command, Command::ConvertPickle) {
        return ExitCode::from(u8::from(model_store::formats::sandbox::child_main() != 0));
    }
    match run(arguments.command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> anyhow::Result<()> {
    let mut catalogue = local::builtin();
    let Command::Pull {
        names,
        to,
        json,
        models,
        rate,
        proxy,
        private_network,
        floor,
    } = command
    else {
        for model in catalogue.models() {
            println!(
                "{:<28} {:>11}  {}",
                model.name,
                indicatif::HumanBytes(model.size_bytes.unwrap_or(0)),
                model.description
            );
        }
        return Ok(());
    };
    if let Some(path) = models {
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading `{}`", path.display()))?;
        catalogue.merge(local::parse(&text).with_context(|| format!("reading `{}`", path.display()))?);
    }
    let downloader = Downloader::new(FetchSettings {
        http: HttpSettings {
            proxy,
            private_network,
            ..HttpSettings::default()
        },
        bytes_per_second: rate,
        floor_bytes: floor,
        ..FetchSettings::default()
    })?;
    let progress: Box<dyn Progress> = if json {
        Box::new(JsonLines::new(std::io::stdout()))
    } else {
        Box::new(Bars::default())
    };
    let control = Control::default();
    let on_interrupt = control.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            on_interrupt.stop();
        }
    });
    let converter = Converter {
        command: vec![std::env::current_exe()?.into_os_string(), "convert-pickle".into()],
    };
    let store = Store::new(to).with_converter(converter);
    for name in &names {
        let model = catalogue
            .find(name)
            .with_context(|| match catalogue.similar(name).first() {
                Some(similar) => format!("no model `{name}`\nhint: did you mean `{similar}`?"),
                None => format!("no model `{name}`\nhint: `model-store list` shows the names"),
            })?;
        let pulled = store.pull(model, &downloader, progress.as_ref(), &control).await;
        pulled.map_err(|error| match error.hint() {
            Some(hint) => anyhow::anyhow!("{error}\nhint: {hint}"),
            None => anyhow::Error::from(error),
        })?;
    }
    if !json && std::io::stderr().is_terminal() {
        eprintln!("everything is in {}", store.root().display());
    }
    Ok(())
}
