//! The harness of the end-to-end tests: real daemons in network namespaces of their own.
//!
//! Every test has a [`Lab`], so tests run side by side:
//!
//! ```text
//!  client 0                        server                                 internet
//!  lostlove0 10.8.0.2              lostlove0 10.8.0.1/24
//!            fd00:6c:6c::2                   fd00:6c:6c::1/64
//!  wire 10.99.0.2/24 --- veth --- wire0 10.99.0.1/24
//!       2001:db8:0::2/64                2001:db8:0::1/64
//!                                  wan 203.0.113.1/24 ------ veth ------ wan 203.0.113.2/24
//!  client 1                                                                  2001:db8:ff::2/64
//!  lostlove0 10.8.0.3
//!  wire 10.99.1.2/24 --- veth --- wire1 10.99.1.1/24
//!  ...
//! ```
//!
//! Nobody but the server has a route beyond his own wire, so an address behind the tunnel can be
//! reached through the tunnel alone. The tests need root and say so when they are skipped.
//!
//! | variable | meaning |
//! |---|---|
//! | `LOSTLOVE_BIN_DIR` | where the programs are; otherwise they are built first |
//! | `LOSTLOVE_TEST_SERVER`, `LOSTLOVE_TEST_CLIENT` | driver under test: `mio` (default), `smol` |
//! | `LOSTLOVE_TEST_LOG` | log level of the daemons, `info` by default |
//! | `LOSTLOVE_TEST_NO_SKIP` | when set, a test that would be skipped fails |

// The harness ends a test by panicking, as assertions do.
#![expect(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "this is test code"
)]
#![expect(
    clippy::print_stderr,
    reason = "the test runner shows it with a failure"
)]

pub mod capture;
pub mod daemon;
pub mod entropy;
pub mod erasure;
pub mod lab;
pub mod memory;
pub mod programs;
pub mod rig;
pub mod settings;
pub mod traffic;
pub mod wiretap;

use std::thread;
use std::time::{Duration, Instant};

pub use self::daemon::Daemon;
pub use self::lab::{Host, Lab};
pub use self::programs::Driver;
pub use self::settings::Settings;

/// How long anything may take on a slow machine before a test fails.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Waits until `condition` gives a value.
///
/// # Panics
///
/// With `what` if that takes longer than [`DEADLINE`].
#[track_caller]
pub fn await_some<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}: not within {DEADLINE:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until `condition` holds.
///
/// # Panics
///
/// With `what` if that takes longer than [`DEADLINE`].
#[track_caller]
pub fn await_true(what: &str, mut condition: impl FnMut() -> bool) {
    await_some(what, || condition().then_some(()));
}

/// Says that the running test is skipped and why.
///
/// # Panics
///
/// If `LOSTLOVE_TEST_NO_SKIP` is set.
#[track_caller]
pub fn skip(why: &str) {
    let may_skip = std::env::var_os("LOSTLOVE_TEST_NO_SKIP").is_none();
    assert!(may_skip, "must not be skipped: {why}");
    eprintln!("skipped: {why}");
}
