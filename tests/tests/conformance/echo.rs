//! Packets arrive, and unchanged.

use lostlove_tests::rig::{Setup, rng};
use rand_core::Rng;

use super::{ANY_CHUNK, Pair};

const MIN_LEN: usize = 20;

#[test]
fn packets_of_every_size_arrive_unchanged() {
    for vnet_hdr in [false, true] {
        let setup = Setup {
            vnet_hdr,
            ..Setup::default()
        };
        let (pair, mut rng) = (Pair::direct(&setup), rng());

        for len in MIN_LEN..=usize::from(setup.mtu) {
            pair.echo(len, &mut rng);
        }

        pair.stop();
    }
}

/// Case 1.
#[test]
fn packets_arrive_byte_by_byte() {
    let (pair, _relay) = Pair::relayed(&Setup::default(), 1);
    let mut rng = rng();

    for len in [MIN_LEN, 21, 576, 1399, 1400] {
        pair.echo(len, &mut rng);
    }

    pair.stop();
}

/// Case 73.
#[test]
fn packets_arrive_however_the_stream_is_cut() {
    let mut rng = rng();
    let chunk = between(2, 200, &mut rng);
    let (pair, _relay) = Pair::relayed(&Setup::default(), chunk);

    for _ in 0..50 {
        let len = between(MIN_LEN, 1400, &mut rng);
        pair.echo(len, &mut rng);
    }

    pair.stop();
}

/// Case 73: the relay's buffers are the smallest as well.
#[test]
fn packets_arrive_through_the_smallest_socket_buffers() {
    let setup = Setup {
        socket_buffer: Some(1),
        mtu: 9000,
        ..Setup::default()
    };
    let (pair, _relay) = Pair::relayed(&setup, ANY_CHUNK);
    let mut rng = rng();

    for len in (MIN_LEN..=9000).step_by(449) {
        pair.echo(len, &mut rng);
    }

    pair.stop();
}

/// A number from `low` to `high`.
fn between(low: usize, high: usize, rng: &mut impl Rng) -> usize {
    low + rng.next_u32() as usize % (high - low + 1)
}
