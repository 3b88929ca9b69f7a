//! Networks of post-processing, read when a job first names them and kept.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use vision::background::BackgroundRemover;
use vision::face::{FaceDetector, FaceParser, FaceRestorer};
use vision::post::Networks;
pub use vision::post::PostFiles;
use vision::upscale::Upscaler;
use vision::{Device, VisionError, Weights};

/// Networks by their files.
pub struct Installed {
    files: PostFiles,
    device: Device,
    detectors: Kept<FaceDetector>,
    restorers: Kept<FaceRestorer>,
    upscalers: Kept<Upscaler>,
    removers: Kept<BackgroundRemover>,
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
        }
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
        let mut kept = kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(there) = kept.get(path) {
            return Ok(Arc::clone(there));
        }
        let network = Arc::new(load(&Weights::open(path, &self.device)?)?);
        kept.insert(path.clone(), Arc::clone(&network));
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
                    Some(path) => Ok(restorer.with_parser(FaceParser::load(&Weights::open(path, &self.device)?)?)),
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
