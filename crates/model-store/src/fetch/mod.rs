//! Downloads: a file is there whole and verified, or it is not there.
//!
//! [`Downloader::fetch`] takes a [`FetchPlan`], fills `NAME.part` over a few ranged connections, keeps a journal beside it so that
//! any interruption resumes, takes the sum while bytes arrive, and renames the part into place only when size, sum and
//! format are right.

pub mod control;
mod follow;
pub(crate) mod http;
pub(crate) mod part;
pub mod plan;
pub mod progress;
mod ranges;
mod transfer;
pub mod wheel;

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use url::Url;

pub use control::{Backoff, Control, Wanted};
pub use http::{Document, HttpSettings};
pub use plan::{FetchError, FetchPlan, Fetched, Patience, Source, SourceFailure, Wheel};
pub use progress::{Bars, Event, JsonLines, Progress, Silent};

use self::follow::Follower;
use self::http::Http;
use self::part::{Opened, Part};
use self::transfer::{Board, Halt, Transfer};
use crate::digest::Sha256Sum;
use crate::disk::{self, FreeSpace};
use crate::stamp::Stamp;

/// How downloads behave.
#[derive(Clone)]
pub struct FetchSettings {
    /// Network rules and secrets.
    pub http: HttpSettings,
    /// Connections for one file, 1 and up.
    pub connections_per_file: usize,
    /// Connections to one host, all files together.
    pub connections_per_host: usize,
    /// Files at the same time.
    pub files_at_once: usize,
    /// Cap over all connections, bytes per second; `None` for no cap.
    pub bytes_per_second: Option<u64>,
    /// Bytes that stay free on the disk, before and during.
    pub floor_bytes: u64,
    /// Waits between failures.
    pub backoff: Backoff,
    /// Length of one range; `None` chooses 4–32 MiB by the file's size.
    pub chunk_bytes: Option<u64>,
    /// Command that runs Python's pip, for wheel sources; empty to search for one.
    pub pip: Vec<String>,
    /// Who tells the free space.
    pub free_space: FreeSpace,
}

impl Default for FetchSettings {
    fn default() -> Self {
        Self {
            http: HttpSettings::default(),
            connections_per_file: 6,
            connections_per_host: 12,
            files_at_once: 2,
            bytes_per_second: None,
            floor_bytes: 2 << 30,
            backoff: Backoff::default(),
            chunk_bytes: None,
            pip: Vec::new(),
            free_space: disk::real_free_space(),
        }
    }
}

/// Fetches files; shares connections, cap and per-host limits between them. Cheap to clone.
#[derive(Clone)]
pub struct Downloader {
    http: Http,
    settings: Arc<FetchSettings>,
    throttle: Arc<control::Throttle>,
    hosts: Arc<Mutex<HashMap<String, Arc<Semaphore>>>>,
    wheels: Arc<tokio::sync::Mutex<()>>,
}

impl Downloader {
    /// A downloader by these settings.
    pub fn new(settings: FetchSettings) -> Result<Self, FetchError> {
        Ok(Self {
            http: Http::new(settings.http.clone())?,
            throttle: Arc::new(control::Throttle::new(settings.bytes_per_second)),
            settings: Arc::new(settings),
            hosts: Arc::default(),
            wheels: Arc::default(),
        })
    }

    /// Has one file. If it already stands at `plan.dest` with the right sum, nothing is fetched.
    ///
    /// # Cancellation
    /// May be dropped at any time; what has arrived is resumed by the next call.
    pub async fn fetch(
        &self,
        plan: &FetchPlan,
        progress: &dyn Progress,
        control: &Control,
    ) -> Result<Fetched, FetchError> {
        let outcome = self.fetch_quietly(plan, progress, control).await;
        progress.event(match &outcome {
            Ok(fetched) => Event::Done {
                file: plan.name.clone(),
                path: fetched.path.clone(),
                bytes: fetched.bytes,
                sha256: fetched.sha256,
                already_there: fetched.already_there,
            },
            Err(error) => Event::Failed {
                file: plan.name.clone(),
                reason: error.to_string(),
            },
        });
        outcome
    }

    /// Has several files, a few at a time; one outcome per plan, in the plans' order.
    pub async fn fetch_all(
        &self,
        plans: &[FetchPlan],
        progress: &dyn Progress,
        control: &Control,
    ) -> Vec<Result<Fetched, FetchError>> {
        progress.event(Event::Planned {
            files: plans.len(),
            bytes: plans.iter().filter_map(|plan| plan.size_bytes).sum(),
        });
        let jobs = plans.iter().map(|plan| self.fetch(plan, progress, control));
        futures_util::stream::iter(jobs)
            .buffered(self.settings.files_at_once.max(1))
            .collect()
            .await
    }

    /// GET of a small document (a reference, an API answer) within `deadline`.
    pub async fn get_document(
        &self,
        url: &Url,
        max_bytes: usize,
        deadline: Duration,
    ) -> Result<Vec<u8>, SourceFailure> {
        let body = self.http.get_small(url, max_bytes, deadline).await;
        body.map_err(SourceFailure::from)
    }

    /// The same with what the server calls its state; `None` where that is still `etag`.
    pub async fn get_document_unless(
        &self,
        url: &Url,
        max_bytes: usize,
        deadline: Duration,
        etag: Option<&str>,
    ) -> Result<Option<Document>, SourceFailure> {
        let document = self.http.get_small_unless(url, max_bytes, deadline, etag).await;
        document.map_err(SourceFailure::from)
    }

    async fn fetch_quietly(
        &self,
        plan: &FetchPlan,
        progress: &dyn Progress,
        control: &Control,
    ) -> Result<Fetched, FetchError> {
        if let Some(dir) = plan.dest.parent() {
            std::fs::create_dir_all(dir).map_err(|e| io_error(&plan.dest, e))?;
        }
        if let Some(there) = already_there(plan).await? {
            return Ok(there);
        }
        let (part, journal) = loop {
            match Part::open(plan).map_err(|e| io_error(&plan.dest, e))? {
                Opened::Ours(ours) => break *ours,
                Opened::Busy => progress.event(Event::Waiting {
                    file: plan.name.clone(),
                }),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
            if control.wanted() == Wanted::Stop {
                return Err(FetchError::Stopped);
            }
        };
        // The process that held the lock may have finished the file while we waited.
        if let Some(there) = already_there(plan).await? {
            part.discard();
            return Ok(there);
        }
        let resumed_bytes = journal.done.bytes();
        let needed = plan.size_bytes.unwrap_or(0);
        if let Err(error) = self.check_room(plan, needed, part.allocated_bytes()) {
            if resumed_bytes == 0 {
                part.discard();
            }
            return Err(error);
        }
        let follower = Follower::start(part.file.clone());
        let transfer = Transfer {
            downloader: self,
            plan,
            part: &part,
            progress,
            control,
            board: Mutex::new(Board::new(journal, follower)),
        };
        let mut tried = Vec::new();
        for source in &plan.sources {
            progress.event(Event::Started {
                file: plan.name.clone(),
                total_bytes: plan.size_bytes,
                resumed_bytes,
                source: source.label(),
            });
            match self.fill_and_verify(&transfer, source).await {
                Ok((bytes, sha256)) => {
                    drop(transfer);
                    let dest = plan.dest.clone();
                    let path = part.path().to_owned();
                    tokio::task::spawn_blocking(move || {
                        part.finish(&dest)?;
                        Stamp::new(&dest, sha256).map(|stamp| stamp.write(&dest))
                    })
                    .await
                    .unwrap_or_else(|e| Err(io::Error::other(e)))
                    .map_err(|e| io_error(&path, e))?;
                    return Ok(Fetched {
                        path: plan.dest.clone(),
                        bytes,
                        sha256,
                        already_there: false,
                        resumed_bytes,
                    });
                }
                Err(Halt::Fatal(error)) => {
                    let nothing_kept = transfer.done_bytes() == 0;
                    drop(transfer);
                    if nothing_kept {
                        part.discard();
                    }
                    return Err(error);
                }
                Err(Halt::Source(failure)) => {
                    progress.event(Event::SourceFailed {
                        file: plan.name.clone(),
                        source: source.label(),
                        reason: failure.to_string(),
                    });
                    tried.push((source.label(), failure));
                }
            }
        }
        let nothing_kept = transfer.done_bytes() == 0;
        drop(transfer);
        if nothing_kept {
            part.discard();
        }
        Err(FetchError::AllSourcesFailed {
            name: plan.name.clone(),
            tried,
        })
    }

    /// Fills the part from one source and verifies it. A verified failure empties the part: nothing of it is trusted.
    async fn fill_and_verify(&self, transfer: &Transfer<'_>, source: &Source) -> Result<(u64, Sha256Sum), Halt> {
        match source {
            Source::Url { url } => transfer.run(url).await?,
            Source::Wheel(wheel) => wheel::fill(transfer, wheel).await?,
        }
        let plan = transfer.plan;
        transfer.progress.event(Event::Verifying {
            file: plan.name.clone(),
        });
        let (bytes, sum) = transfer.take_sum().await?;
        let failure = match plan.sha256 {
            Some(expected) if expected != sum => Some(SourceFailure::WrongHash { found: sum, expected }),
            _ => {
                let path = transfer.part.path().to_owned();
                let kind = crate::formats::Format::of(&plan.dest);
                let checked =
                    tokio::task::spawn_blocking(move || kind.map_or(Ok(()), |kind| kind.precheck(&path))).await;
                match checked {
                    Ok(Ok(())) => None,
                    Ok(Err(refusal)) => Some(SourceFailure::Malformed {
                        reason: refusal.to_string(),
                    }),
                    Err(panic) => Some(SourceFailure::Malformed {
                        reason: panic.to_string(),
                    }),
                }
            }
        };
        match failure {
            None => Ok((bytes, sum)),
            Some(failure) => {
                transfer.start_over()?;
                Err(Halt::Source(failure))
            }
        }
    }

    /// Is there room for `total` bytes, of which `there` are already on disk, above the floor?
    fn check_room(&self, plan: &FetchPlan, total: u64, there: u64) -> Result<(), FetchError> {
        let needed = total.saturating_sub(there);
        let free = (self.settings.free_space)(&plan.dest).map_err(|e| io_error(&plan.dest, e))?;
        if free.saturating_sub(needed) < self.settings.floor_bytes {
            return Err(FetchError::DiskFloor {
                name: plan.name.clone(),
                needed_bytes: needed,
                free_bytes: free,
                floor_bytes: self.settings.floor_bytes,
            });
        }
        Ok(())
    }

    async fn host_permit(&self, url: &Url) -> OwnedSemaphorePermit {
        let host = url.host_str().unwrap_or_default().to_owned();
        let limit = self.settings.connections_per_host.max(1);
        let semaphore = {
            let mut hosts = self.hosts.lock().expect("no holder of this lock panics");
            hosts
                .entry(host)
                .or_insert_with(|| Arc::new(Semaphore::new(limit)))
                .clone()
        };
        semaphore.acquire_owned().await.expect("the semaphore is never closed")
    }
}

async fn already_there(plan: &FetchPlan) -> Result<Option<Fetched>, FetchError> {
    let (dest, size, wanted) = (plan.dest.clone(), plan.size_bytes, plan.sha256);
    let look = move || -> io::Result<Option<(u64, Sha256Sum)>> {
        let Ok(meta) = std::fs::metadata(&dest) else {
            return Ok(None);
        };
        if !meta.is_file() || size.is_some_and(|size| size != meta.len()) {
            return Ok(None);
        }
        let (sum, is_right) = Stamp::judge(&dest, wanted)?;
        Ok(is_right.then_some((meta.len(), sum)))
    };
    let found = tokio::task::spawn_blocking(look)
        .await
        .unwrap_or_else(|e| Err(io::Error::other(e)))
        .map_err(|e| io_error(&plan.dest, e))?;
    Ok(found.map(|(bytes, sha256)| Fetched {
        path: plan.dest.clone(),
        bytes,
        sha256,
        already_there: true,
        resumed_bytes: 0,
    }))
}

/// Sorts an error of the file system into what the owner can do about it.
pub(crate) fn io_error(path: &Path, source: io::Error) -> FetchError {
    if disk::is_out_of_space(&source) {
        FetchError::DiskFull {
            path: path.to_owned(),
            source,
        }
    } else if disk::is_not_writable(&source) {
        FetchError::NotWritable {
            dir: path.parent().unwrap_or(path).to_owned(),
            source,
        }
    } else {
        FetchError::Io {
            path: path.to_owned(),
            source,
        }
    }
}
