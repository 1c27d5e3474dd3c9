//! Moves bytes between sockets, the TUN device and the endpoint.
//!
//! Short reads and writes, budgets, ends of stream and errors are decided here, once, for every
//! driver. A driver only knows when to call: mio's sockets and the plain ones behind smol's
//! adapters are both `Read + Write` and answer `WouldBlock`.
#![forbid(unsafe_code)]

mod device;
mod stream;

pub use device::{Drained, PacketDevice, drain_device, take_crossing};
pub use stream::{discard, fill, flush};

/// What a source or sink has left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It would block: wait for its next readiness.
    Blocked,
    /// The budget is used up: it may be called again at once.
    Ready,
    /// There is nothing more to write.
    Done,
    /// The connection is gone.
    Closed,
}
