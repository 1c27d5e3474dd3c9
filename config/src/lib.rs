//! LostLove's configuration: TOML in, validated settings out.
//!
//! [`load_server`] and [`load_client`] read the named file and the key files it names, and nothing
//! else. Whatever is wrong is reported at once, each problem with its place, the key, what was
//! expected and the nearest valid name:
//!
//! ```text
//! server.toml:3:1: server.bind_adress: unknown key; did you mean bind_address?
//! server.toml:12:8: network.mtu: expected 576 to 9000, found 100
//! ```
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

mod client;
mod duplicate;
mod expiry;
mod forwarding;
mod peer_files;
mod peers;
mod pool;
mod problem;
mod reader;
mod sections;
mod server;
mod server_address;
mod settings;
mod source;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod tunnel;
pub mod write;

pub use client::{load_client, role_of};
pub use expiry::{Expiry, InvalidExpiry};
pub use peer_files::{PEERS_FOLDER, peer_path};
pub use problem::{ConfigError, Position, Problem};
pub use reader::value::is_peer_name;
pub use server::{
    ServerCheck, ServerFile, check_server, default_key_path, load_server, open_server,
};
pub use server_address::{InvalidServerAddress, ServerAddress};
pub use settings::{
    AccessScope, ClientAccess, ClientHost, ClientSettings, DEFAULT_PORT, Dns, LogFormat, LogLevel,
    MetricsListener, Monitoring, Nat, NatScope, PortRange, Routes, ServerHost, ServerSettings,
    SocketOptions, TunOptions, UnknownLogLevel, overlaps,
};
pub use source::{read_key_file, without_bom};
