//! Which file serves which post-processor: one table for everybody who offers them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Kind, NAMES};

/// Files of the post-processors that are installed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostFiles {
    /// Finds faces.
    pub detector: Option<PathBuf>,
    /// Tells face from hair, where it is there; see [`crate::face::FaceRestorer::with_parser`].
    #[serde(default)]
    pub parser: Option<PathBuf>,
    /// One network by the Horde's name; restorers only together with a detector.
    pub networks: BTreeMap<String, PathBuf>,
}

const DETECTORS: [&str; 2] = [
    "gfpgan/detection_Resnet50_Final.safetensors",
    "gfpgan/retinaface_mobilenet0.25.safetensors",
];
const PARSER: &str = "gfpgan/parsing_parsenet.safetensors";

/// Files below the models directory that can serve a post-processor, the best first.
fn candidates(name: &str, kind: Kind) -> Vec<String> {
    let names: &[&str] = match (kind, name) {
        (Kind::CutOut, _) => &[
            "rembg/u2net.safetensors",
            "rembg/isnet.safetensors",
            "rembg/u2netp.safetensors",
        ],
        (Kind::Faces, "GFPGAN") => &["gfpgan/GFPGANv1.4.safetensors"],
        (Kind::Faces, "CodeFormers") => &["codeformer/codeformer.safetensors"],
        (Kind::Upscale, name) => return vec![format!("esrgan/{name}.safetensors")],
        (Kind::Faces, name) => return vec![format!("gfpgan/{name}.safetensors")],
    };
    names.iter().map(|name| (*name).to_owned()).collect()
}

impl PostFiles {
    /// Looks below the models directory.
    pub fn find(models: &Path) -> Self {
        let first = |names: &[String]| names.iter().map(|name| models.join(name)).find(|path| path.is_file());
        let detector = first(&DETECTORS.map(str::to_owned));
        let file = |name: &str, kind: Kind| match kind {
            Kind::Faces if detector.is_none() => None,
            kind => first(&candidates(name, kind)),
        };
        let networks = NAMES
            .iter()
            .filter_map(|(name, kind)| Some(((*name).to_owned(), file(name, *kind)?)))
            .collect();
        Self {
            parser: first(&[PARSER.to_owned()]),
            detector,
            networks,
        }
    }

    /// The first of `names` that has no file.
    pub fn missing<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
        names.into_iter().find(|name| !self.networks.contains_key(*name))
    }

    /// The file that a post-processor lacks; `None` for one that is installed or unknown.
    pub fn lacks(&self, name: &str, models: &Path) -> Option<PathBuf> {
        let (_, kind) = NAMES.iter().find(|(known, _)| *known == name)?;
        if self.networks.contains_key(name) {
            return None;
        }
        let wanted = candidates(name, *kind)
            .into_iter()
            .find(|file| !models.join(file).is_file());
        // Its own file is there: then it is a restorer without a detector.
        Some(models.join(wanted.as_deref().unwrap_or(DETECTORS[0])))
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
        let lacks = |name: &str| {
            found
                .lacks(name, models.path())
                .map(|path| path.file_name().unwrap().to_owned())
        };
        assert_eq!(lacks("GFPGAN").unwrap(), "detection_Resnet50_Final.safetensors");
        assert_eq!(lacks("CodeFormers").unwrap(), "codeformer.safetensors");
        assert_eq!((lacks("NMKD_Siax"), lacks("caption")), (None, None));
        write("gfpgan/retinaface_mobilenet0.25.safetensors");
        assert_eq!(PostFiles::find(models.path()).missing(["GFPGAN"]), None);
    }
}
