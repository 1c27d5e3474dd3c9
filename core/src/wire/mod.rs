//! The wire format: headers, packets, Data entries.

mod disconnect;

pub use disconnect::DisconnectCode;
