//! The server on smol.

use std::process::ExitCode;

use lostlove_core::config::Role;

fn main() -> ExitCode {
    lostlove_host::daemon::main(
        Role::Server,
        "lostlove-server-smol",
        lostlove_driver_smol::run,
    )
}
