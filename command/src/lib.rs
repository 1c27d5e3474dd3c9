//! What the program `lostlove` does beside the files that [`lostlove_host::setup`] makes.

use std::io::{self, Write as _};

pub mod control;
pub mod demo;
pub mod doctor;
mod following;
pub mod keys;
pub mod peer;
mod plain;
pub mod status;

#[cfg(test)]
mod testing;

/// Says something to the person in front of the terminal. Whatever of it is others' cannot disturb that.
pub fn say(text: &str) {
    // Nobody is left to tell when standard error is closed.
    let _ = writeln!(io::stderr(), "{}", plain::lines(text));
}

/// Warns if others can read what standard output goes to.
pub fn warn_if_exposed() {
    if keys::is_exposed(io::stdout()) {
        say("lostlove: warning: others can read the file that this key goes to; use umask 077");
    }
}
