//! `status`: what the running worker does, for people or as JSON.

use std::path::Path;

use worker_runtime::Clock;
use worker_runtime::status::Stage;

use crate::display::{sane, span, why_idle};
use crate::state::{STATUS_FILE, StatusFile, holder, not_running, read_status};
use crate::stop::{Code, Stop};
use crate::text::printable;

/// The worker tells its state at least every five seconds; a state older than this is a sign of trouble.
const STALE_S: f64 = 10.0;

/// The text for stdout. Without a running worker: 75, or with `json` an object that says so.
pub fn status(name: &str, dir: &Path, json: bool) -> Result<String, Stop> {
    let Some(pid) = holder(dir) else {
        return if json {
            Ok("{\"running\":false}\n".to_owned())
        } else {
            Err(not_running(name, dir))
        };
    };
    // Between taking the lock and the first status there is no file, or an earlier worker's.
    let is_of_holder = |file: &StatusFile| pid.is_none_or(|pid| pid == file.pid);
    let file = match read_status(dir) {
        Ok(file) if is_of_holder(&file) => file,
        Err(stop) if dir.join(STATUS_FILE).exists() => return Err(stop),
        _ if json => return Ok("{\"running\":true,\"starting\":true}\n".to_owned()),
        _ => {
            return Err(Stop::new(Code::Instance, format!("the {name} is just starting")).hint("ask again in a second"));
        }
    };
    if !json {
        let age_s = (Clock::System.unix_ms() - file.status.updated_unix_ms) as f64 / 1000.0;
        let stale = if age_s > STALE_S {
            format!("this is {} old: is the disk full, or the worker stuck?\n", span(age_s))
        } else {
            String::new()
        };
        return Ok(report(&file) + &stale);
    }
    let mut object = serde_json::to_value(&file).map_err(|error| Stop::failed(error.to_string()))?;
    object["running"] = true.into();
    Ok(format!("{object}\n"))
}

/// The state in a few lines.
pub fn report(file: &StatusFile) -> String {
    let status = &file.status;
    let mut text = format!(
        "{} {} · {} · pid {} · {} · up {}\n",
        printable(&file.program),
        printable(&file.version),
        printable(&file.worker_name),
        file.pid,
        crate::display::state(status),
        span(status.uptime_s),
    );
    let totals = &status.totals;
    text.push_str(&format!(
        "{:.1} kudos ({:.1}/h) · {} delivered, {} handed back, {} expired · busy {:.0} %\n",
        sane(totals.kudos),
        sane(status.kudos_per_hour),
        totals.submitted,
        totals.faulted,
        totals.expired,
        sane(status.busy_fraction) * 100.0
    ));
    for device in &status.devices {
        text.push_str(&format!(
            "device {}: {}",
            printable(&device.name),
            printable(&device.state)
        ));
        if let Some(reason) = &device.reason {
            text.push_str(&format!(" ({})", printable(reason)));
        }
        text.push('\n');
    }
    for job in &status.jobs {
        let model = job.model.as_deref().map(printable).unwrap_or_default();
        text.push_str(&format!("job {} {model}", printable(&job.id)));
        match job.stage {
            Stage::Preparing => text.push_str(": fetching its inputs"),
            Stage::Waiting => text.push_str(": waiting"),
            Stage::Delivering => text.push_str(": being delivered"),
            Stage::Running => {
                text.push_str(&format!(": {}/{} {}", job.done, job.total, printable(&file.unit)));
                if let Some(rate) = job.rate {
                    text.push_str(&format!(", {rate:.1} {}/s", printable(&file.unit)));
                }
                if let Some(eta) = job.eta_s {
                    text.push_str(&format!(", {} left", span(eta)));
                }
            }
        }
        text.push('\n');
    }
    if let Some(why) = why_idle(status) {
        text.push_str(&format!("idle: {}\n", printable(&why)));
    }
    for message in status.messages.iter().rev().take(3) {
        let text_of_server = crate::text::truncated(&printable(&message.text), 300);
        text.push_str(&format!("message from the Horde: {text_of_server}\n"));
    }
    text
}
