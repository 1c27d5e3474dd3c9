//! Deterministic simulation: one server and its clients over simulated TCP, on a virtual clock.
//!
//! A world is made from one number. It moves bytes with the very code that the drivers use, breaks
//! what networks and machines break, lets an attacker at it, and checks after every step what
//! must hold at all times. Then all faults stop, and it demands progress. Each world runs twice
//! and must do the same.
#![forbid(unsafe_code)]

mod act;
mod attack;
mod choice;
mod device;
mod flow;
mod jobs;
mod link;
mod mail;
mod node;
mod operator;
mod options;
mod packet;
mod pipe;
mod reassembly;
mod roam;
mod run;
mod tally;
mod tap;
mod worker;
mod world;

pub use jobs::{Verdict, check_seeds, running_seed};
pub use run::{Outcome, check_seed, run_seed};
pub use world::{Failure, Kind};
