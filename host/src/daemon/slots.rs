//! A table by connection.

use lostlove_core::event::ConnectionId;

/// Keeps something for each open connection, at the connection's [slot](ConnectionId::slot). An
/// id whose connection has been removed finds nothing, even if its slot is in use again.
#[derive(Debug)]
pub struct Slots<T>(Vec<Option<(ConnectionId, T)>>);

impl<T> Slots<T> {
    /// Puts in `value` for `id`, and gives back what was in its slot.
    pub fn insert(&mut self, id: ConnectionId, value: T) -> Option<(ConnectionId, T)> {
        let slot = id.slot();
        if self.0.len() <= slot {
            self.0.resize_with(slot + 1, || None);
        }
        self.0[slot].replace((id, value))
    }

    /// Takes out what is kept for `id`.
    pub fn remove(&mut self, id: ConnectionId) -> Option<T> {
        let slot = self.0.get_mut(id.slot())?;
        let (_, value) = slot.take_if(|(tenant, _)| *tenant == id)?;
        Some(value)
    }

    /// What is kept for `id`.
    pub fn get_mut(&mut self, id: ConnectionId) -> Option<&mut T> {
        let (tenant, value) = self.at_mut(id.slot())?;
        (tenant == id).then_some(value)
    }

    /// What is kept in `slot`, and for whom.
    pub fn at_mut(&mut self, slot: usize) -> Option<(ConnectionId, &mut T)> {
        let (id, value) = self.0.get_mut(slot)?.as_mut()?;
        Some((*id, value))
    }
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}
