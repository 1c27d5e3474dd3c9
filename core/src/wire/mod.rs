//! The wire format: headers, packets, Data entries.

mod control;
mod disconnect;
mod entry;
mod framer;
mod header;
#[cfg(test)]
mod testing;

pub use control::{Ack, Disconnect, decode_keep_alive};
pub use disconnect::DisconnectCode;
pub(crate) use entry::{ENTRY_HEADER_LEN, EntryWriter, encode_entry_header};
pub use entry::{MAX_PLAINTEXT_LEN, Partial, read_entries};
pub use framer::{Frame, MAX_UNSEALED_LEN, Protection, next_packet};
pub(crate) use header::CHECKED_LEN;
pub use header::{Flags, HEADER_LEN, Header, MAX_PAYLOAD_LEN, PacketType};
