//! What a running worker tells about itself: plain data for the display and for `status.json`. Holds no prompt, no
//! result, no key and no address.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

/// The whole state at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// `image`, `text` or `alchemy`.
    pub kind: String,
    /// What the worker is about.
    pub state: State,
    /// When a pause ends by itself, in milliseconds since 1970.
    pub paused_until_unix_ms: Option<i64>,
    /// Why no work is asked for at the moment; `None` while it is.
    pub idle: Option<String>,
    /// Jobs held, oldest first.
    pub jobs: Vec<JobStatus>,
    /// Results on their way to the server, in generations.
    pub outbox: usize,
    /// Devices in the order configured.
    pub devices: Vec<DeviceStatus>,
    /// How asking for work goes.
    pub poll: PollStatus,
    /// What was done since the start.
    pub totals: Totals,
    /// Kudos of the last hour (or since the start, scaled to an hour once five minutes have passed).
    pub kudos_per_hour: f64,
    /// Share of device time spent on jobs since the devices were ready, 0..=1.
    pub busy_fraction: f64,
    /// Whether popping rests because of faults.
    pub rest: Option<RestStatus>,
    /// The last events, oldest first, at most [`Status::EVENTS`].
    pub events: VecDeque<Event>,
    /// Messages of the server's operators, each once.
    pub messages: Vec<ServerMessage>,
    /// Seconds since the start.
    pub uptime_s: f64,
    /// When this was written, in milliseconds since 1970.
    pub updated_unix_ms: i64,
}

impl Status {
    /// Most events kept.
    pub const EVENTS: usize = 50;
}

/// What the worker is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Engines are being loaded.
    #[default]
    Starting,
    /// Serving.
    Running,
    /// Resting at the owner's wish.
    Paused,
    /// Ending what it holds, then exiting.
    Finishing,
    /// Exiting.
    Stopping,
}

/// One job that is held.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct JobStatus {
    /// The first eight characters of its first id.
    pub id: String,
    /// Model, where the kind has models.
    pub model: Option<String>,
    /// Results it must bring.
    pub generations: usize,
    /// Where it is.
    pub stage: Stage,
    /// The device it runs on.
    pub device: Option<String>,
    /// Steps (tokens, tiles) done, of `total`, in `phase`.
    pub done: u32,
    /// Steps of the phase.
    pub total: u32,
    /// One word of the engine's.
    pub phase: String,
    /// Steps per second.
    pub rate: Option<f64>,
    /// Seconds until it leaves the device.
    pub eta_s: Option<f64>,
    /// Seconds since its pop.
    pub age_s: f64,
    /// Seconds its lease has in all.
    pub ttl_s: f64,
}

/// Where a job is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Its inputs are being fetched.
    #[default]
    Preparing,
    /// Ready, waiting for a device.
    Waiting,
    /// On a device.
    Running,
    /// Its results are checked, uploaded, submitted or handed back.
    Delivering,
}

/// One device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceStatus {
    /// As configured: `cuda:0`, `cpu`.
    pub name: String,
    /// One word: `loading`, `ready`, `stopped`, `failed`, `refused`.
    pub state: String,
    /// Why, where it is not ready.
    pub reason: Option<String>,
    /// Jobs it runs at once.
    pub capacity: usize,
    /// Jobs on it.
    pub running: usize,
    /// Share of its ready time with at least one job, 0..=1.
    pub busy_fraction: f64,
    /// The engine's own facts, as reported.
    pub facts: serde_json::Value,
}

/// How asking for work goes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PollStatus {
    /// Pops answered.
    pub pops: u64,
    /// Pops that brought a job.
    pub hits: u64,
    /// Pops that failed.
    pub failed: u64,
    /// Failed pops after which the server may hold a job for us that we never saw.
    pub ghosts: u64,
    /// Pops that were still under way when the worker had to leave.
    pub dropped: u64,
    /// Seconds until the next pop, where one is planned.
    pub next_in_s: Option<f64>,
    /// Why requests were passed over in the last empty answer.
    pub skipped: BTreeMap<String, i64>,
}

/// Counters, in generations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Taken by the server, those it already had among them.
    pub submitted: u64,
    /// Handed back.
    pub faulted: u64,
    /// Given up by the server.
    pub expired: u64,
    /// Kudos promised.
    pub kudos: f64,
    /// Things made, in the kind's unit.
    pub units: f64,
}

/// Popping rests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RestStatus {
    /// Why, in words.
    pub why: String,
    /// Seconds left.
    pub left_s: f64,
    /// Generations handed back within the last hour.
    pub faults_last_hour: usize,
}

/// Something worth telling.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Milliseconds since 1970.
    pub at_unix_ms: i64,
    /// How much it matters.
    pub level: Level,
    /// One line, escaped.
    pub text: String,
}

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// All is well.
    Good,
    /// Worth a look.
    Warning,
    /// The owner should do something.
    Bad,
}

/// A message of the server's operators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerMessage {
    /// Shown once per id.
    pub id: String,
    /// Escaped, at most 1 KiB.
    pub text: String,
    /// Who wrote it, escaped.
    pub origin: Option<String>,
}
