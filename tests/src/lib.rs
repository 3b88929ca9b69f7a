//! Whole workers against local-horde, one file per promise.
