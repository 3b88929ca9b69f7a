//! `local-horde`: a Horde on this machine for anybody who writes a worker or a client.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use local_horde::proxy::{FaultProxy, Spoil};
use local_horde::recording::Recorder;
use local_horde::{CLIENT_KEY, Horde, Settings, WORKER_KEY, http};
use serde_json::Value;

/// A Horde on this machine: the server's half of AI Horde API v2 with an object store, for testing workers and clients.
///
/// Accounts of a fresh server: `local-worker-key-00000` owns workers, `local-client-key-00000` asks, `0000000000` is
/// anonymous. Whatever was handed out and came back stands at /local/ledger.
#[derive(Parser)]
#[command(
    name = "local-horde",
    version,
    after_help = "Example: local-horde --port 7001 --file requests.json\n         then point a worker at http://127.0.0.1:7001/api"
)]
struct Arguments {
    /// Port to listen on; 0 takes a free one and prints it.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Address to listen on; anything but loopback lets others in.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// Seed of ids and choices.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// JSON list of `{"route": "generate/text/async", "body": {…}}` to file at start.
    #[arg(long)]
    file: Option<PathBuf>,
    /// Factor on every lease, such as 0.1 for tests that cannot wait.
    #[arg(long, default_value_t = 1.0)]
    ttl_factor: f64,
    /// Seconds between sweeps of stale jobs.
    #[arg(long, default_value_t = 60)]
    sweep: u64,
    /// Switch the limits of calls off.
    #[arg(long)]
    no_rate_limits: bool,
    /// Seconds after which a request that nobody served is deleted.
    #[arg(long, default_value_t = 1200)]
    request_life: u64,
    /// Seconds for which signed addresses of objects are good.
    #[arg(long, default_value_t = 1800, value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    object_lifetime: u64,
    /// Write every pop and submit with its answer into this file, one line of JSON each.
    #[arg(long)]
    record: Option<PathBuf>,
    /// Print the whole book at the end, not only its counts; both are one line of JSON.
    #[arg(long)]
    json: bool,
    /// Spoil connections: delay:MS, drip:MS, reset:BYTES, reset-request:BYTES, blackhole, halfclose, answer:STATUS.
    /// The spoiled way gets a port of its own, printed beside the clean one; objects keep their clean addresses.
    #[arg(long, value_parser = parse_spoil)]
    spoil: Option<Spoil>,
}

/// Largest factor on leases: a lease of days.
const LONGEST_FACTOR: f64 = 1000.0;

fn parse_spoil(text: &str) -> Result<Spoil, String> {
    let (name, number) = text.split_once(':').unwrap_or((text, ""));
    let number = || {
        number
            .parse::<u64>()
            .map_err(|_| format!("`{text}` needs a number after the colon"))
    };
    match name {
        "delay" => Ok(Spoil::Delay(Duration::from_millis(number()?))),
        "drip" => Ok(Spoil::Drip(Duration::from_millis(number()?))),
        "reset" => Ok(Spoil::ResetAnswerAt(number()?)),
        "reset-request" => Ok(Spoil::ResetRequestAt(number()?)),
        "blackhole" => Ok(Spoil::BlackHole),
        "halfclose" => Ok(Spoil::HalfClose),
        "answer" => u16::try_from(number()?)
            .map(Spoil::Answer)
            .map_err(|_| format!("`{text}` is not a status")),
        _ => Err(format!(
            "`{name}` is none of delay, drip, reset, reset-request, blackhole, halfclose, answer"
        )),
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    if !(arguments.ttl_factor > 0.0 && arguments.ttl_factor <= LONGEST_FACTOR) {
        bail!(
            "--ttl-factor is `{}` and must be above 0 and at most {LONGEST_FACTOR}",
            arguments.ttl_factor
        );
    }
    let horde = Horde::new(Settings {
        seed: arguments.seed,
        sweep_every: Duration::from_secs(arguments.sweep),
        ttl_factor: arguments.ttl_factor,
        rate_limits: !arguments.no_rate_limits,
        request_life: Some(Duration::from_secs(arguments.request_life)),
        object_lifetime: Duration::from_secs(arguments.object_lifetime),
        ..Settings::default()
    });
    if let Some(path) = &arguments.record {
        let recorder = Recorder::create(path).with_context(|| format!("could not write {}", path.display()))?;
        horde.state().recorder = Some(recorder);
    }
    let address = SocketAddr::new(arguments.host, arguments.port);
    let running = http::serve(horde.clone(), address)
        .await
        .with_context(|| format!("could not listen on {address}"))?;
    if let Some(path) = arguments.file {
        let text = std::fs::read_to_string(&path).with_context(|| format!("could not read {}", path.display()))?;
        let requests: Vec<Value> =
            serde_json::from_str(&text).with_context(|| format!("{} is not a JSON list", path.display()))?;
        for request in requests {
            let route = request["route"].as_str().context("a request has no `route`")?;
            let id = horde
                .file(route, &request["body"])
                .map_err(|refusal| anyhow::anyhow!("`{route}` was refused: {refusal}"))?;
            println!("filed {route} {id}");
        }
    }
    println!("listening on {}", running.base());
    println!(
        "worker key {WORKER_KEY}, client key {CLIENT_KEY}, ledger at http://{}/local/ledger",
        running.address
    );
    let proxy = match arguments.spoil {
        Some(spoil) => Some(FaultProxy::start(running.address, spoil).await?),
        None => None,
    };
    if let Some(proxy) = &proxy {
        println!("spoiled way at http://{}/api", proxy.address);
    }
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = term.recv() => {}
    }
    let ledger = &horde.state().ledger;
    let end = if arguments.json {
        serde_json::to_string(ledger)?
    } else {
        serde_json::to_string(&ledger.summary())?
    };
    println!("{end}");
    Ok(())
}
