//! Micro-benchmarks of the protocol core: the steps of the data path, and all of it. One thread,
//! no input and output.

use std::fmt;

use lostlove_core::crypto::Suite;

mod compression;
mod endpoint;
mod handshake;
mod ip;
mod route;
mod session;
#[path = "../steps.rs"]
mod steps;
mod wire;

fn main() {
    divan::main();
}

/// A suite, and the length of a packet in bytes.
#[derive(Clone, Copy)]
struct Case {
    suite: Suite,
    len: usize,
}

impl Case {
    fn all(lens: [usize; 3]) -> impl Iterator<Item = Self> {
        let of_suite = move |suite| lens.into_iter().map(move |len| Self { suite, len });
        Suite::ALL.into_iter().flat_map(of_suite)
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.suite, self.len)
    }
}
