//! IP packets: checked views, checksums, segmentation, ICMP errors.

mod offload;

pub use offload::Offload;
