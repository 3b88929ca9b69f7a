//! One world and one state directory, and what most tests of faults do with them.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use local_horde::Fate;
use serde_json::json;
use tempfile::TempDir;
use worker_runtime::Status;

use crate::toy::Toy;
use crate::world::{Call, Meddling, Running, World};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A world with a state directory.
pub struct Case {
    pub world: World,
    pub dir: TempDir,
}

impl Case {
    pub fn new() -> Self {
        Self {
            world: World::new(1),
            dir: tempfile::tempdir().expect("a directory"),
        }
    }

    pub fn start(&self, backend: Toy) -> Running {
        self.world.start(self.dir.path(), backend, self.world.settings(1))
    }

    /// Runs until everything filed is done, and holds both books against each other.
    pub async fn settle(&self, backend: Toy) -> Status {
        let worker = self.start(backend);
        assert!(self.world.until_done(DAY).await, "not done within a day");
        let status = worker.status.clone();
        worker.finish().await.expect("a good end");
        assert_eq!(
            self.world.reckon(self.dir.path(), &BTreeSet::new()),
            Vec::<String>::new()
        );
        status.borrow().clone()
    }

    pub fn fates(&self) -> Vec<Fate> {
        self.world.fates().into_values().collect()
    }
}

/// A refusal with the server's code.
pub fn rc(status: u16, rc: &str) -> Option<Meddling> {
    Some(Meddling::Answer(status, json!({ "rc": rc, "message": "no" })))
}

/// Meddles with the first `n` calls of one sort.
pub fn first(n: u32, of: Call, meddling: Meddling) -> impl Fn(Call, u64) -> Option<Meddling> + Send + Sync {
    let met = AtomicU32::new(0);
    move |call, _| (call == of && met.fetch_add(1, Ordering::Relaxed) < n).then(|| meddling.clone())
}
