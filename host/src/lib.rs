//! What LostLove's daemons need of the operating system, written once.
//!
//! [`daemon::main`] is the whole of every daemon but for waiting, which is a driver's affair.
//! [`lostlove_pump`] moves the bytes, for every driver the same.

pub mod cli;
pub mod clock;
pub mod daemon;
#[cfg(target_os = "linux")]
pub mod demo;
pub mod dial;
pub mod entropy;
pub mod keytool;
pub mod leases;
pub mod listen;
pub mod lock;
pub mod log;
pub mod metrics;
#[cfg(target_os = "linux")]
pub mod net;
#[cfg(target_os = "linux")]
pub mod netns;
pub mod report;
pub mod signal;
#[cfg(target_os = "linux")]
pub mod tun;

#[cfg(test)]
mod testing;
mod wake;
