//! The life of a session, in steps after which its memory is looked at.

use std::hint::black_box;
use std::time::Duration;

use lostlove_core::config::Rotation;
use lostlove_core::crypto::Suite;
use lostlove_core::endpoint::Sent;

use crate::memory::{Pair, Secrets, configs, packet};

/// What has just happened to the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// The handshake is done.
    Connected,
    /// Both directions rotated by use, twice at least.
    Rotated,
    /// Two fresh exchanges are done.
    Exchanged,
    /// It was closed; both endpoints are still there.
    Ended,
}

/// Every step, in order.
pub const STEPS: [Step; 4] = [Step::Connected, Step::Rotated, Step::Exchanged, Step::Ended];

const ROTATION: Rotation = Rotation {
    bytes: 65_536,
    interval: Duration::from_secs(60),
};
/// With 1300 bytes each, more than twice what one key may seal.
const PACKETS: usize = 120;

/// Lives through a session between a server and a client that have these secrets, and calls
/// `pause` after each step.
///
/// # Panics
///
/// If a step did not happen.
pub fn live(secrets: &Secrets, recorded: bool, pause: &mut dyn FnMut(Step, &Pair)) {
    let configs = configs(secrets, Suite::Hse, ROTATION);
    let mut pair = below(|| {
        if recorded {
            Pair::recorded(configs, secrets)
        } else {
            Pair::new(configs, secrets)
        }
    });
    pause(Step::Connected, &pair);
    below(|| rotate(&mut pair));
    pause(Step::Rotated, &pair);
    below(|| exchange(&mut pair));
    pause(Step::Exchanged, &pair);
    below(|| end(&mut pair));
    pause(Step::Ended, &pair);
}

fn rotate(pair: &mut Pair) {
    traffic(pair, PACKETS);
    let rotations = [pair.server.stats(), pair.client.stats()].map(|it| it.rotations);
    assert!(rotations.iter().all(|it| *it >= 2), "{rotations:?}");
}

fn exchange(pair: &mut Pair) {
    for _ in 0..200 {
        pair.wait(Duration::from_secs(1));
        traffic(pair, 1);
    }
    assert!(pair.server.stats().exchanges >= 2);
}

fn end(pair: &mut Pair) {
    pair.server.shut_down(pair.now);
    pair.settle(&mut |_| Sent::Taken);
    for _ in 0..5 {
        pair.wait(Duration::from_secs(1));
        pair.settle(&mut |_| Sent::Taken);
    }
    let sessions = [pair.server.stats(), pair.client.stats()].map(|it| it.sessions);
    assert_eq!(sessions, [0, 0]);
}

/// Packets in both directions, and whatever is due.
fn traffic(pair: &mut Pair, packets: usize) {
    for _ in 0..packets {
        for from_server in [true, false] {
            let (bytes, header) = packet(from_server, 1300, 0);
            pair.send(from_server, &bytes, &header, &mut |_| Sent::Taken);
        }
    }
    pair.settle(&mut |_| Sent::Taken);
}

/// Runs `work` further down on the stack, where what `pause` does overwrites none of its traces.
#[inline(never)]
fn below<T>(work: impl FnOnce() -> T) -> T {
    let room = [0_u8; 16_384];
    black_box(&room);
    let result = work();
    black_box(&room);
    result
}
