//! The promises of this room: strangers' bytes are refused cheaply or decoded as the field decodes them.

mod bad_input;
mod damage;
mod formats;
mod resampling;
