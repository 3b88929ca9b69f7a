//! Faces: finding them, and repairing them.

mod gfpgan;
mod restore;
mod restoreformer;
mod retinaface;

pub use restore::{FaceRestorer, RestoreSettings, restore_faces};
pub use retinaface::{Face, FaceDetector, RawFaces};
