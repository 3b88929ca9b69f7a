//! Model references, files on disk, downloads and safe formats. Knows files and hashes; knows no engine and no job.
