//! The program around a worker: configuration, command line, state directory, display, logging, doctor. Knows no engine and no kind of job.
