//! Connections by id.

use super::connection::Connection;
use crate::event::ConnectionId;

/// A table of connections whose ids are never reused.
#[derive(Default)]
pub(super) struct Slab {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

struct Slot {
    generation: u32,
    connection: Option<Box<Connection>>,
}

impl Slab {
    pub(super) fn insert(&mut self, make: impl FnOnce(ConnectionId) -> Connection) -> ConnectionId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                connection: None,
            });
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        let slot = &mut self.slots[index as usize];
        let id = ConnectionId {
            index,
            generation: slot.generation,
        };
        slot.connection = Some(Box::new(make(id)));
        id
    }

    fn slot_mut(&mut self, id: ConnectionId) -> Option<&mut Slot> {
        self.slots
            .get_mut(id.index as usize)
            .filter(|slot| slot.generation == id.generation)
    }

    pub(super) fn get(&self, id: ConnectionId) -> Option<&Connection> {
        let slot = self.slots.get(id.index as usize)?;
        if slot.generation == id.generation {
            slot.connection.as_deref()
        } else {
            None
        }
    }

    pub(super) fn get_mut(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        self.slot_mut(id)?.connection.as_deref_mut()
    }

    /// Lifts a connection out while it is worked on; [`Slab::put_back`] ends that.
    pub(super) fn lift(&mut self, id: ConnectionId) -> Option<Box<Connection>> {
        self.slot_mut(id)?.connection.take()
    }

    /// Puts a lifted connection back.
    pub(super) fn put_back(&mut self, connection: Box<Connection>) {
        let id = connection.id;
        if let Some(slot) = self.slot_mut(id) {
            slot.connection = Some(connection);
        }
    }

    pub(super) fn remove(&mut self, id: ConnectionId) -> Option<Box<Connection>> {
        let slot = self.slot_mut(id)?;
        let connection = slot.connection.take()?;
        // 2^32 connections in one slot later the slot is retired rather than reused.
        if let Some(next) = slot.generation.checked_add(1) {
            slot.generation = next;
            self.free.push(id.index);
        }
        Some(connection)
    }

    pub(super) fn ids(&self) -> Vec<ConnectionId> {
        self.slots
            .iter()
            .filter_map(|slot| Some(slot.connection.as_ref()?.id))
            .collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Connection> {
        self.slots
            .iter()
            .filter_map(|slot| slot.connection.as_deref())
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.iter().all(|slot| slot.connection.is_none())
    }
}
