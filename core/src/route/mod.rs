//! Who owns which address.

mod table;

pub use table::RoutingTable;
