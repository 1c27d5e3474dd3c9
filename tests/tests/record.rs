//! What was changed and who may undo it: records that outlive their processes, and processes that
//! outlive their records.
//!
//! ```text
//!  client0 --- wire --- server
//! ```
#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use lostlove_tests::lab::{DEVICE, SERVER_V4, quoted};
use lostlove_tests::programs::program;
use lostlove_tests::{Daemon, Driver, Host, Lab, Settings, await_true};
use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;

/// Another name for the device.
const OTHER: &str = "lostlove7";
/// What an end may take on a slow machine that waits for nothing; a wait is as long.
const PROMPT: Duration = Duration::from_secs(4);

#[test]
fn a_daemon_that_is_started_while_its_predecessor_ends_takes_over() {
    let Some(lab) = Lab::new(1) else { return };
    let mut tunnel = lab.start();
    let driver = Driver::of_server();
    let mut server = lab.server.start(&driver.server(), &lab.server_settings());
    server.await_log("waiting for it to end");
    assert!(tunnel.server.terminate().success());
    server.await_log("listening");
    let settings = lab.client_settings(0);
    let client = lab.clients[0].start(&Driver::of_client().client(), &settings);
    client.await_log("waiting for it to end");
    // It has no chance to say that it ends.
    tunnel.clients.remove(0).kill();
    client.await_log("session established");
    lab.clients[0].await_ping(SERVER_V4);
    assert!(server.is_running());
}

#[test]
fn who_waits_for_a_predecessor_ends_when_he_is_asked_to() {
    let Some(lab) = Lab::new(0) else { return };
    let first = lab.start_server(&lab.server_settings());
    let driver = Driver::of_server();
    let mut second = lab.server.start(&driver.server(), &lab.server_settings());
    second.await_log("waiting for it to end");
    ends_at_once(&mut second);
    assert!(!first.log().contains("ERROR"), "{}", first.log());
}

/// Others hold it while they change a kernel parameter.
#[test]
fn who_waits_for_the_lock_of_all_daemons_ends_when_he_is_asked_to() {
    let Some(lab) = Lab::new(0) else { return };
    let before = lab.server.network_state();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(lab.server.run())
        .unwrap();
    let lock = File::create(lab.server.run().join("lock")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let driver = Driver::of_server();
    let mut server = lab.server.start(&driver.server(), &lab.server_settings());
    // What comes just before.
    await_true("the tunnel's address", || {
        lab.server.text("ip", "-o address").contains("10.8.0.1/24")
    });
    ends_at_once(&mut server);
    lab.server.network_state().assert_same_as(&before);
}

#[test]
fn what_a_killed_daemon_left_goes_when_the_next_has_another_device() {
    let Some(lab) = Lab::new(1) else { return };
    let client = &lab.clients[0];
    let before = [lab.server.network_state(), client.network_state()];
    let server = lab.start_server(&lab.server_settings());
    let mut settings = full_tunnel(&lab);
    let daemon = lab.start_client(0, settings.set("client.dns", r#"["10.8.0.1"]"#));
    client.await_ping_on_device(SERVER_V4, DEVICE);
    // They come last.
    await_true("the name servers are set", || {
        client.resolv_conf().contains("10.8.0.1")
    });
    server.kill();
    daemon.kill();

    let other = |mut settings: Settings| {
        settings.set("network.tun_name", quoted(OTHER));
        settings
    };
    let mut server = lab.start_server(&other(lab.server_settings()));
    let tables = lab.server.text("nft", "list tables");
    assert!(
        !tables.contains(DEVICE) && tables.contains(OTHER),
        "{tables}"
    );
    let mut daemon = lab.start_client(0, &other(full_tunnel(&lab)));
    client.await_ping_on_device(SERVER_V4, OTHER);

    // A client that outlives its server dials in vain, and says so.
    for daemon in [&mut daemon, &mut server] {
        assert!(daemon.terminate().success());
        assert!(!daemon.log().contains("cannot"), "{}", daemon.log());
    }
    lab.server.network_state().assert_same_as(&before[0]);
    client.network_state().assert_same_as(&before[1]);
    for host in [&lab.server, client] {
        assert_eq!(fs::read_dir(host.run()).unwrap().count(), 0);
    }
}

#[test]
fn an_unreadable_record_is_kept_and_said_and_its_rules_are_removed() {
    let Some(lab) = Lab::new(1) else { return };
    let client = &lab.clients[0];
    let before = client.network_state();
    let _server = lab.start_server(&lab.server_settings());
    let daemon = lab.start_client(0, &full_tunnel(&lab));
    client.await_ping_on_device(SERVER_V4, DEVICE);
    daemon.kill();
    let record = record(client);
    fs::write(&record, "{}\n").unwrap();
    // It is told by the record alone.
    let switch = || fs::write("/proc/sys/net/ipv4/conf/all/src_valid_mark", "0");
    client.netns.run(switch).unwrap().unwrap();

    let mut daemon = lab.start_client(0, &lab.client_settings(0));
    let line = daemon.await_log("cannot be read");
    let kept = format!("{}.unreadable", record.display());
    assert!(
        line.contains("WARN") && line.contains(".unreadable"),
        "{line}"
    );
    assert_eq!(fs::read_to_string(kept).unwrap(), "{}\n");
    client.await_ping_on_device(SERVER_V4, DEVICE);
    assert!(daemon.terminate().success());
    client.network_state().assert_same_as(&before);
}

/// Scripts that empty `/run`, and people.
#[test]
fn a_record_and_a_socket_that_are_removed_while_their_daemon_runs_are_made_again() {
    let Some(lab) = Lab::new(0) else { return };
    let before = lab.server.network_state();
    let server = lab.start_server(&lab.server_settings());
    // A look may make the record in it again meanwhile.
    await_true("an end of the folder", || {
        fs::remove_dir_all(lab.server.run()).is_ok()
    });
    // It is looked for with the rest.
    lab.server.netns.ip("rule add pref 77 lookup 77").unwrap();
    let repairs = "lostlove_system_repairs_total{what=\"record\"}";
    lab.server.await_metric(repairs, 1.0);
    let line = server.await_log("what=record");
    assert!(line.contains("WARN"), "{line}");
    lab.server.netns.ip("rule del pref 77").unwrap();
    let line = server.await_log("the control socket was taken away, and is put back");
    assert!(line.contains("WARN"), "{line}");
    let program = program("lostlove");
    let status = lab.server.output(program.to_str().unwrap(), "status");
    assert!(status.status.success(), "{status:?}");
    server.kill();

    let mut server = lab.start_server(lab.server_settings().set("network.forwarding", false));
    assert!(server.terminate().success());
    lab.server.network_state().assert_same_as(&before);
}

#[track_caller]
fn ends_at_once(daemon: &mut Daemon) {
    let start = Instant::now();
    daemon.signal(Signal::TERM);
    assert!(daemon.await_exit().success(), "{}", daemon.log());
    assert!(start.elapsed() < PROMPT, "{:?}", start.elapsed());
    assert!(daemon.log().contains("stopped"), "{}", daemon.log());
}

fn full_tunnel(lab: &Lab) -> Settings {
    let mut settings = lab.client_settings(0);
    settings.set("client.routes", quoted("full"));
    settings
}

fn record(host: &Host) -> PathBuf {
    let entries = fs::read_dir(host.run()).unwrap();
    let mut records = entries.map(|entry| entry.unwrap().path());
    let is_record = |path: &PathBuf| path.extension().is_some_and(|it| it == "json");
    records.find(is_record).unwrap()
}
