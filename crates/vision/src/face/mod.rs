//! Faces: finding them, and repairing them.

mod align;
mod codeformer;
mod gfpgan;
#[cfg(test)]
mod made_up;
mod parsenet;
mod repair;
mod restore;
mod restoreformer;
mod retinaface;
mod vqgan;

pub use parsenet::FaceParser;
pub use repair::{RestoreSettings, restore_faces};
pub use restore::FaceRestorer;
pub use retinaface::{Face, FaceDetector, RawFaces};
