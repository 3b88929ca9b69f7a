//! How fast the models directory reads: a model of several gigabytes on a slow disk stalls every change of models.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use serde::Serialize;

/// Least bytes for a figure worth naming.
const MIN_SAMPLE_BYTES: u64 = 32 << 20;
/// Most bytes that are read.
const MAX_SAMPLE_BYTES: u64 = 256 << 20;
/// Longest time spent reading.
const MAX_TIME: Duration = Duration::from_secs(4);
/// Below this, doctor warns: a 7 GB model takes more than half a minute.
pub const SLOW_BYTES_PER_SECOND: u64 = 200_000_000;

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct ReadSpeed {
    /// Sequential read, past the page cache.
    pub bytes_per_second: u64,
    /// Bytes that were read.
    pub sample_bytes: u64,
    /// A model file, or `None` for a temporary one.
    pub file: Option<PathBuf>,
}

impl ReadSpeed {
    /// In words, where the owner should know.
    pub fn warning(&self) -> Option<String> {
        (self.bytes_per_second < SLOW_BYTES_PER_SECOND).then(|| {
            format!(
                "the models directory reads {} MB/s: loading a 7 GB model takes about {} s",
                self.bytes_per_second / 1_000_000,
                7_000_000_000 / self.bytes_per_second.max(1)
            )
        })
    }
}

/// Reads the largest model file, or a temporary file where there is none. Blocks for at most a few seconds.
pub fn measure(dir: &Path) -> io::Result<ReadSpeed> {
    let mut largest = None;
    largest_file(dir, 0, &mut largest);
    match largest {
        Some((bytes, path)) if bytes >= MIN_SAMPLE_BYTES => time(&File::open(&path)?, Some(path)),
        _ => {
            fs::create_dir_all(dir)?;
            let path = dir.join(format!(".speed-{}", std::process::id()));
            let sample = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
            // Without a name it is gone whatever happens.
            fs::remove_file(&path)?;
            let mut writer = &sample;
            // Noise, since some file systems pack zeros away.
            let mut state = 0x2545_F491_4F6C_DD1Du64;
            let mut block = vec![0u8; 1 << 20];
            for eight in block.chunks_exact_mut(8) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                eight.copy_from_slice(&state.to_le_bytes());
            }
            for _ in 0..(2 * MIN_SAMPLE_BYTES) >> 20 {
                writer.write_all(&block)?;
            }
            sample.sync_all()?;
            time(&sample, None)
        }
    }
}

fn time(mut file: &File, path: Option<PathBuf>) -> io::Result<ReadSpeed> {
    let drop_cache = |file: &File| posix_fadvise(file.as_fd(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    // Memory-backed file systems do not drop anything: then their speed is memory's, which is the truth.
    let _ = drop_cache(file);
    io::Seek::rewind(&mut file)?;
    let mut buffer = vec![0u8; 4 << 20];
    let (start, mut done) = (Instant::now(), 0u64);
    while done < MAX_SAMPLE_BYTES && start.elapsed() < MAX_TIME {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        done += n as u64;
    }
    let seconds = start.elapsed().as_secs_f64().max(1e-6);
    Ok(ReadSpeed {
        bytes_per_second: (done as f64 / seconds) as u64,
        sample_bytes: done,
        file: path,
    })
}

fn largest_file(dir: &Path, depth: usize, largest: &mut Option<(u64, PathBuf)>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        match entry.metadata() {
            Ok(meta) if meta.is_dir() && depth < 4 => largest_file(&entry.path(), depth + 1, largest),
            Ok(meta) if meta.is_file() && largest.as_ref().is_none_or(|(bytes, _)| *bytes < meta.len()) => {
                *largest = Some((meta.len(), entry.path()));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_directory_is_measured_with_a_file_that_does_not_stay() {
        let dir = tempfile::tempdir().unwrap();
        let speed = measure(dir.path()).unwrap();
        assert!(speed.sample_bytes >= MIN_SAMPLE_BYTES && speed.bytes_per_second > 0 && speed.file.is_none());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_hard_disk_is_warned_about() {
        let speed = |bytes_per_second| ReadSpeed {
            bytes_per_second,
            sample_bytes: 1,
            file: None,
        };
        assert!(speed(120_000_000).warning().unwrap().contains("120 MB/s"));
        assert!(speed(2_000_000_000).warning().is_none());
    }
}
