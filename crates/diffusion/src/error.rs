//! What can go wrong between a request and its pictures.

use std::path::PathBuf;

/// Why a model could not be loaded or a picture not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be opened or mapped.
    #[error("cannot read `{}`", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A file is not what it should be: a bad header, a tensor beyond the end, a broken configuration.
    #[error("`{}` is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A PyTorch checkpoint, whose reading can run whatever its maker wrote into it.
    #[error("`{}` is a pickle, which may run a stranger's code when it is read\nhint: use the model's safetensors file, or convert it", path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
    },
    /// The weights lack a tensor, or hold it in another shape.
    #[error("the model does not fit: {0}")]
    Weights(String),
    /// A LoRA or an embedding that does not belong to this model.
    #[error("`{name}` does not fit this model: {reason}")]
    Adapter {
        /// Its name as requested.
        name: String,
        /// Why not.
        reason: String,
    },
    /// A value of the request that no clamp can mend.
    #[error("the request cannot be served: {0}")]
    Request(String),
    /// The picture came out as not-a-number or one flat colour, twice.
    #[error("the model gave {0} instead of a picture")]
    NoPicture(&'static str),
    /// Somebody asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// The tensor library refused.
    #[error("the device failed: {0}")]
    Device(#[from] candle_core::Error),
}

/// Shorthand.
pub type Result<T, E = Error> = std::result::Result<T, E>;
