//! Finds devices in a short-lived child, so that no device library is ever loaded into the supervisor.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::program::DeviceFound;
use crate::stop::Stop;

/// Some drivers take seconds to wake up.
const PROBE_WITHIN: Duration = Duration::from_secs(30);
/// More output than this is no list of devices.
const MAX_OUTPUT_BYTES: u64 = 1 << 20;

/// The devices this build can use here, the best first.
pub fn probe(name: &str) -> Result<Vec<DeviceFound>, Stop> {
    let failed = |why: String| {
        Stop::no_device(format!("the devices of this machine could not be listed: {why}")).hint(format!(
            "`{name} engine --devices` shows what the driver says; `--device cpu` does without"
        ))
    };
    let program = std::env::current_exe().map_err(|error| failed(error.to_string()))?;
    let mut child = Command::new(program)
        .args(["engine", "--devices"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let stdout = child.stdout.take();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        if let Some(stdout) = stdout {
            let _ = std::io::Read::read_to_string(&mut std::io::Read::take(stdout, MAX_OUTPUT_BYTES), &mut text);
        }
        text
    });
    let give_up = Instant::now() + PROBE_WITHIN;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < give_up => std::thread::sleep(Duration::from_millis(5)),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed(format!("no answer within {} s", PROBE_WITHIN.as_secs())));
            }
            Err(error) => return Err(failed(error.to_string())),
        }
    };
    if !status.success() {
        return Err(failed(format!("the driver ended the probe ({status})")));
    }
    let text = reader.join().unwrap_or_default();
    serde_json::from_str(&text).map_err(|_| failed("the answer cannot be read".to_owned()))
}

/// The devices to run on: as configured, or the best one found for `auto`.
pub fn choose(name: &str, configured: &[String]) -> Result<Vec<String>, Stop> {
    if configured != ["auto"] {
        return Ok(configured.to_vec());
    }
    let found = probe(name)?;
    match found.first() {
        Some(best) => Ok(vec![best.name.clone()]),
        None => Err(Stop::no_device("no device was found that this build can use")
            .hint("install the driver of your graphics card, or use `--device cpu` where the worker supports it")),
    }
}
