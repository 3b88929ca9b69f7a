//! Tuning thresholds on labelled pictures of which only CLIP's vectors are kept.

mod embedder;
mod measure;
mod set;
mod tune;

pub use embedder::Embedder;
pub use measure::{Point, auc, point, threshold_at_fpr};
pub use set::{LabelledSet, Labels, labels_of};
pub use tune::{GroupReport, PhraseReport, Report, Want, report, tune};
