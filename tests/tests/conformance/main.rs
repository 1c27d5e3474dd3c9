//! What every driver has to do, as one suite that runs for each pair of drivers.

#![expect(
    clippy::duplicate_mod,
    reason = "the suite is compiled once for each pair"
)]

mod mio;
mod mio_server;
mod smol;
mod smol_server;
