//! `doctor`: everything that could keep the worker from earning, each with a verdict and a hint.

use std::path::Path;

use horde_client::client::{Client, User, WorkerDetails};
use horde_client::error::{ApiError, ErrorClass, StopReason};
use horde_client::kind::JobKind;
use model_store::speed::{self, ReadSpeed};
use worker_runtime::backend::Backend;

use crate::config::{Key, Loaded, reason};
use crate::program::{Context, Program};
use crate::sandbox::Sandbox;
use crate::state::{Lock, holder};
use crate::stop::{Check, Code, Stop, Verdict};
use crate::text::printable;
use crate::{agent, devices};

/// Below this the ledger and finished results may not fit.
const FEW_STATE_BYTES: u64 = 200 << 20;
/// Below this nothing can be started.
const TOO_FEW_STATE_BYTES: u64 = 10 << 20;

/// All findings, with the exit code each failure stands for.
#[derive(Debug, Default)]
pub struct Findings {
    found: Vec<(Check, Code)>,
}

impl Findings {
    fn add(&mut self, code: Code, check: Check) {
        self.found.push((check, code));
    }

    /// The code of the first failure.
    pub fn code(&self) -> Option<Code> {
        self.found
            .iter()
            .find(|(check, _)| check.verdict == Verdict::Fail)
            .map(|(_, code)| *code)
    }

    /// One line per check, hints below, and at the end how many failed: there may be more checks than rows.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for (check, _) in &self.found {
            let verdict = match check.verdict {
                Verdict::Ok => "ok  ",
                Verdict::Warn => "warn",
                Verdict::Fail => "FAIL",
            };
            text.push_str(&format!(
                "{verdict}  {}: {}\n",
                printable(&check.name),
                printable(&check.message)
            ));
            if let Some(hint) = &check.hint {
                text.push_str(&format!("      hint: {}\n", printable(hint)));
            }
        }
        text.push_str(&format!("\n{}\n", self.summary()));
        text
    }

    fn summary(&self) -> String {
        let of = |verdict| self.found.iter().filter(move |(check, _)| check.verdict == verdict);
        let failed: Vec<String> = of(Verdict::Fail).map(|(check, _)| printable(&check.name)).collect();
        let mut text = if failed.is_empty() {
            "Nothing keeps this worker from serving".to_owned()
        } else {
            format!(
                "{} of {} checks failed: {}",
                failed.len(),
                self.found.len(),
                failed.join(", ")
            )
        };
        match of(Verdict::Warn).count() {
            0 => {}
            1 => text.push_str("; 1 warning"),
            several => text.push_str(&format!("; {several} warnings")),
        }
        text + "."
    }

    /// One JSON object.
    pub fn to_json(&self) -> serde_json::Value {
        let checks: Vec<&Check> = self.found.iter().map(|(check, _)| check).collect();
        serde_json::json!({
            "ok": self.code().is_none(),
            "exit_code": self.code().map_or(0, |code| code as u8),
            "checks": checks,
        })
    }
}

/// Looks at everything.
pub async fn doctor<P: Program>(context: &Context<P>, loaded: &Loaded<P::Config>, sandbox: Sandbox) -> Findings {
    let mut findings = Findings::default();
    findings.add(Code::Config, configuration::<P>(context, loaded));
    findings.add(
        Code::Config,
        match &loaded.key {
            Ok(key) => Check::ok("API key", format!("found in {}", key.source)),
            Err(stop) => Check::from_stop("API key", stop),
        },
    );
    if !loaded.is_named {
        let stop = super::run::no_name(P::NAME, loaded.file.is_some());
        findings.add(Code::Config, Check::from_stop("worker name", &stop));
    }
    horde::<P>(&mut findings, context, loaded.key.as_ref().ok(), loaded.is_named).await;
    findings.add(
        Code::Config,
        agent::check(<P::Backend as Backend>::Kind::NAME, &context.common.bridge_agent),
    );
    findings.add(Code::StateDir, state_directory(&context.state_dir));
    findings.add(
        Code::StateDir,
        disk("disk (state)", &context.state_dir, FEW_STATE_BYTES, TOO_FEW_STATE_BYTES),
    );
    findings.add(
        Code::NoModel,
        match P::models(context) {
            Ok(()) => Check::ok(
                "models",
                format!("enough to serve is in `{}`", context.models_dir.display()),
            ),
            Err(stop) => Check::from_stop("models", &stop),
        },
    );
    findings.add(Code::NoModel, disk("disk (models)", &context.models_dir, 1 << 30, 0));
    if let Some(check) = read_speed(&context.models_dir).await {
        findings.add(Code::Failed, check);
    }
    for check in P::doctor(context) {
        findings.add(Code::Failed, check);
    }
    findings.add(Code::NoDevice, device(P::NAME, &context.common.devices));
    findings.add(
        Code::Failed,
        match sandbox {
            Sandbox::NoListening => Check::ok("sandbox", sandbox.describe()),
            Sandbox::Unconfined => Check::warn("sandbox", sandbox.describe())
                .hint("the worker does not listen by itself; Linux 6.7 or newer makes it certain"),
        },
    );
    findings
}

fn configuration<P: Program>(context: &Context<P>, loaded: &Loaded<P::Config>) -> Check {
    const NAME: &str = "configuration";
    if let Err(stop) = P::check(&context.config, &context.common) {
        return Check::from_stop(NAME, &loaded.with_origin(stop));
    }
    if let Some(warning) = loaded.warnings.first() {
        return Check::warn(NAME, warning.clone());
    }
    match &loaded.file {
        Some(file) => Check::ok(NAME, format!("`{}`", file.display())),
        None => Check::warn(NAME, "no file; defaults, environment and flags only")
            .hint(format!("`{} setup` writes one", P::NAME)),
    }
}

async fn horde<P: Program>(findings: &mut Findings, context: &Context<P>, key: Option<&Key>, is_named: bool) {
    let client = &context.client;
    let host = context.common.horde_url.host_str().unwrap_or_default().to_owned();
    if let Err(error) = client.heartbeat().await {
        findings.add(
            Code::Failed,
            Check::fail("Horde", format!("`{host}` cannot be used: {error}"))
                .hint("is the network up? does name resolution work? a proxy must be configured with `proxy`"),
        );
        return;
    }
    findings.add(Code::Failed, Check::ok("Horde", format!("`{host}` answers")));
    if key.is_none() {
        return;
    }
    let user = match client.find_user().await {
        Ok(user) => user,
        Err(error) => {
            findings.add(Code::Config, bad_account(&error));
            return;
        }
    };
    findings.add(Code::Config, account(&user));
    if is_named {
        let (code, check) = worker_name::<P>(client, context.common.worker_name.as_str(), &user).await;
        findings.add(code, check);
    }
}

fn bad_account(error: &ApiError) -> Check {
    if is_bad_key(error) {
        Check::fail("account", "the Horde does not know this API key")
            .hint("copy it again, or register at https://aihorde.net/register")
    } else {
        Check::warn("account", format!("could not be asked for: {error}")).hint("try again in a minute")
    }
}

/// Whether the server says that the key is wrong.
pub(super) fn is_bad_key(error: &ApiError) -> bool {
    matches!(error.class(), ErrorClass::Stop(StopReason::Key))
        || matches!(error, ApiError::Refused { status, .. } if status.as_u16() == 404)
}

/// The server's own words for its anonymous user.
pub(super) fn is_anonymous(user: &User) -> bool {
    user.username.as_deref() == Some("Anonymous#0")
}

fn account(user: &User) -> Check {
    let name = user
        .username
        .as_deref()
        .map_or_else(|| "without a name".to_owned(), printable);
    let kudos = user.kudos.unwrap_or_default();
    let workers = match user.worker_count.unwrap_or_default() {
        1 => "1 worker".to_owned(),
        workers => format!("{workers} workers"),
    };
    if is_anonymous(user) {
        return Check::fail("account", "the key is the anonymous one")
            .hint("the Horde lets no anonymous user run a worker; register at https://aihorde.net/register");
    }
    if user.flagged == Some(true) {
        return Check::fail("account", format!("{name} was flagged by moderators"))
            .hint("ask the moderators on the AI Horde's chat");
    }
    if user.trusted == Some(true) {
        Check::ok("account", format!("{name}, trusted, {kudos:.0} kudos, {workers}"))
    } else {
        Check::ok(
            "account",
            format!(
                "{name}, not yet trusted (half of the kudos is held back for about a week), {kudos:.0} kudos, {workers}"
            ),
        )
    }
}

async fn worker_name<P: Program>(client: &Client, name: &str, user: &User) -> (Code, Check) {
    const CHECK: &str = "worker name";
    let shown = format!("`{}`", printable(name));
    match client.worker_by_name(name).await {
        Ok(worker) => (Code::Config, known_worker::<P>(&shown, &worker, user)),
        Err(ApiError::Refused { status, .. }) if status.as_u16() == 404 => {
            (Code::Config, Check::ok(CHECK, format!("{shown} is free")))
        }
        Err(error) => (
            Code::Failed,
            Check::warn(CHECK, format!("{shown} could not be looked up: {error}")).hint("try again in a minute"),
        ),
    }
}

fn known_worker<P: Program>(shown: &str, worker: &WorkerDetails, user: &User) -> Check {
    const CHECK: &str = "worker name";
    let kind = match <P::Backend as Backend>::Kind::NAME {
        "alchemy" => "interrogation",
        kind => kind,
    };
    let is_own = match (&worker.id, &user.worker_ids) {
        (Some(id), Some(ids)) => Some(ids.contains(id)),
        _ => None,
    };
    if is_own == Some(false) {
        return Check::fail(CHECK, format!("{shown} belongs to another account")).hint("choose another `worker_name`");
    }
    if worker.r#type.as_deref().is_some_and(|r#type| r#type != kind) {
        return Check::fail(CHECK, format!("{shown} is used by a worker of another kind"))
            .hint("each kind of worker needs a `worker_name` of its own");
    }
    if worker.flagged == Some(true) {
        return Check::fail(CHECK, format!("{shown} was flagged by moderators"))
            .hint("ask the moderators on the AI Horde's chat");
    }
    if worker.maintenance_mode == Some(true) {
        return Check::warn(
            CHECK,
            format!("{shown} is in maintenance: it gets its own account's jobs only"),
        )
        .hint("the Horde sets this after too many dropped jobs; clear it on the Horde's page of the worker");
    }
    let earned = worker.kudos_rewards.unwrap_or_default();
    let fulfilled = worker.requests_fulfilled.unwrap_or_default();
    Check::ok(
        CHECK,
        format!("{shown} is known: {fulfilled:.0} jobs, {earned:.0} kudos so far"),
    )
}

fn state_directory(dir: &Path) -> Check {
    const NAME: &str = "state directory";
    let shown = format!("`{}`", dir.display());
    if let Some(pid) = holder(dir) {
        let pid = pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
        return Check::ok(NAME, format!("{shown}, in use by the running worker (pid {pid})"));
    }
    match Lock::take(dir) {
        Ok(_) => Check::ok(NAME, format!("{shown} can be written")),
        Err(stop) => Check::from_stop(NAME, &stop),
    }
}

fn disk(name: &str, dir: &Path, few_bytes: u64, too_few_bytes: u64) -> Check {
    // What is not there yet will be made on the disk of its nearest ancestor.
    let there = dir.ancestors().find(|path| path.exists()).unwrap_or(dir);
    let free = match nix::sys::statvfs::statvfs(there) {
        // Both figures are as wide as the system makes them.
        #[expect(clippy::useless_conversion, reason = "block counts are u32 on some systems")]
        Ok(stat) => u64::from(stat.blocks_available()).saturating_mul(u64::from(stat.fragment_size())),
        Err(error) => {
            let error = reason(&std::io::Error::from(error));
            return Check::warn(name, format!("free space of `{}` is unknown: {error}", there.display()));
        }
    };
    let message = format!("{} free", bytes(free));
    if free < too_few_bytes {
        Check::fail(name, message).hint("make room: the ledger and finished results need it")
    } else if free < few_bytes {
        Check::warn(name, message).hint("make room before it runs out")
    } else {
        Check::ok(name, message)
    }
}

/// How fast models are read; nothing where there is no models directory yet, since only its own disk counts.
async fn read_speed(dir: &Path) -> Option<Check> {
    if !dir.is_dir() {
        return None;
    }
    let owned = dir.to_owned();
    let measured = tokio::task::spawn_blocking(move || speed::measure(&owned)).await;
    Some(speed_check(measured.unwrap_or_else(|panic| Err(panic.into()))))
}

fn speed_check(measured: std::io::Result<ReadSpeed>) -> Check {
    const NAME: &str = "read speed (models)";
    match measured {
        // A read-only directory without a model large enough to time: nothing is wrong with that.
        Err(error) => Check::warn(NAME, format!("could not be measured: {}", reason(&error)))
            .hint("it needs a model of 32 MiB or leave to write in `models_dir`"),
        Ok(measured) => match measured.warning() {
            Some(warning) => Check::warn(NAME, warning).hint("move `models_dir` to a solid-state disk"),
            None => Check::ok(NAME, format!("{} MB/s", measured.bytes_per_second / 1_000_000)),
        },
    }
}

/// A number of bytes for people.
pub(super) fn bytes(n_bytes: u64) -> String {
    match n_bytes {
        0..=1_048_575 => format!("{} KiB", n_bytes >> 10),
        1_048_576..=1_073_741_823 => format!("{} MiB", n_bytes >> 20),
        _ => format!("{:.1} GiB", n_bytes as f64 / f64::from(1 << 30)),
    }
}

fn device(program: &str, configured: &[String]) -> Check {
    const NAME: &str = "device";
    let found = match devices::probe(program) {
        Ok(found) => found,
        Err(stop) => return Check::from_stop(NAME, &stop),
    };
    let listed: Vec<String> = found
        .iter()
        .map(|device| {
            let memory = device
                .memory_bytes
                .map_or_else(String::new, |memory| format!(", {}", bytes(memory)));
            format!("`{}` ({}{memory})", device.name, device.description)
        })
        .collect();
    let listed = listed.join(", ");
    if found.is_empty() {
        return Check::from_stop(NAME, &Stop::no_device("no device was found that this build can use"))
            .hint("install the driver of your graphics card; `--device cpu` where the worker supports it");
    }
    let missing = configured
        .iter()
        .find(|wanted| *wanted != "auto" && !found.iter().any(|device| device.name == **wanted));
    match missing {
        Some(missing) => Check::fail(NAME, format!("`{missing}` is configured but was not found"))
            .hint(format!("found here: {listed}")),
        None => Check::ok(NAME, listed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_that_of_the_first_failure_and_warnings_cost_nothing() {
        let mut findings = Findings::default();
        findings.add(Code::Config, Check::warn("a", "x").hint("do y"));
        assert_eq!(findings.code(), None);
        assert!(
            findings
                .render()
                .ends_with("\nNothing keeps this worker from serving; 1 warning.\n")
        );
        findings.add(Code::NoModel, Check::fail("b", "z"));
        findings.add(Code::NoDevice, Check::fail("c", "z"));
        assert_eq!(findings.code(), Some(Code::NoModel));
        assert_eq!(findings.to_json()["exit_code"], 66);
        assert_eq!(
            findings.render(),
            "warn  a: x\n      hint: do y\nFAIL  b: z\nFAIL  c: z\n\n2 of 3 checks failed: b, c; 1 warning.\n"
        );
    }

    #[test]
    fn a_slow_models_directory_is_a_warning_in_words_and_in_json() {
        let measured = |bytes_per_second| {
            Ok(ReadSpeed {
                bytes_per_second,
                sample_bytes: 1,
                file: None,
            })
        };
        let mut findings = Findings::default();
        findings.add(Code::Failed, speed_check(measured(120_000_000)));
        findings.add(Code::Failed, speed_check(measured(2_000_000_000)));
        findings.add(
            Code::Failed,
            speed_check(Err(std::io::ErrorKind::PermissionDenied.into())),
        );
        assert_eq!(findings.code(), None);
        let text = findings.render();
        assert!(
            text.starts_with("warn  read speed (models): the models directory reads 120 MB/s: loading a 7 GB model takes about 58 s\n      hint: move `models_dir`"),
            "{text}"
        );
        assert!(text.contains("ok    read speed (models): 2000 MB/s\n"), "{text}");
        assert!(
            text.contains("warn  read speed (models): could not be measured: "),
            "{text}"
        );
        let json = findings.to_json();
        assert_eq!(
            (&json["ok"], &json["checks"][0]["verdict"]),
            (&true.into(), &"warn".into())
        );
    }

    #[tokio::test]
    async fn the_models_directory_is_measured_where_there_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let check = read_speed(dir.path()).await.unwrap();
        assert!(check.message.contains(" MB/s"), "{}", check.message);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(read_speed(&dir.path().join("not-there")).await.is_none());
    }

    #[test]
    fn sizes_are_for_people() {
        assert_eq!(bytes(2048), "2 KiB");
        assert_eq!(bytes(5 << 20), "5 MiB");
        assert_eq!(bytes(3 << 29), "1.5 GiB");
    }
}
