//! Whole files.

mod every_key;
mod examples;
mod meanings;
mod messages;
mod mutations;
mod peer_files;
mod relations;
mod secrets;
