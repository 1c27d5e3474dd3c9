//! What LostLove's daemons need of the operating system, written once.

pub mod cli;
pub mod clock;
pub mod demo;
pub mod dial;
pub mod keytool;
pub mod listen;
pub mod log;
pub mod metrics;
pub mod netns;
pub mod report;
pub mod signal;

mod wake;
