//! The wire format: headers, packets, Data entries.

mod disconnect;
mod header;
#[cfg(test)]
mod testing;

pub use disconnect::DisconnectCode;
pub use header::{CHECKED_LEN, Flags, HEADER_LEN, Header, MAX_PAYLOAD_LEN, PacketType};
