//! Model references, files on disk, downloads and safe formats. Knows files and hashes; knows no engine and no job.

pub mod adhoc;
mod archive;
pub mod command;
pub mod digest;
pub mod disk;
pub mod fetch;
pub mod formats;
pub mod import;
pub mod names;
pub mod reference;
pub mod speed;
pub mod stamp;
pub mod store;
pub mod token;
pub mod trust;
