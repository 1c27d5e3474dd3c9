//! `lostlove-load`: plays many clients against a server.

use std::process::ExitCode;

fn main() -> ExitCode {
    lostlove_load::main()
}
