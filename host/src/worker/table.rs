//! A table by id.

use lostlove_core::event::ConnectionId;

/// An id that has a small number, which another one has again once this one is out of use.
pub trait Slot: Copy + Eq {
    /// The number: an index for a table.
    fn slot(self) -> usize;
}

impl Slot for ConnectionId {
    fn slot(self) -> usize {
        Self::slot(self)
    }
}

/// Keeps something for each id, at the id's [slot](Slot::slot). An id that has been removed finds
/// nothing, even if its slot is in use again.
#[derive(Debug)]
pub struct Table<I, T>(Vec<Option<(I, T)>>);

impl<I: Slot, T> Table<I, T> {
    /// Puts in `value` for `id`, and gives back what was in its slot.
    pub fn insert(&mut self, id: I, value: T) -> Option<(I, T)> {
        let slot = id.slot();
        if self.0.len() <= slot {
            self.0.resize_with(slot + 1, || None);
        }
        self.0[slot].replace((id, value))
    }

    /// Takes out what is kept for `id`.
    pub fn remove(&mut self, id: I) -> Option<T> {
        let slot = self.0.get_mut(id.slot())?;
        let (_, value) = slot.take_if(|(tenant, _)| *tenant == id)?;
        Some(value)
    }

    /// What is kept for `id`.
    pub fn get(&self, id: I) -> Option<&T> {
        let (tenant, value) = self.0.get(id.slot())?.as_ref()?;
        (*tenant == id).then_some(value)
    }

    /// What is kept for `id`.
    pub fn get_mut(&mut self, id: I) -> Option<&mut T> {
        let (tenant, value) = self.at_mut(id.slot())?;
        (tenant == id).then_some(value)
    }

    /// What is kept in `slot`, and for whom.
    pub fn at_mut(&mut self, slot: usize) -> Option<(I, &mut T)> {
        let (id, value) = self.0.get_mut(slot)?.as_mut()?;
        Some((*id, value))
    }
}

impl<I, T> Default for Table<I, T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}
