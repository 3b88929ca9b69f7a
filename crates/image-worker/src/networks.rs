//! Networks of post-processing, read when a job first names them and kept.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use vision::background::BackgroundRemover;
use vision::face::{FaceDetector, FaceRestorer};
use vision::post::{Kind, NAMES, Networks};
use vision::upscale::Upscaler;
use vision::{Device, VisionError, Weights};

/// Files of the post-processors that are installed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PostFiles {
    /// Finds faces.
    pub detector: Option<PathBuf>,
    /// One network by the Horde's name; restorers only together with a detector.
    pub networks: BTreeMap<String, PathBuf>,
}

impl PostFiles {
    /// Looks below the models directory, in the folders that the alchemist uses too.
    pub fn find(models_dir: &std::path::Path) -> Self {
        let first = |names: &[&str]| {
            names
                .iter()
                .map(|name| models_dir.join(name))
                .find(|path| path.is_file())
        };
        let detector = first(&[
            "gfpgan/detection_Resnet50_Final.safetensors",
            "gfpgan/retinaface_mobilenet0.25.safetensors",
        ]);
        let file = |name: &str, kind: Kind| match (kind, name) {
            (Kind::CutOut, _) => first(&[
                "rembg/u2net.safetensors",
                "rembg/isnet.safetensors",
                "rembg/u2netp.safetensors",
            ]),
            (Kind::Upscale, name) => first(&[&format!("esrgan/{name}.safetensors")]),
            (Kind::Faces, _) if detector.is_none() => None,
            (Kind::Faces, "GFPGAN") => first(&["gfpgan/GFPGANv1.4.safetensors"]),
            (Kind::Faces, "CodeFormers") => first(&["codeformer/codeformer.safetensors"]),
            (Kind::Faces, name) => first(&[&format!("gfpgan/{name}.safetensors")]),
        };
        let networks = NAMES
            .iter()
            .filter_map(|(name, kind)| Some(((*name).to_owned(), file(name, *kind)?)))
            .collect();
        Self { detector, networks }
    }

    /// The first of `names` that has no file.
    pub fn missing<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
        names.into_iter().find(|name| !self.networks.contains_key(*name))
    }
}

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
            self.have(&self.restorers, restorer, FaceRestorer::load)?,
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
    fn restorers_count_only_with_a_detector() {
        let models = tempfile::tempdir().unwrap();
        let write = |name: &str| {
            let path = models.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, b"x").unwrap();
        };
        write("gfpgan/GFPGANv1.4.safetensors");
        write("esrgan/NMKD_Siax.safetensors");
        write("rembg/u2netp.safetensors");
        let found = PostFiles::find(models.path());
        assert_eq!(
            found.networks.keys().collect::<Vec<_>>(),
            ["NMKD_Siax", "strip_background"]
        );
        assert_eq!(found.missing(["NMKD_Siax", "GFPGAN"]), Some("GFPGAN"));
        write("gfpgan/retinaface_mobilenet0.25.safetensors");
        assert_eq!(PostFiles::find(models.path()).missing(["GFPGAN"]), None);
        let none = Installed::new(PostFiles::default(), Device::Cpu);
        assert!(
            none.upscaler("NMKD_Siax")
                .is_err_and(|error| error.to_string().contains("not installed"))
        );
    }
}
