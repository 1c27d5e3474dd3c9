//! What daemons keep on the machine, and what others on it can get in their way with.
#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::PathBuf;

use lostlove_tests::lab::SERVER_V4;
use lostlove_tests::{Daemon, Host, Lab, Settings, await_true};
use rustix::fs::{FlockOperation, flock};

/// Case 58: clients of a server that was killed come back in another order, with and without what
/// it wrote down.
#[test]
fn dynamic_addresses_outlive_a_restart() {
    let Some(lab) = Lab::new(2) else { return };
    let settings = without_fixed_addresses(&lab);
    let server = lab.start_server(&settings);
    let first = addresses(&lab, [0, 1]);
    await_true("the leases", || leases(&lab.server).lines().count() == 2);
    server.kill();

    let text = leases(&lab.server);
    assert!(!text.contains("10.8.0.77"), "{text}");
    let moved = text.replace(&first[0].to_string(), "10.8.0.77");
    fs::write(lease_file(&lab.server), moved).unwrap();
    let mut server = lab.start_server(&settings);
    let expected = [IpAddr::from([10, 8, 0, 77]), first[1]];
    assert_eq!(addresses(&lab, [1, 0]), expected);
    assert!(server.terminate().success());
    assert!(leases(&lab.server).contains("10.8.0.77"));

    fs::remove_file(lease_file(&lab.server)).unwrap();
    let _server = lab.start_server(&settings);
    assert_eq!(addresses(&lab, [1, 0]), first);
}

/// A file of leases that makes no sense is a line in the log.
#[test]
fn a_bad_file_of_leases_is_set_aside() {
    let Some(lab) = Lab::new(1) else { return };
    let settings = without_fixed_addresses(&lab);
    let mut server = lab.start_server(&settings);
    let _client = lab.start_client(0, &lab.client_settings(0));
    lab.clients[0].await_ping(SERVER_V4);
    assert!(server.terminate().success());
    let path = lease_file(&lab.server);
    assert_eq!(
        path.metadata().unwrap().permissions().mode() & 0o7777,
        0o600
    );
    fs::write(&path, "nonsense").unwrap();

    let server = lab.start_server(&settings);

    server.await_log("cannot use the leases of earlier runs");
    assert!(path.with_extension("leases.bad").exists());
    lab.clients[0].await_ping(SERVER_V4);
}

/// Anybody may lock a folder that he can read.
#[test]
fn a_lock_on_the_folder_of_records_delays_nobody() {
    let Some(lab) = Lab::new(0) else { return };
    let before = lab.server.network_state();
    DirBuilder::new()
        .mode(0o755)
        .create(lab.server.run())
        .unwrap();
    let folder = File::open(lab.server.run()).unwrap();
    flock(&folder, FlockOperation::LockExclusive).unwrap();

    let mut server = lab.start_server(&lab.server_settings());
    assert!(server.terminate().success());

    lab.server.network_state().assert_same_as(&before);
}

#[test]
fn whoever_holds_the_lock_is_named_and_waited_for_in_vain_only_so_long() {
    let Some(lab) = Lab::new(0) else { return };
    let before = lab.server.network_state();
    let mut server = lab.start_server(&lab.server_settings());
    let lock = lab.server.run().join("lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock)
        .unwrap();
    flock(&file, FlockOperation::LockExclusive).unwrap();
    let holder = format!("is held by process {} (", std::process::id());

    assert!(server.terminate().success());
    server.await_log("undoing changes without the lock");
    server.await_log(&holder);
    lab.server.network_state().assert_same_as(&before);

    let program = lostlove_tests::Driver::of_server().server();
    let mut server = lab.server.start(&program, &lab.server_settings());
    assert_eq!(server.await_exit().code(), Some(1));
    server.await_log(&holder);
    lab.server.network_state().assert_same_as(&before);
}

#[test]
fn a_taken_metrics_port_ends_a_daemon_only_if_it_was_chosen() {
    let Some(lab) = Lab::new(0) else { return };
    let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 9190));
    let taken = lab.server.netns.run(bind).unwrap().unwrap();
    let mut settings = lab.server_settings();
    settings.set("monitoring.metrics_port", 9190);
    let program = lostlove_tests::Driver::of_server().server();
    let mut server = lab.server.start(&program, &settings);
    assert_eq!(server.await_exit().code(), Some(1));
    server.await_log("cannot serve metrics on 127.0.0.1:9190");

    let server = lab.start_server(settings.unset("monitoring.metrics_port"));
    server.await_log("going on without metrics");
    drop(taken);
    server.await_log("metrics are served now");
}

/// Connections of another local user do not hide whether the server is well.
#[test]
fn silent_connections_do_not_hide_that_the_server_is_well() {
    let Some(lab) = Lab::new(0) else { return };
    let mut settings = lab.server_settings();
    let _server = lab.start_server(settings.set("monitoring.metrics_port", 9100));
    let connect = || -> Vec<TcpStream> {
        (0..150)
            .map(|_| TcpStream::connect((Ipv4Addr::LOCALHOST, 9100)).unwrap())
            .collect()
    };
    let mut silent = lab.server.netns.run(connect).unwrap();
    for path in ["/healthz", "/readyz", "/metrics"] {
        let answer = lab.server.http(path);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
    }
    assert_eq!(silent[0].read(&mut [0]).unwrap_or(0), 0);
}

fn without_fixed_addresses(lab: &Lab) -> Settings {
    let mut settings = lab.server_settings();
    for index in 0..lab.clients.len() {
        let peer = settings.peer(index);
        peer.remove("address");
        peer.remove("address_v6");
    }
    settings
}

/// The clients' addresses when they come in this order; they are gone afterwards.
fn addresses(lab: &Lab, order: [u8; 2]) -> [IpAddr; 2] {
    let mut addresses = [IpAddr::from([0, 0, 0, 0]); 2];
    let mut daemons: Vec<Daemon> = Vec::new();
    for index in order {
        let daemon = lab.start_client(index, &lab.client_settings(index));
        let line = daemon.await_log("address_v4=");
        let (_, rest) = line.split_once("address_v4=").unwrap();
        let (address, _) = rest.split_once('/').unwrap();
        addresses[usize::from(index)] = address.parse().unwrap();
        daemon.await_log("session established");
        daemons.push(daemon);
    }
    for daemon in daemons {
        daemon.kill();
    }
    addresses
}

fn lease_file(host: &Host) -> PathBuf {
    find_lease_file(host).unwrap()
}

fn find_lease_file(host: &Host) -> Option<PathBuf> {
    let files = fs::read_dir(host.state()).ok()?;
    let mut paths = files.map(|entry| entry.unwrap().path());
    paths.find(|path| path.extension().is_some_and(|it| it == "leases"))
}

/// The file's text; empty if there is none yet.
fn leases(host: &Host) -> String {
    find_lease_file(host).map_or_else(String::new, |path| fs::read_to_string(path).unwrap())
}
