//! The server on mio.

use std::process::ExitCode;

use lostlove_core::config::Role;

fn main() -> ExitCode {
    lostlove_host::daemon::main(Role::Server, "lostlove-server", lostlove_driver_mio::run)
}
