//! Answers of the last lookups.

use core::cell::{Cell, OnceCell};
use core::net::IpAddr;

use crate::peers::PeerId;

/// How many answers are kept, in 8 KiB.
const SLOTS: usize = 256;

type Answer = (IpAddr, Option<PeerId>);

/// The last answers, one for each of 256 groups of addresses: a walk through a table of networks costs
/// more than anything else in the choice of a packet's way, and packets come for the same addresses again and
/// again. Whoever changes the table [clears](Self::clear) it.
#[derive(Default)]
pub(super) struct Recent {
    /// Nothing before the first answer.
    slots: OnceCell<Box<[Cell<Option<Answer>>]>>,
}

impl Recent {
    /// The answer for `address`, if it is known: there may be an owner or none.
    pub(super) fn get(&self, address: IpAddr) -> Option<Option<PeerId>> {
        let slot = self.slots.get()?.get(slot_of(address))?;
        let (known, owner) = slot.get()?;
        (known == address).then_some(owner)
    }

    /// Keeps the answer for `address`, in place of another one of its group.
    pub(super) fn put(&self, address: IpAddr, owner: Option<PeerId>) {
        let slots = self
            .slots
            .get_or_init(|| vec![Cell::new(None); SLOTS].into_boxed_slice());
        if let Some(slot) = slots.get(slot_of(address)) {
            slot.set(Some((address, owner)));
        }
    }

    /// Forgets all answers.
    pub(super) fn clear(&mut self) {
        self.slots.take();
    }
}

/// Addresses of one tunnel network differ in their last bytes.
fn slot_of(address: IpAddr) -> usize {
    let folded = match address {
        IpAddr::V4(address) => address
            .octets()
            .iter()
            .fold(0, |sum: u8, byte| sum.rotate_left(3) ^ byte),
        IpAddr::V6(address) => address
            .octets()
            .iter()
            .fold(0, |sum: u8, byte| sum.rotate_left(3) ^ byte),
    };
    usize::from(folded) % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_do_not_take_each_others_place() {
        let recent = Recent::default();
        let address = |last: u8| IpAddr::from([10, 8, 0, last]);
        for last in 0..=255 {
            recent.put(address(last), Some(PeerId::first(last.into())));
        }
        for last in 0..=255 {
            assert_eq!(
                recent.get(address(last)),
                Some(Some(PeerId::first(last.into())))
            );
        }
    }

    #[test]
    fn an_answer_is_for_one_address_alone() {
        let recent = Recent::default();
        recent.put(IpAddr::from([10, 0, 0, 1]), None);
        assert_eq!(recent.get(IpAddr::from([10, 0, 0, 1])), Some(None));
        let others = (0..=u16::MAX).map(|it| IpAddr::from([11, 0, (it >> 8) as u8, it as u8]));
        for other in others {
            assert_eq!(recent.get(other), None);
        }
    }
}
