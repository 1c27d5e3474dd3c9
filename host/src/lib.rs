//! What LostLove's daemons need of the operating system, written once.

pub mod cli;
pub mod clock;
#[cfg(target_os = "linux")]
pub mod demo;
pub mod dial;
pub mod keytool;
pub mod listen;
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

mod wake;
