//! The client on mio.

use std::process::ExitCode;

use lostlove_core::config::Role;

fn main() -> ExitCode {
    lostlove_host::daemon::main(Role::Client, "lostlove-client", lostlove_driver_mio::run)
}
