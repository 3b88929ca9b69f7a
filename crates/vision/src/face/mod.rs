//! Faces: finding them, and repairing them.

mod codeformer;
mod gfpgan;
#[cfg(test)]
mod made_up;
mod parsenet;
mod restore;
mod restoreformer;
mod retinaface;

pub use parsenet::FaceParser;
pub use restore::{FaceRestorer, RestoreSettings, restore_faces};
pub use retinaface::{Face, FaceDetector, RawFaces};
