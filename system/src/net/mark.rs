//! The marks of the tunnels' own packets: which tunnels they pass by.
//!
//! Each client of a network namespace has a place, and its rules leave out what has the place's bit
//! in its mark. So a packet can pass one tunnel by and still go through another: that is how a tunnel
//! runs inside another one. A connection's packets pass by the client's own tunnel and all that come
//! up later, and obey those that were up when it was opened, unless one of these itself depends on
//! this one.

use serde::{Deserialize, Serialize};

/// The upper half of all our marks: the LLP protocol id. The lower half has a bit for each place.
pub(super) const KIND: u32 = 0x4C4C_0000;
/// What of a mark [`KIND`] is compared with.
pub(super) const KIND_MASK: u32 = 0xFFFF_0000;
/// How many clients can tell each other apart; those beyond share the last place.
const PLACES: u8 = 16;

/// The mark (`SO_MARK`) of a socket of the tunnel's own: what has it passes some tunnels by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(u32);

impl Mark {
    /// Passes every tunnel by.
    pub const PAST_ALL: Self = Self(KIND | 0xFFFF);

    /// Passes all by but those with these places.
    fn obeying(places: u16) -> Self {
        Self(KIND | u32::from(!places))
    }

    /// What the socket is given.
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// Which marks a policy rule leaves out, or a firewall adds to a connection: those of packets that
/// pass the tunnel of one place by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PassMark {
    /// The bits that are compared, as they are in a mark that passes by.
    pub(super) value: u32,
    /// Which bits are compared.
    pub(super) mask: u32,
}

/// Whether a rule that leaves out this mark, as far as the mask goes, is one of ours.
pub(super) const fn is_ours(value: Option<u32>, mask: u32) -> bool {
    match value {
        Some(value) => mask & KIND_MASK == KIND_MASK && value & KIND_MASK == KIND,
        None => false,
    }
}

/// A client among the others of its network namespace, as its record says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tunnel {
    place: u8,
    /// It has a session.
    is_up: bool,
    /// The places of those whose tunnels its connections go through.
    obeys: u16,
}

impl Tunnel {
    /// One that is new, in the first place that is free.
    pub(super) fn new(others: &[Self]) -> Self {
        let is_free = |place: &u8| others.iter().all(|other| other.place != *place);
        Self {
            place: (0..PLACES).find(is_free).unwrap_or(PLACES - 1),
            ..Self::default()
        }
    }

    /// What its rules leave out.
    pub(super) fn pass_mark(self) -> PassMark {
        let bit = u32::from(self.bit());
        PassMark {
            value: KIND | bit,
            mask: KIND_MASK | bit,
        }
    }

    /// The mark of its connections.
    pub(super) fn mark(self) -> Mark {
        Mark::obeying(self.obeys)
    }

    /// Whether its connections go through another tunnel.
    pub(super) const fn is_inside(self) -> bool {
        self.obeys != 0
    }

    /// The same with a session, or without one.
    pub(super) const fn with_session(self, is_up: bool) -> Self {
        Self { is_up, ..self }
    }

    /// The same, as it is to open connections beside these others. As long as there is a session, it
    /// stays on the way it came.
    pub(super) fn beside(self, others: &[Self]) -> Self {
        if self.is_up {
            return self;
        }
        let up = others.iter().filter(|other| other.is_up);
        let independent = up.filter(|other| other.depends_on(others) & self.bit() == 0);
        let obeys = independent.fold(0, |places, other| places | other.bit());
        Self {
            obeys: obeys & !self.bit(),
            ..self
        }
    }

    /// The places of all that carry its packets, one inside the other.
    fn depends_on(self, others: &[Self]) -> u16 {
        let mut places = self.obeys;
        for _ in 0..PLACES {
            let carrying = others.iter().filter(|other| places & other.bit() != 0);
            places = carrying.fold(places, |places, other| places | other.obeys);
        }
        places
    }

    fn bit(self) -> u16 {
        1 << self.place.min(PLACES - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up(place: u8, obeys: u16) -> Tunnel {
        Tunnel {
            place,
            is_up: true,
            obeys,
        }
    }

    #[test]
    fn a_new_tunnel_has_a_place_of_its_own() {
        let first = Tunnel::new(&[]);
        let second = Tunnel::new(&[first]);
        let third = Tunnel::new(&[up(2, 0), first]);
        assert_eq!([first.place, second.place, third.place], [0, 1, 1]);
        let all: Vec<_> = (0..PLACES).map(|place| up(place, 0)).collect();
        assert_eq!(Tunnel::new(&all).place, PLACES - 1);
    }

    #[test]
    fn a_mark_passes_by_what_it_does_not_obey() {
        let passes = |mark: Mark, tunnel: Tunnel| {
            let PassMark { value, mask } = tunnel.pass_mark();
            mark.get() & mask == value
        };
        let mark = Mark::obeying(0b10);
        assert!(passes(mark, up(0, 0)) && !passes(mark, up(1, 0)) && passes(mark, up(15, 0)));
        assert!((0..PLACES).all(|place| passes(Mark::PAST_ALL, up(place, 0))));
        assert_ne!(
            0x1234_FFFF & up(3, 0).pass_mark().mask,
            up(3, 0).pass_mark().value
        );
    }

    #[test]
    fn connections_go_through_the_tunnels_that_were_up_before() {
        let others = [up(0, 0), up(2, 1), Tunnel::new(&[up(0, 0)])];
        let own = Tunnel::new(&others).beside(&others);
        assert_eq!((own.place, own.obeys), (3, 0b101));
        let own = own.with_session(true);
        // What comes up later is passed by.
        assert_eq!(own.beside(&[up(1, 0)]), own);
        assert_eq!(own.with_session(false).beside(&[up(1, 0)]).obeys, 0b10);
    }

    /// Else neither would come up again.
    #[test]
    fn none_goes_through_a_tunnel_that_goes_through_it() {
        let outer = Tunnel::default();
        let inner = up(1, 0b001);
        let innermost = up(2, 0b010);
        assert_eq!(outer.beside(&[inner, innermost]).obeys, 0);
        assert_eq!(outer.beside(&[inner, innermost, up(3, 0)]).obeys, 0b1000);
        // However records came to say so.
        let circle = [up(1, 0b100), up(2, 0b010)];
        assert_eq!(outer.beside(&circle).obeys, 0b110);
    }
}
