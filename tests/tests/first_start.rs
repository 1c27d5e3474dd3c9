//! From nothing to a tunnel: a server that starts without a configuration, or without a key.
#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::fs;
use std::io::pipe;
use std::net::{IpAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use lostlove_tests::daemon::full_pipe;
use lostlove_tests::lab::{PORT, wire_v4, write_secret};
use lostlove_tests::{Daemon, Driver, Host, Lab};

const MADE: &str = "sudo lostlove-client --config client1.toml";

#[test]
fn a_server_and_a_client_from_nothing_reach_each_other() {
    let Some(lab) = Lab::new(1) else { return };
    let (server, client) = (&lab.server, &lab.clients[0]);
    let daemon = start(server);
    daemon.await_log(" listening ");
    daemon.await_log(MADE);

    let folder = server.etc().join("lostlove");
    let profile = fs::read_to_string(folder.join("client1.toml")).unwrap();
    // In this network, the server cannot tell where clients reach it.
    let wrong = profile.lines().find(|line| line.starts_with("server = "));
    let right = format!("server = \"{}:{PORT}\"", wire_v4(0));
    let profile = profile.replace(wrong.unwrap(), &right);
    let config = client.etc().join("client1.toml");
    write_secret(&config, &profile);
    let program = Driver::of_client().client();
    let _client = Daemon::start(&client.name, &program, &client.netns, &config);

    let settings = fs::read_to_string(folder.join("server.toml")).unwrap();
    for key in ["tun_address = ", "tun_address_v6 = "] {
        client.await_ping(address(&settings, key));
    }
}

/// As of `lostlove-server | true`, or a pipe that is full.
#[test]
fn a_first_start_goes_on_when_nobody_reads_what_to_do_next() {
    let Some(lab) = Lab::new(0) else { return };
    let (_, closed) = pipe().unwrap();
    let (_unread, full) = full_pipe();
    for stdout in [closed, full] {
        let command = lab.server.netns.command(Driver::of_server().server());
        let mut daemon = Daemon::spawn_into(&lab.server.name, command, stdout.into());
        let told = daemon.await_log("nobody read on standard output that these were made");
        assert!(told.contains("/etc/lostlove/client1.toml"), "{told}");
        daemon.await_log(" listening ");
        assert!(daemon.terminate().success());
        fs::remove_dir_all(lab.server.etc().join("lostlove")).unwrap();
    }
}

/// Case 61: the usual network is in use here.
#[test]
fn the_first_start_chooses_a_network_that_is_free() {
    let Some(lab) = Lab::new(0) else { return };
    lab.server.add_address("10.8.0.9/24", "wan");
    start(&lab.server).await_log(" listening ");
    let config = lab.server.etc().join("lostlove/server.toml");
    let settings = fs::read_to_string(config).unwrap();
    let chosen = address(&settings, "tun_address = ").to_string();
    assert_eq!(chosen, "10.9.0.1");
}

#[test]
fn a_first_start_that_fails_promises_nothing() {
    let Some(lab) = Lab::new(0) else { return };
    let bind = || TcpListener::bind(("0.0.0.0", PORT));
    let taken = lab.server.netns.run(bind).unwrap().unwrap();
    let mut daemon = start(&lab.server);
    assert_eq!(daemon.await_exit().code(), Some(1));
    assert!(!daemon.log().contains(MADE));
    daemon.await_log("did not start");
    daemon.await_log("client1.toml");
    drop(taken);
    start(&lab.server).await_log(" listening ");
}

#[test]
fn a_configuration_of_llp_1_0_gets_a_key() {
    let Some(lab) = Lab::new(0) else { return };
    let server = &lab.server;
    let config = server.etc().join("old.toml");
    let text = "[server]\nport = 8443\n[network]\ntun_address = \"10.8.0.1/24\"\n";
    fs::write(&config, text).unwrap();
    let key = server.etc().join("server.key");
    let program = Driver::of_server().server();

    let mut check = server.netns.command(&program);
    let output = check
        .args(["--check-config", "--config"])
        .arg(&config)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let made = format!("a start makes {}", key.display());
    assert!(text.contains(&made), "{text}");
    assert!(text.contains("nobody can connect"), "{text}");
    assert!(!key.exists());

    let start = || {
        let daemon = Daemon::start(&server.name, &program, &server.netns, &config);
        daemon.await_log(" listening ");
        daemon
    };
    let mut daemon = start();
    daemon.await_log("a new one was made");
    assert_eq!(mode(&key), 0o600);
    let made = fs::read(&key).unwrap();
    daemon.terminate();
    assert!(!start().log().contains("a new one was made"));
    assert_eq!(fs::read(&key).unwrap(), made);
}

#[test]
fn a_check_before_the_first_start_tells_what_that_makes() {
    let Some(lab) = Lab::new(0) else { return };
    let server = &lab.server;
    let folder = server.etc().join("lostlove");
    let check = || {
        let mut check = server.netns.command(Driver::of_server().server());
        check.arg("--check-config").output().unwrap()
    };
    let output = check();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    for name in ["server.toml", "server.key", "client1.toml"] {
        assert!(text.contains(&format!("/etc/lostlove/{name} ")), "{text}");
    }
    assert!(!folder.exists(), "a check makes nothing");

    let mut daemon = start(server);
    daemon.await_log(" listening ");
    daemon.terminate();
    let output = check();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(output.stdout, b"/etc/lostlove/server.toml: OK\n");
    fs::remove_file(folder.join("server.toml")).unwrap();
    fs::write(folder.join("server.key"), "not a key").unwrap();
    assert_eq!(check().status.code(), Some(1));
    assert_eq!(start(server).await_exit().code(), Some(1));
}

/// A server without any argument.
fn start(host: &Host) -> Daemon {
    let program = Driver::of_server().server();
    Daemon::spawn(&host.name, host.netns.command(program))
}

fn address(settings: &str, key: &str) -> IpAddr {
    let mut lines = settings.lines();
    let value = lines.find_map(|line| line.strip_prefix(key)).unwrap();
    let (address, _) = value.trim_matches('"').split_once('/').unwrap();
    address.parse().unwrap()
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}
