//! Things by id, where an id is never used again.

use core::marker::PhantomData;

/// The name of one thing in a [`Slab`]: its slot, and how many were in that slot before.
pub(crate) trait Id: Copy {
    fn new(index: u32, generation: u32) -> Self;
    fn index(self) -> u32;
    fn generation(self) -> u32;
}

/// Makes a type with the fields `index` and `generation` an [`Id`].
macro_rules! impl_id {
    ($id:ty) => {
        impl $crate::slab::Id for $id {
            fn new(index: u32, generation: u32) -> Self {
                Self { index, generation }
            }

            fn index(self) -> u32 {
                self.index
            }

            fn generation(self) -> u32 {
                self.generation
            }
        }
    };
}
pub(crate) use impl_id;

/// A table whose ids are never reused.
#[derive(Debug)]
pub(crate) struct Slab<I, T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    ids: PhantomData<I>,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

impl<I: Id, T> Slab<I, T> {
    pub(crate) const fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            ids: PhantomData,
        }
    }

    pub(crate) fn insert(&mut self, make: impl FnOnce(I) -> T) -> I {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                value: None,
            });
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        let slot = &mut self.slots[index as usize];
        let id = I::new(index, slot.generation);
        slot.value = Some(make(id));
        id
    }

    pub(crate) fn get(&self, id: I) -> Option<&T> {
        let slot = self.slots.get(id.index() as usize)?;
        if slot.generation == id.generation() {
            slot.value.as_ref()
        } else {
            None
        }
    }

    pub(crate) fn get_mut(&mut self, id: I) -> Option<&mut T> {
        let slot = self.slots.get_mut(id.index() as usize)?;
        if slot.generation == id.generation() {
            slot.value.as_mut()
        } else {
            None
        }
    }

    pub(crate) fn remove(&mut self, id: I) -> Option<T> {
        let slot = self.slots.get_mut(id.index() as usize)?;
        if slot.generation != id.generation() {
            return None;
        }
        let value = slot.value.take()?;
        // 2^32 tenants of one slot later it is retired rather than reused.
        if let Some(next) = slot.generation.checked_add(1) {
            slot.generation = next;
            self.free.push(id.index());
        }
        Some(value)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (I, &T)> {
        self.iter_slots(0, self.slots.len())
    }

    /// Everything in `count` slots from the one with this number on.
    pub(crate) fn iter_slots(&self, first: u32, count: usize) -> impl Iterator<Item = (I, &T)> {
        let slots = self.slots.iter().skip(first as usize).take(count);
        // In this order, or the number behind the last one would be needed.
        slots.zip(first..).filter_map(|(slot, index)| {
            let value = slot.value.as_ref()?;
            Some((I::new(index, slot.generation), value))
        })
    }

    /// How many slots there are, with those that are free.
    pub(crate) const fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Everything there is at this moment, for a walk during which the table changes.
    pub(crate) fn ids(&self) -> Vec<I> {
        self.iter().map(|(id, _)| id).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slots.iter().all(|slot| slot.value.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Number {
        index: u32,
        generation: u32,
    }

    impl_id!(Number);

    #[test]
    fn an_old_id_finds_nothing_in_a_slot_that_was_used_again() {
        let mut slab = Slab::<Number, char>::new();
        let (first, second) = (slab.insert(|_| 'a'), slab.insert(|_| 'b'));
        assert_eq!(slab.remove(first), Some('a'));
        let third = slab.insert(|_| 'c');

        assert_eq!((third.index, third == first), (first.index, false));
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.get_mut(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(
            (slab.get(second), slab.get(third)),
            (Some(&'b'), Some(&'c'))
        );
        assert_eq!((slab.ids(), slab.len()), (vec![third, second], 2));
    }

    #[test]
    fn an_id_of_another_table_finds_nothing() {
        let mut slab = Slab::<Number, char>::new();
        let far = Number::new(7, 0);

        assert_eq!(slab.get(far), None);
        assert_eq!(slab.remove(far), None);
        assert!(slab.is_empty());
        slab.insert(|_| 'a');
        assert!(!slab.is_empty());
    }

    #[test]
    fn a_slot_that_has_had_every_tenant_is_retired() {
        let mut slab = Slab::<Number, char>::new();
        let first = slab.insert(|_| 'a');
        slab.slots[0].generation = u32::MAX;
        let last = Number::new(first.index, u32::MAX);

        assert_eq!(slab.remove(last), Some('a'));
        assert_eq!(slab.insert(|_| 'b').index, 1);
    }
}
