//! The LostLove Protocol (LLP) as a pure state machine.
//!
//! Bytes and timestamps go in; frames, packets and events come out. This crate has no clock, no
//! source of randomness, no sockets, no files, no threads and no `unsafe`: time and randomness come
//! in with the input ([`turn::Turn`]), so a run can be repeated byte for byte.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

mod buffer;
mod connection;
mod outbox;
mod rate;
mod session;
mod slab;
mod tools;

pub mod config;
pub mod crypto;
pub mod endpoint;
pub mod error;
pub mod event;
pub mod handshake;
pub mod ip;
pub mod peers;
pub mod record;
pub mod route;
pub mod stats;
pub mod time;
pub mod turn;
pub mod wire;
