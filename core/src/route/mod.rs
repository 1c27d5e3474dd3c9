//! Who owns which address.

mod recent;
mod table;

pub use table::RoutingTable;
