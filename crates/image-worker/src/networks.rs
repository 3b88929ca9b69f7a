//! Networks of post-processing, read when a job first names them and kept.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vision::background::BackgroundRemover;
use vision::face::{FaceDetector, FaceParser, FaceRestorer};
use vision::post::Networks;
pub use vision::post::PostFiles;
use vision::upscale::{Tiling, Upscaler};
use vision::{Device, VisionError, Weights};

use crate::post::{PostNeed, weights_bytes};

/// Networks by their files.
pub struct Installed {
    files: PostFiles,
    device: Device,
    detectors: Kept<FaceDetector>,
    restorers: Kept<FaceRestorer>,
    upscalers: Kept<Upscaler>,
    removers: Kept<BackgroundRemover>,
    held_bytes: AtomicU64,
}

type Kept<T> = Mutex<BTreeMap<PathBuf, Arc<T>>>;

impl Installed {
    /// Nothing is read yet.
    pub fn new(files: PostFiles, device: Device) -> Self {
        Self {
            files,
            device,
            detectors: Mutex::default(),
            restorers: Mutex::default(),
            upscalers: Mutex::default(),
            removers: Mutex::default(),
            held_bytes: AtomicU64::new(0),
        }
    }

    /// What all of them together need; one job may name them all, but one upscaler only.
    pub fn need_of_all(&self) -> PostNeed {
        PostNeed::of_all(&self.files)
    }

    /// What the post-processors of a job need.
    pub fn need(&self, names: &[String]) -> PostNeed {
        PostNeed::of_files(&self.files, names.iter().map(String::as_str))
    }

    /// Bytes of the networks in memory.
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes.load(Ordering::Relaxed)
    }

    /// Lets all networks go; what a job still uses goes with it. True if there were any.
    pub fn let_go(&self) -> bool {
        fn empty<T>(kept: &Kept<T>) {
            kept.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
        empty(&self.detectors);
        empty(&self.restorers);
        empty(&self.upscalers);
        empty(&self.removers);
        self.held_bytes.swap(0, Ordering::Relaxed) > 0
    }

    fn file(&self, name: &str) -> vision::Result<&PathBuf> {
        let none = || VisionError::Input(format!("the post-processor `{name}` is not installed"));
        self.files.networks.get(name).ok_or_else(none)
    }

    fn have<T>(
        &self,
        kept: &Kept<T>,
        path: &PathBuf,
        load: impl FnOnce(&Weights) -> vision::Result<T>,
    ) -> vision::Result<Arc<T>> {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = kept.get(path) {
            return Ok(Arc::clone(there));
        }
        let network = Arc::new(load(&Weights::open(path, &self.device)?)?);
        kept.insert(path.clone(), Arc::clone(&network));
        self.held_bytes.fetch_add(weights_bytes(path), Ordering::Relaxed);
        Ok(network)
    }
}

impl Networks for Installed {
    fn faces(&self, name: &str) -> vision::Result<(Arc<FaceDetector>, Arc<FaceRestorer>)> {
        let restorer = self.file(name)?;
        let none = || VisionError::Input("no detector of faces is installed".into());
        let detector = self.files.detector.as_ref().ok_or_else(none)?;
        Ok((
            self.have(&self.detectors, detector, FaceDetector::load)?,
            self.have(&self.restorers, restorer, |weights| {
                let restorer = FaceRestorer::load(weights)?;
                match &self.files.parser {
                    Some(path) => {
                        let parser = FaceParser::load(&Weights::open(path, &self.device)?)?;
                        self.held_bytes.fetch_add(weights_bytes(path), Ordering::Relaxed);
                        Ok(restorer.with_parser(parser))
                    }
                    None => Ok(restorer),
                }
            })?,
        ))
    }

    fn upscaler(&self, name: &str) -> vision::Result<Arc<Upscaler>> {
        self.have(&self.upscalers, self.file(name)?, Upscaler::load)
    }

    fn remover(&self) -> vision::Result<Arc<BackgroundRemover>> {
        self.have(&self.removers, self.file("strip_background")?, BackgroundRemover::load)
    }
}

/// The networks as one job uses them.
pub struct InTiles<'a> {
    /// All networks.
    pub installed: &'a Installed,
    /// How pictures are cut for the upscaler.
    pub tiling: Tiling,
}

impl Networks for InTiles<'_> {
    fn faces(&self, name: &str) -> vision::Result<(Arc<FaceDetector>, Arc<FaceRestorer>)> {
        self.installed.faces(name)
    }

    fn upscaler(&self, name: &str) -> vision::Result<Arc<Upscaler>> {
        self.installed.upscaler(name)
    }

    fn remover(&self) -> vision::Result<Arc<BackgroundRemover>> {
        self.installed.remover()
    }

    fn tiling(&self) -> Tiling {
        self.tiling
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_installed_is_named() {
        let none = Installed::new(PostFiles::default(), Device::Cpu);
        assert!(
            none.upscaler("NMKD_Siax")
                .is_err_and(|error| error.to_string().contains("not installed"))
        );
    }
}
