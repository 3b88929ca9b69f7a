//! The life of a job, from pop to submit, for any kind of work. Knows no kind of job by name and no model.

pub mod backend;
