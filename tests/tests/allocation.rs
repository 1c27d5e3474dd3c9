//! No heap allocation per packet in the steady state, whatever the suite and the size.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use lostlove_core::config::Rotation;
use lostlove_core::crypto::Suite;
use lostlove_core::endpoint::{Sent, TunPacket};
use lostlove_tests::memory::{Pair, Secrets, configs, packet};

/// Packets in each direction.
const PACKETS: u64 = 100_000;
/// Packets in each direction before counting starts: pools and queues grow meanwhile.
const WARM_UP: u64 = 1000;
/// No key is replaced.
const ENDLESS: Rotation = Rotation {
    bytes: u64::MAX,
    interval: Duration::from_secs(1_000_000_000),
};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, counted for each thread.
struct Counting;

fn count() {
    ALLOCATIONS.with(|allocations| allocations.set(allocations.get() + 1));
}

#[expect(
    unsafe_code,
    reason = "GlobalAlloc is an unsafe trait; every call is passed on as it is"
)]
// SAFETY: every method is the system allocator's; counting does not allocate, since the counter
// is initialised at compile time and has no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        unsafe { System.realloc(pointer, layout, new_size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A flow in each direction.
struct Traffic {
    pair: Pair,
    len: u16,
    segment_size: u16,
    /// Time between two packets.
    gap: Duration,
}

impl Traffic {
    fn new(suite: Suite, rotation: Rotation, len: u16, segment_size: u16) -> Self {
        let secrets = Secrets::default();
        let pair = Pair::new(configs(&secrets, suite, rotation), &secrets);
        Self {
            pair,
            len,
            segment_size,
            gap: Duration::ZERO,
        }
    }

    /// Sends `packets` each way and returns how many allocations that took.
    fn run(&mut self, packets: u64) -> u64 {
        let directions = [true, false].map(|it| (it, packet(it, self.len, self.segment_size)));
        let (len, segment_size) = (usize::from(self.len), self.segment_size);
        let mut delivered = 0;
        let mut sink = |packet: TunPacket<'_>| {
            delivered += 1;
            assert_eq!(
                (packet.bytes.len(), packet.header.gso_size),
                (len, segment_size)
            );
            Sent::Taken
        };
        let before = ALLOCATIONS.get();
        for _ in 0..packets {
            self.pair.wait(self.gap);
            for (from_server, (packet, header)) in &directions {
                self.pair.send(*from_server, packet, header, &mut sink);
            }
        }
        let allocations = ALLOCATIONS.get() - before;
        assert_eq!(delivered, 2 * packets);
        allocations
    }

    fn steady(&mut self) -> u64 {
        self.run(WARM_UP);
        self.run(PACKETS)
    }
}

#[test]
fn allocations_are_noticed() {
    let before = ALLOCATIONS.get();
    drop(std::hint::black_box(Box::new(1)));
    assert_eq!(ALLOCATIONS.get() - before, 1);
}

/// Case 98.
#[test]
fn small_packets_allocate_nothing() {
    for suite in Suite::ALL {
        assert_eq!(Traffic::new(suite, ENDLESS, 64, 0).steady(), 0, "{suite}");
    }
}

#[test]
fn full_packets_allocate_nothing() {
    for suite in Suite::ALL {
        assert_eq!(Traffic::new(suite, ENDLESS, 1400, 0).steady(), 0, "{suite}");
    }
}

#[test]
fn super_packets_allocate_nothing() {
    for suite in Suite::ALL {
        assert_eq!(
            Traffic::new(suite, ENDLESS, 14_000, 1360).steady(),
            0,
            "{suite}"
        );
    }
}

/// As large as TUN devices make them; fewer, for the test's duration.
#[test]
fn large_super_packets_allocate_nothing() {
    for suite in Suite::ALL {
        let mut traffic = Traffic::new(suite, ENDLESS, 64_000, 1360);
        traffic.run(WARM_UP);
        assert_eq!(traffic.run(5000), 0, "{suite}");
    }
}

/// The longest packet does not fit one record: its end follows in a second one.
#[test]
fn packets_in_two_records_allocate_nothing() {
    let mut traffic = Traffic::new(Suite::Aes256Gcm, ENDLESS, 65_535, 1360);
    traffic.run(WARM_UP);
    assert_eq!(traffic.run(5000), 0);
}

/// A burst waits in the queue and is gathered into shared records.
#[test]
fn bursts_allocate_nothing() {
    let mut traffic = Traffic::new(Suite::Hse, ENDLESS, 200, 0);
    let (bytes, header) = packet(true, 200, 0);
    let burst = |traffic: &mut Traffic| {
        for _ in 0..64 {
            let pair = &mut traffic.pair;
            let mut buffer = pair.server.take_tun_buffer();
            buffer.unfilled()[..bytes.len()].copy_from_slice(&bytes);
            pair.server
                .handle_tun(buffer, bytes.len(), &header, pair.now);
        }
        traffic.pair.carry(true, &mut |_| Sent::Taken);
    };
    (0..50).for_each(|_| burst(&mut traffic));
    let before = ALLOCATIONS.get();
    (0..PACKETS / 64).for_each(|_| burst(&mut traffic));
    assert_eq!(ALLOCATIONS.get() - before, 0);
}

/// With the default rotation and the clock running, only rotations, signs of life and exchanges
/// may allocate.
#[test]
fn rotations_and_timers_allocate_within_a_bound() {
    // At either end two ciphers, the IV and the secret, each in a place of its own.
    const PER_ROTATION: u64 = 8;
    const PER_TIMER: u64 = 2;
    const PER_EXCHANGE: u64 = 48;
    let mut traffic = Traffic::new(Suite::Hse, Rotation::default(), 1400, 0);
    traffic.gap = Duration::from_millis(10);
    traffic.run(WARM_UP);
    let levels = |pair: &Pair| {
        let stats = [pair.server.stats(), pair.client.stats()];
        let sum = |of: fn(&lostlove_core::stats::Stats) -> u64| stats.into_iter().map(of).sum();
        let [rotations, exchanges, sealed]: [u64; 3] = [
            sum(|it| it.rotations),
            sum(|it| it.exchanges),
            sum(|it| it.sealed_out),
        ];
        (rotations, exchanges, sealed)
    };
    let before = levels(&traffic.pair);
    let allocations = traffic.run(PACKETS);
    let after = levels(&traffic.pair);
    let rotations = after.0 - before.0;
    let exchanges = after.1 - before.1;
    // Whatever was sealed beyond the packets themselves: KeepAlives, Acks, exchanges.
    let controls = after.2 - before.2 - 2 * PACKETS;
    println!(
        "{allocations} allocations: {rotations} rotations, {exchanges} exchanges, {controls} control packets"
    );
    assert!(rotations > 50 && exchanges >= 2 && controls > 100);
    let bound = rotations * PER_ROTATION + controls * PER_TIMER + exchanges * PER_EXCHANGE;
    assert!(allocations <= bound, "{allocations} > {bound}");
}
