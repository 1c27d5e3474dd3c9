//! Who owns which address.

mod assign;
mod pool;
mod table;

pub(crate) use assign::pools;
pub use pool::AddressPool;
pub use table::RoutingTable;

use crate::slab::impl_id;

/// Names one peer. Never reused: what is left over of a peer that was removed finds no other one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId {
    index: u32,
    generation: u32,
}

impl_id!(PeerId);

impl PeerId {
    /// The first peer with this number; numbers are counted from 0.
    pub const fn first(index: u32) -> Self {
        Self {
            index,
            generation: 0,
        }
    }

    /// The number, as an index into a table of peers, in which an older peer may have stood.
    pub const fn index(self) -> usize {
        self.index as usize
    }
}
