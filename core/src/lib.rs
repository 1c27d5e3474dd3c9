//! The LostLove Protocol (LLP) as a pure state machine.
//!
//! Bytes and timestamps go in; frames, packets and events come out. This crate has no clock, no
//! source of randomness, no sockets, no files, no threads and no `unsafe`: time and randomness come
//! in with the input ([`turn::Turn`]), so a run can be repeated byte for byte.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::unwrap_used))]
#![cfg_attr(
    not(feature = "internals"),
    expect(
        unreachable_pub,
        reason = "what `internals` shows is public with it alone"
    )
)]

mod buffer;
mod connection;
mod handshake;
mod outbox;
mod rate;
mod record;
mod route;
mod session;
mod slab;
mod tools;
mod wire;

pub mod config;
pub mod crypto;
pub mod endpoint;
pub mod error;
pub mod event;
pub mod figures;
pub mod foreign;
#[cfg(feature = "internals")]
pub mod internals;
pub mod ip;
pub mod peers;
pub mod stats;
pub mod text;
pub mod time;
pub mod turn;
