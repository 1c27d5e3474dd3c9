//! Who owns which address.

mod assign;
mod pool;
mod table;

pub(crate) use assign::pools;
pub use pool::AddressPool;
pub use table::RoutingTable;

/// Names one configured peer; a small number, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub u32);

impl PeerId {
    /// The number, as an index into a table of peers.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}
