//! Target: an endpoint's calls in any order.
//!
//! A server, its clients and strangers, joined by links that the input cuts, corrupts and stalls.
//! After every operation the contract of `lostlove_core::endpoint` is checked.

mod tally;
mod world;

use core::time::Duration;

use lostlove_core::ip::VirtioHeader;

use crate::input::Input;
use crate::packet::{self, Plan};
use crate::peers::Choices;
use crate::{hello, seeds};
use world::{SERVER, World};

const MAX_STEPS: usize = 64;

/// Runs the operations in `data`.
///
/// # Panics
///
/// When an endpoint breaks its contract.
pub fn endpoint(data: &[u8]) {
    let mut input = Input::new(data);
    let bits = input.u8();
    let compression = bits & 0x08 != 0;
    let mut world = World::new(Choices { bits, compression });
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        step(&mut world, &mut input);
        world.after_input();
    }
    world.end();
}

fn step(world: &mut World, input: &mut Input<'_>) {
    match input.choice(14) {
        0 => {
            let (unit, count) = (input.u8(), input.u16());
            let unit = [1, 10, 1000, 60_000][usize::from(unit & 3)];
            world.wait(Duration::from_millis(unit * u64::from(count & 0x3ff)));
        }
        1 | 2 => world.settle(),
        3 => {
            let (link, len) = (input.u8(), input.u16());
            let (to_server, link) = (link & 1 == 0, usize::from(link >> 1));
            // A driver may hand over late what its kernel has filled.
            if len & 0x8000 == 0 {
                world.deliver(link, to_server, len.into());
            } else {
                world.read_ahead(link, to_server, usize::from(len & 0x7fff));
            }
        }
        4 => {
            let (link, at, value) = (input.u8(), input.u16(), input.u8());
            world.corrupt(usize::from(link >> 1), link & 1 == 0, at.into(), value);
        }
        5 => {
            let choice = input.u8();
            let (link, is_clean) = (usize::from(choice >> 2), choice & 1 == 0);
            world.disconnect(link, choice & 2 == 0, is_clean);
        }
        6 | 7 => tun_packet(world, input),
        8 => world.accept_stranger(input.u8()),
        9 => {
            let (which, choice) = (usize::from(input.u8()), input.u8());
            let len = usize::from(input.u16());
            let bytes = stranger_bytes(choice, input.bytes(len));
            world.stranger_sends(which, &bytes);
        }
        10 => {
            let link = input.u8();
            world.stall(usize::from(link >> 2), link & 1 == 0, link & 2 == 0);
        }
        11 => world.call_with_old_id(usize::from(input.u8()), input.u8(), input.u16().into()),
        12 => world.unasked(usize::from(input.u8()), input.u8()),
        _ => {
            // Not at once, or nothing else happens in most runs.
            if input.u8() & 7 == 0 {
                world.shut_down(usize::from(input.u8()));
            }
        }
    }
}

/// What a stranger sends: a genuine hello, an old one, or anything.
fn stranger_bytes(choice: u8, bytes: &[u8]) -> Vec<u8> {
    use lostlove_core::internals::wire::PacketType;
    match choice & 7 {
        0 => seeds::hello_packet(&hello::genuine().0),
        1 => seeds::probe_hello_packet(),
        2 => seeds::plain_packet(PacketType::KeepAlive, &[]),
        3 => seeds::plain_packet(PacketType::Disconnect, bytes),
        4 => seeds::plain_packet(PacketType::HandshakeInit, bytes),
        5 => seeds::plain_packet(PacketType::HandshakeResponse, bytes),
        _ => bytes.to_vec(),
    }
}

fn tun_packet(world: &mut World, input: &mut Input<'_>) {
    let control = input.u8();
    let which = match control & 3 {
        0 | 1 => SERVER,
        other => usize::from(other - 1),
    };
    let header = match control & 4 {
        0 => VirtioHeader::default(),
        _ => VirtioHeader::from_bytes(input.array()),
    };
    let packet = if control & 8 == 0 {
        let is_v4 = control & 16 == 0;
        let (from, to) = (packet::address(input, is_v4), packet::address(input, is_v4));
        Plan::read(input, from, to).build()
    } else {
        let len = usize::from(input.u8());
        input.bytes(len).to_vec()
    };
    world.tun_packet(which, &packet, &header);
}
