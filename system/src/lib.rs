//! Everything with which LostLove changes or asks the operating system, and all of its `unsafe`.
//!
//! Plain values come in and plain answers go out: nothing here knows of configuration files, of
//! sessions or of the daemon.

#[cfg(target_os = "linux")]
pub mod alarm;
pub mod clock;
pub mod congestion;
#[cfg(target_os = "linux")]
pub mod control_socket;
#[cfg(target_os = "linux")]
mod cpu;
pub mod delivery;
pub mod entropy;
#[cfg(target_os = "linux")]
pub mod injector;
pub mod limits;
pub mod lock;
pub mod memory;
#[cfg(target_os = "linux")]
pub mod net;
#[cfg(target_os = "linux")]
pub mod netns;
pub mod signal;
#[cfg(target_os = "linux")]
pub mod sleep;
pub mod socket;
#[cfg(target_os = "linux")]
pub mod tun;
pub mod wake;
pub mod writer;

#[cfg(test)]
mod testing;
