//! LostLove's daemons but for the waiting, written once.
//!
//! [`daemon::main`] is the whole of every daemon but for waiting, which is a driver's affair: it drives a
//! [`worker`].
//! [`lostlove_pump`] moves the bytes, for every driver the same, and [`lostlove_system`] is all that
//! changes or asks the operating system.

#![forbid(unsafe_code)]

pub mod args;
pub mod control;
pub mod daemon;
pub mod dial;
pub mod leases;
pub mod log;
pub mod metrics;
pub mod report;
pub mod setup;
pub mod threads;
pub mod worker;

mod answers;
mod mailbox;
#[cfg(test)]
mod testing;
