//! Server on mio, client on smol.

use lostlove_host::worker::Run;

const SERVER: Run = lostlove_driver_mio::run;
const CLIENT: Run = lostlove_driver_smol::run;

#[path = "suite.rs"]
mod suite;
