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
pub use entry::{
    ENTRY_HEADER_LEN, EntryWriter, MAX_ENTRY_LEN, MAX_PLAINTEXT_LEN, Partial, encode_entry_header,
    read_entries,
};
pub use framer::{Frame, MAX_PACKET_LEN, MAX_UNSEALED_LEN, Protection, next_packet};
pub use header::{CHECKED_LEN, Flags, HEADER_LEN, Header, MAX_PAYLOAD_LEN, PacketType};
