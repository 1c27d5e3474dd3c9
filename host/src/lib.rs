//! LostLove's daemons but for the waiting, written once.
//!
//! [`daemon::main`] is the whole of every daemon but for waiting, which is a driver's affair.
//! [`lostlove_pump`] moves the bytes, for every driver the same, and [`lostlove_system`] is all that
//! changes or asks the operating system.

#![forbid(unsafe_code)]

pub mod cli;
pub mod daemon;
#[cfg(target_os = "linux")]
pub mod demo;
pub mod dial;
pub mod keytool;
pub mod leases;
pub mod log;
pub mod metrics;
pub mod report;

#[cfg(test)]
mod testing;
