//! What is remembered, and how it is written.

use std::os::unix::fs::MetadataExt as _;
use std::thread;

use super::*;

const LONG: Duration = Duration::from_secs(3600);
const NEVER: Pace = Pace {
    gather: LONG,
    interval: LONG,
    retry: LONG,
};
const AT_ONCE: Pace = Pace {
    gather: Duration::ZERO,
    interval: Duration::ZERO,
    retry: Duration::from_millis(1),
};

#[test]
fn leases_outlive_the_process_the_longest_unused_first() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("deep/state");
    let (mut leases, known) = Leases::open_with(&directory, &key(0), &threads(), NEVER);
    assert_eq!(known, []);
    leases.leased(key(1), address("10.8.0.7"));
    leases.leased(key(1), address("fd00::7"));
    leases.leased(key(2), address("10.8.0.8"));
    leases.released(key(2));
    drop(leases);
    let (_, known) = Leases::open_with(&directory, &key(0), &threads(), NEVER);
    let expected = [(2, "10.8.0.8"), (1, "10.8.0.7"), (1, "fd00::7")].map(|(n, text)| Lease {
        peer: key(n),
        address: address(text),
    });
    assert_eq!(known, expected);
    assert_eq!(directory.metadata().unwrap().mode() & 0o7777, 0o700);
    let names = names(&directory);
    assert_eq!(names, ["0100000000000000.leases"]);
    let mode = directory.join(&names[0]).metadata().unwrap().mode();
    assert_eq!(mode & 0o7777, 0o600);
}

#[test]
fn a_server_with_another_key_has_other_leases() {
    let folder = tempfile::tempdir().unwrap();
    let (mut leases, _) = Leases::open_with(folder.path(), &key(0), &threads(), NEVER);
    leases.leased(key(1), address("10.8.0.7"));
    drop(leases);
    let (_, known) = Leases::open_with(folder.path(), &key(9), &threads(), NEVER);
    assert_eq!(known, []);
}

#[test]
fn without_a_change_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("state");
    drop(Leases::open_with(&directory, &key(0), &threads(), AT_ONCE));
    assert!(!directory.exists());
}

#[test]
fn an_address_that_went_to_another_is_his_alone() {
    let mut table = Table::default();
    table.give(key(1), address("10.8.0.7"), 10);
    table.give(key(2), address("10.8.0.7"), 20);
    table.give(key(2), address("10.8.0.9"), 30);
    table.give(key(3), address("10.8.0.7"), 5);
    let seen: Vec<_> = table.leases();
    let expected = [(3, "10.8.0.7"), (2, "10.8.0.9")].map(|(n, text)| Lease {
        peer: key(n),
        address: address(text),
    });
    assert_eq!(seen, expected);
}

#[test]
fn who_is_connected_is_used_now() {
    let mut table = Table::default();
    table.apply(Change::Leased(key(1), address("10.8.0.7")), 10);
    table.apply(Change::Leased(key(2), address("10.8.0.8")), 20);
    table.apply(Change::Released(key(2)), 30);
    let back = Table::from_text(&table.to_text(100)).unwrap();
    let seen = |n| back.clients.get(&key(n)).unwrap().seen;
    assert_eq!((seen(1), seen(2)), (100, 30));
}

#[test]
fn a_file_that_makes_no_sense_is_set_aside() {
    for bad in [
        &b"{\"key\":"[..],
        b"not json\n",
        b"{\"key\":\"short\",\"addresses\":[],\"seen\":1}\n",
        b"{\"key\":\"AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\",\"addresses\":[\"x\"],\"seen\":1}\n",
        b"\xff\xfe",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0100000000000000.leases");
        fs::write(&path, bad).unwrap();
        let (mut leases, known) = Leases::open_with(folder.path(), &key(0), &threads(), NEVER);
        assert_eq!(known, []);
        assert_eq!(names(folder.path()), ["0100000000000000.leases.bad"]);
        leases.leased(key(1), address("10.8.0.7"));
        drop(leases);
        let (_, known) = Leases::open_with(folder.path(), &key(0), &threads(), NEVER);
        assert_eq!(known.len(), 1);
    }
}

/// What comes in a burst is written once, and what fails is tried again.
#[test]
fn a_burst_is_written_once_and_a_failure_is_made_up_for() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("state");
    fs::write(&directory, "in the way").unwrap();
    let (mut leases, _) = Leases::open_with(&directory, &key(0), &threads(), AT_ONCE);
    leases.leased(key(1), address("10.8.0.7"));
    thread::sleep(Duration::from_millis(20));
    fs::remove_file(&directory).unwrap();
    let path = directory.join("0100000000000000.leases");
    let deadline = Instant::now() + Duration::from_secs(30);
    while !path.exists() {
        assert!(Instant::now() < deadline, "never written");
        thread::sleep(Duration::from_millis(5));
    }
    drop(leases);

    let pace = Pace {
        gather: Duration::ZERO,
        ..NEVER
    };
    let (mut leases, _) = Leases::open_with(&directory, &key(0), &threads(), pace);
    let before = path.metadata().unwrap().ino();
    leases.leased(key(1), address("10.8.0.8"));
    while path.metadata().unwrap().ino() == before {
        assert!(Instant::now() < deadline, "never written");
        thread::sleep(Duration::from_millis(5));
    }
    let written = path.metadata().unwrap().ino();
    for last in 10..200 {
        leases.leased(key(2), IpAddr::from([10, 8, 0, last]));
    }
    thread::sleep(Duration::from_millis(50));
    assert_eq!(path.metadata().unwrap().ino(), written);
    drop(leases);
    let (_, known) = Leases::open_with(&directory, &key(0), &threads(), NEVER);
    assert_eq!(known.len(), 2);
}

#[test]
fn the_longest_unused_are_forgotten_when_there_are_too_many() {
    let mut table = Table::default();
    for n in 0..9 {
        table.give(
            key(n),
            IpAddr::from([10, 8, 0, n as u8]),
            u64::from(100 - n),
        );
    }
    table.forget_surplus(3);
    let kept: Vec<_> = table.clients.keys().copied().collect();
    assert_eq!(kept, [key(0), key(1), key(2)]);
    assert_eq!(table.holders.len(), 3);
    table.forget_surplus(3);
    assert_eq!(table.clients.len(), 3);
}

#[test]
fn as_many_clients_as_are_remembered_fit_the_file() {
    let mut table = Table::default();
    table.give(key(1), address("255.255.255.255"), u64::MAX);
    table.give(
        key(1),
        address("fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        u64::MAX,
    );
    let line = table.to_text(0).len();
    assert!((line * MAX_CLIENTS) as u64 <= MAX_BYTES, "{line}");
}

fn threads() -> Threads {
    Threads::new().unwrap()
}

fn key(n: u32) -> PublicKey {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&(n + 1).to_le_bytes());
    bytes[31] = 0x20;
    PublicKey::from_bytes(bytes)
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}
