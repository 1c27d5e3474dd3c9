//! No heap allocation per packet in the steady state, whatever the suite and the size; what peers and
//! sessions hold.
#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use lostlove_core::config::{ClientConfig, Peer, Rotation};
use lostlove_core::crypto::{SecretKey, Suite};
use lostlove_core::endpoint::{Sent, TunPacket};
use lostlove_tests::memory::{Configs, Pair, Secrets, configs, packet};

/// Packets in each direction.
const PACKETS: u64 = 100_000;
/// Packets in each direction before counting starts: pools and queues grow meanwhile.
const WARM_UP: u64 = 1000;
/// No key is replaced.
const ENDLESS: Rotation = Rotation {
    bytes: u64::MAX,
    interval: Duration::from_secs(1_000_000_000),
};

/// What an allocator keeps beside each piece of memory.
const OVERHEAD: usize = 16;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    /// Bytes that are allocated now.
    static LIVE: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, counted for each thread.
struct Counting;

fn count(layout: Layout) {
    ALLOCATIONS.with(|allocations| allocations.set(allocations.get() + 1));
    LIVE.with(|live| live.set(live.get().wrapping_add(layout.size() + OVERHEAD)));
}

fn discount(layout: Layout) {
    LIVE.with(|live| live.set(live.get().wrapping_sub(layout.size() + OVERHEAD)));
}

#[expect(
    unsafe_code,
    reason = "GlobalAlloc is an unsafe trait; every call is passed on as it is"
)]
// SAFETY: every method is the system allocator's; counting does not allocate, since the counters
// are initialised at compile time and have no destructors. The caller of `realloc` vouches for the
// layout of the new size.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout);
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        discount(layout);
        count(unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) });
        unsafe { System.realloc(pointer, layout, new_size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        discount(layout);
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
        Self::over(pair, len, segment_size)
    }

    /// Both sides have agreed on compression.
    fn compressing(suite: Suite, len: u16, segment_size: u16) -> Self {
        let secrets = Secrets::default();
        let mut configs = configs(&secrets, suite, ENDLESS);
        for common in [&mut configs.server.common, &mut configs.client.common] {
            common.compression = true;
        }
        Self::over(Pair::new(configs, &secrets), len, segment_size)
    }

    const fn over(pair: Pair, len: u16, segment_size: u16) -> Self {
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

/// Compressing and restoring each need a buffer of their own.
#[test]
fn compressed_packets_allocate_nothing() {
    for (len, segment_size, packets) in [(1400, 0, 10_000), (64_000, 1360, 500)] {
        let mut traffic = Traffic::compressing(Suite::Hse, len, segment_size);
        traffic.run(packets / 10);
        assert_eq!(traffic.run(packets), 0, "{len}");
        let saved = traffic.pair.server.stats().compression_in;
        assert!(saved.original_bytes > packets * u64::from(len), "{saved:?}");
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

/// The client of this number, as its server knows it and as it knows itself.
fn numbered(n: u32, like: &Configs) -> (Peer, ClientConfig) {
    let mut bytes = [7; 32];
    bytes[..4].copy_from_slice(&n.to_be_bytes());
    let secret_key = SecretKey::from_bytes(bytes);
    let peer = Peer {
        name: format!("client{n:06}"),
        public_key: secret_key.public_key(),
        preshared_key: None,
        address_v4: None,
        ..like.peer.clone()
    };
    let mut config = like.client.clone();
    config.client.secret_key = secret_key;
    config.client.preshared_key = None;
    (peer, config)
}

/// A KeepAlive's time, after which idle sessions give memory back.
const IDLE: Duration = Duration::from_secs(30);
/// With the client of the pair, tables are full in the middle and at the end.
const CLIENTS: u32 = 127;

/// Bytes that `act` leaves allocated for each of `items`.
fn left_by<T>(items: &[T], mut act: impl FnMut(&T)) -> usize {
    let before = LIVE.get();
    items.iter().for_each(&mut act);
    LIVE.get().saturating_sub(before) / items.len()
}

/// What each client that a server knows takes, and each session.
fn footprint(suite: Suite) -> (usize, usize) {
    let secrets = Secrets::default();
    let mut like = configs(&secrets, suite, ENDLESS);
    like.server.server.address_v4 = "10.8.0.1/16".parse().unwrap();
    let mut pair = Pair::new(like.clone(), &secrets);
    let clients: Vec<_> = (0..CLIENTS).map(|n| numbered(n, &like)).collect();
    // The first half fills pools and tables.
    let (first, second) = clients.split_at(clients.len() / 2);
    let peers = pair.server.peers().unwrap().clone();
    let mut learn = |(peer, _): &(Peer, ClientConfig)| {
        let known = peers.with(|peers| peers.upsert(peer.clone(), pair.now));
        assert!(known.is_ok());
        pair.server.handle_peers_changed(pair.now);
    };
    left_by(first, &mut learn);
    let peer = left_by(second, &mut learn);
    let mut connect = |clients: &[(Peer, ClientConfig)]| {
        let before = LIVE.get();
        for (_, config) in clients {
            pair.leave_session(config.clone(), [9; 32]);
        }
        pair.wait(IDLE);
        LIVE.get().saturating_sub(before) / clients.len()
    };
    connect(first);
    let session = connect(second);
    assert_eq!(pair.server.stats().sessions, 1 + u64::from(CLIENTS));
    (peer, session)
}

/// With what an allocator adds, and the room that tables have for more.
#[test]
fn a_peer_takes_at_most_two_kibibytes_and_a_session_four() {
    for suite in Suite::ALL {
        let (peer, session) = footprint(suite);
        println!("{suite}: {peer} bytes for a peer, {session} for a session");
        assert!((200..=2048).contains(&peer), "{suite}: {peer} bytes");
        assert!((1000..=4096).contains(&session), "{suite}: {session} bytes");
    }
}
