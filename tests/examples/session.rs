//! Lives through a session, and stands still after each step so that its memory can be looked at.
//!
//! Reads the secrets from standard input, writes one byte after each step and waits for one.
#![expect(clippy::unwrap_used, reason = "whoever started it sees it fail")]

use std::io::{self, Read as _, Write as _};

use lostlove_tests::erasure::live;
use lostlove_tests::memory::Secrets;

fn main() {
    let mut input = io::stdin();
    let mut secrets = Secrets::default();
    for secret in secrets.all_mut() {
        input.read_exact(secret).unwrap();
    }
    live(&secrets, false, &mut |_, _| {
        io::stdout().write_all(b"x").unwrap();
        io::stdout().flush().unwrap();
        io::stdin().read_exact(&mut [0]).unwrap();
    });
}
