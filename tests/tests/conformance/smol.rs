//! Server and client on smol.

use lostlove_host::worker::Run;

const SERVER: Run = lostlove_driver_smol::run;
const CLIENT: Run = lostlove_driver_smol::run;

#[path = "suite.rs"]
mod suite;
