//! Server and client on mio.

use lostlove_host::worker::Run;

const SERVER: Run = lostlove_driver_mio::run;
const CLIENT: Run = lostlove_driver_mio::run;

#[path = "suite.rs"]
mod suite;
