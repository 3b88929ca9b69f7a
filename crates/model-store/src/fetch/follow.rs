//! Takes the sum of a file while it arrives: a thread reads behind the contiguous front, so that after the last byte
//! only the tail is left. It reads what is on disk, not what was received, so a resumed start is covered too.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex};

use sha2::Digest;
use tokio::task::JoinHandle;

use crate::digest::Sha256Sum;

#[derive(Default)]
struct Front {
    upto: u64,
    end: Option<End>,
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    Whole,
    Abandoned,
}

/// The running sum. Dropping it ends the thread.
pub(crate) struct Follower {
    front: Arc<(Mutex<Front>, Condvar)>,
    thread: Option<JoinHandle<io::Result<Option<Sha256Sum>>>>,
}

impl Follower {
    pub(crate) fn start(file: Arc<File>) -> Self {
        let front = Arc::new((Mutex::new(Front::default()), Condvar::new()));
        let watched = front.clone();
        let thread = tokio::task::spawn_blocking(move || follow(&file, &watched));
        Self {
            front,
            thread: Some(thread),
        }
    }

    /// Everything below `upto` is written.
    pub(crate) fn advance(&self, upto: u64) {
        let mut front = self.front.0.lock().expect("no holder of this lock panics");
        if upto > front.upto {
            front.upto = upto;
            self.front.1.notify_one();
        }
    }

    /// The file is `total` bytes long and all of them are written: the sum.
    pub(crate) async fn finish(mut self, total: u64) -> io::Result<Sha256Sum> {
        self.advance(total);
        self.end(End::Whole);
        let thread = self.thread.take().expect("taken here only");
        let sum = thread.await.map_err(io::Error::other)??;
        sum.ok_or_else(|| io::Error::other("the sum was abandoned"))
    }

    fn end(&self, end: End) {
        let mut front = self.front.0.lock().expect("no holder of this lock panics");
        front.end.get_or_insert(end);
        self.front.1.notify_one();
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.end(End::Abandoned);
    }
}

fn follow(file: &File, front: &(Mutex<Front>, Condvar)) -> io::Result<Option<Sha256Sum>> {
    let mut sum = sha2::Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    let mut at = 0u64;
    loop {
        let upto = {
            let guard = front.0.lock().expect("no holder of this lock panics");
            let guard = front
                .1
                .wait_while(guard, |front| front.upto <= at && front.end.is_none())
                .expect("no holder of this lock panics");
            match guard.end {
                Some(End::Abandoned) => return Ok(None),
                Some(End::Whole) if guard.upto <= at => return Ok(Some(Sha256Sum::finish(sum))),
                _ => guard.upto,
            }
        };
        while at < upto {
            let want = usize::try_from(upto - at).unwrap_or(usize::MAX).min(buffer.len());
            file.read_exact_at(&mut buffer[..want], at)?;
            sum.update(&buffer[..want]);
            at += want as u64;
        }
    }
}
