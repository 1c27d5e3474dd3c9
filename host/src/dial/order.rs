//! What an attempt to connect begins with.

/// The server, the address and the way that come first in one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Order {
    /// The position of the server.
    pub(super) first: usize,
    /// How far the addresses of one server are rotated.
    pub(super) turn: usize,
    /// Other tunnels are passed by.
    pub(super) passes_tunnels: bool,
    /// The next attempt goes another way.
    pub(super) has_alternative: bool,
}

impl Order {
    /// That of one of the attempts, which count from 1, at so many servers. What alternates does so out of
    /// step: every address of every server has its turn both ways.
    pub(super) fn new(attempt: u32, servers: usize, are_there_tunnels: bool) -> Self {
        let before = attempt.saturating_sub(1) as usize;
        let servers = servers.max(1);
        let (round, first) = (before / servers, before % servers);
        Self {
            first,
            turn: if are_there_tunnels { round / 2 } else { round },
            passes_tunnels: are_there_tunnels && (first + round) % 2 == 1,
            has_alternative: are_there_tunnels,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_address_of_every_server_has_its_turn_both_ways() {
        for (servers, addresses) in [(1, 1), (1, 2), (2, 1), (2, 2), (3, 2), (4, 3)] {
            let all = 2 * servers * addresses;
            let begin = |attempt| {
                let order = Order::new(attempt as u32, servers, true);
                (order.first, order.turn % addresses, order.passes_tunnels)
            };
            let tried: HashSet<_> = (1..=all).map(begin).collect();
            assert_eq!(tried.len(), all, "{servers} servers, {addresses} addresses");
        }
    }

    #[test]
    fn the_first_attempt_obeys_other_tunnels_and_an_early_one_passes_them() {
        for servers in 0..5 {
            let passes = |attempt| Order::new(attempt, servers, true).passes_tunnels;
            assert_eq!([1, 2].map(passes), [false, true]);
        }
    }

    #[test]
    fn without_other_tunnels_addresses_alternate_by_themselves() {
        let turns = [1, 2, 3].map(|attempt| Order::new(attempt, 1, false));
        assert_eq!(turns.map(|order| order.turn), [0, 1, 2]);
        assert!(turns.iter().all(|order| !order.passes_tunnels));
    }
}
