//! Instruction counts of the protocol core's steps, by Callgrind: steadier than times, so that
//! two commits can be compared on a machine that does other things as well.
//!
//! The ciphers by themselves are not among them: Callgrind's CPU lacks the instructions that make
//! them fast. What `carry` counts contains AES-256-GCM in such a slower version, always the same.

#![expect(missing_docs, reason = "items that Gungraun's macros make")]

use gungraun::{library_benchmark, library_benchmark_group, main};
use lostlove_core::crypto::Suite;
use lostlove_core::internals::wire::MAX_UNSEALED_LEN;

#[expect(
    dead_code,
    reason = "lengths, by which only times are divided, and contents"
)]
mod steps;

use steps::{Lookups, Plain, Stream, SuperPacket, Tunnel};

#[library_benchmark(setup = Stream::new)]
#[bench::of_64_bytes(64)]
#[bench::of_16_kib(16_384)]
fn frame(stream: Stream) -> Stream {
    stream.frame();
    stream
}

#[library_benchmark(setup = Plain::new)]
#[bench::of_a_header(0)]
#[bench::of_4_kib(MAX_UNSEALED_LEN)]
fn checksum(packet: Plain) -> Plain {
    packet.verify();
    packet
}

#[library_benchmark(setup = Lookups::new)]
#[bench::in_1_network(1)]
#[bench::in_65000_networks(65_000)]
fn lookup(lookups: Lookups) -> Lookups {
    lookups.run();
    lookups
}

#[library_benchmark(setup = SuperPacket::new)]
#[bench::of_64_kib()]
fn segment(mut packet: SuperPacket) -> SuperPacket {
    packet.segment();
    packet
}

/// One that has carried a packet: what is allocated once has been.
fn warm(len: usize) -> Tunnel {
    let mut tunnel = Tunnel::new(Suite::Aes256Gcm, len);
    tunnel.carry();
    tunnel
}

#[library_benchmark(setup = warm)]
#[bench::of_64_bytes(64)]
#[bench::of_1400_bytes(1400)]
fn carry(mut tunnel: Tunnel) -> Tunnel {
    tunnel.carry();
    tunnel
}

library_benchmark_group!(name = wire; benchmarks = frame, checksum);
library_benchmark_group!(name = route; benchmarks = lookup);
library_benchmark_group!(name = ip; benchmarks = segment);
library_benchmark_group!(name = endpoint; benchmarks = carry);

main!(library_benchmark_groups = wire, route, ip, endpoint);
