//! Tuning thresholds on labelled pictures of which only CLIP's vectors are kept.

mod embedder;
mod made_up;
mod measure;
mod set;
mod tune;
mod verdicts;

pub use embedder::Embedder;
pub use made_up::made_up;
pub use measure::{Point, auc, point, threshold_at_fpr, wilson_95};
pub use set::{LabelledSet, Labels, labels_of};
pub use tune::{GroupReport, PhraseReport, Report, Want, report, tune};
pub use verdicts::VerdictReport;
