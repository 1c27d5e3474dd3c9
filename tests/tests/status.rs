//! What daemons tell on their control sockets, and the orders that they take there.
//!
//! ```text
//!  client0 --- wire --- server
//! ```
#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use lostlove_tests::lab::{DEVICE, PORT, SERVER_V4, Tunnel};
use lostlove_tests::programs::program;
use lostlove_tests::traffic::tcp;
use lostlove_tests::{Driver, Host, Lab, await_some, await_true};
use serde_json::Value;

/// Of nobody.
const STRANGER: u32 = 65_534;
const GROUP: u32 = 4242;

#[test]
fn daemons_tell_what_they_do_and_take_orders() {
    let Some(lab) = Lab::new(1) else { return };
    let tunnel = lab.start();
    let (server, client) = (&lab.server, &lab.clients[0]);
    assert!(tcp(client, server, SERVER_V4, 1_000_000).intact);

    let id = assert_server_tells(&lab, tunnel.server.pid());
    assert_client_tells(client, &id);
    assert_orders_are_followed(&lab, &tunnel);
    assert_reloads(&lab);

    for (host, arguments, expected) in [
        (server, "disconnect nobody", "no peer of this name"),
        (client, "disconnect client0", "this is a client"),
        (server, "status lostlove9", "no daemon \"lostlove9\""),
    ] {
        let output = lostlove(host, arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains(expected), "{error}");
    }
}

/// The status of a server with one peer; the id of that peer's session.
fn assert_server_tells(lab: &Lab, pid: u32) -> Value {
    let (server, client) = (&lab.server, &lab.clients[0]);
    let told = await_some("a round trip", || {
        let told = status(server);
        let known = &told["server"]["peers"][0]["session"]["round_trip_seconds"];
        known.is_number().then_some(told)
    });
    assert_eq!(
        (&told["state"], &told["name"]),
        (&"listening".into(), &DEVICE.into())
    );
    assert_eq!(told["pid"], pid);
    let peer = &told["server"]["peers"][0];
    assert_eq!(
        (&peer["name"], &peer["state"]),
        (&"client0".into(), &"connected".into())
    );
    assert_eq!(peer["public_key"], client.key.public_key().to_string());
    assert_eq!(peer["addresses"][0], "10.8.0.2");
    assert!(peer["received_bytes"].as_u64().unwrap() > 1_000_000);
    let session = &peer["session"];
    assert!(
        session["remote"]
            .as_str()
            .unwrap()
            .starts_with("10.99.0.2:")
    );
    assert_eq!(session["suite"], "hse");
    assert!(session["last_heard_seconds"].as_f64().unwrap() < 60.0);
    session["id"].clone()
}

fn assert_client_tells(client: &Host, session: &Value) {
    let told = await_some("a client that is set up", || {
        let told = status(client);
        (told["state"] == "connected").then_some(told)
    });
    let client_told = &told["client"];
    assert_eq!(client_told["session"]["id"], *session);
    assert_eq!(client_told["reconnects"], 0);
    assert_eq!(told["tunnel"]["addresses"][0], "10.8.0.2/24");
    let routes = client_told["routes"].to_string();
    assert!(routes.contains("10.8.0.0/24"), "{routes}");
}

fn assert_orders_are_followed(lab: &Lab, tunnel: &Tunnel) {
    let (server, client) = (&lab.server, &lab.clients[0]);
    // For a person, with rates.
    let text = said(server, "status");
    assert!(text.contains("client0: connected for"), "{text}");
    assert!(text.contains("/s)"), "{text}");
    assert_watch_ends_with_its_reader(server);

    let text = said(server, "log-level debug");
    assert!(text.contains("debug"), "{text}");
    assert_eq!(status(server)["log_level"], "debug");
    said(server, "disconnect client0");
    tunnel.server.await_log("DEBUG");
    tunnel.clients[0].await_log("disconnected by the operator");
    client.await_ping(SERVER_V4);
    let told = await_some("a client that has come back", || {
        let told = status(client);
        (told["client"]["reconnects"] == 1).then_some(told)
    });
    let why = told["client"]["ends"][0]["reason"].as_str().unwrap();
    assert!(why.contains("disconnected by the operator"), "{why}");
}

fn assert_reloads(lab: &Lab) {
    let server = &lab.server;
    // Its file is read again: a peer's limit applies at once, another port after a restart.
    let mut settings = lab.server_settings();
    settings
        .peer(0)
        .insert("rate_limit".into(), "5000000".into());
    settings.set("server.port", 8444);
    server.write_settings(&settings);
    let text = said(server, "reload");
    assert!(text.contains("client0"), "{text}");
    let later = text.split_once("after a restart: ").unwrap().1;
    assert!(later.contains("server.port"), "{text}");
    assert_eq!(
        status(server)["server"]["peers"][0]["rate_limit"],
        5_000_000
    );
    settings.set("server.prot", 1);
    server.write_settings(&settings);
    let output = lostlove(server, "reload");
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{error}");
    assert!(error.contains("did you mean port"), "{error}");
}

#[test]
fn a_client_of_the_socket_disturbs_nobody_whatever_it_does() {
    let Some(lab) = Lab::new(1) else { return };
    let _tunnel = lab.start();
    let path = socket(&lab.server).unwrap();
    let mut ping = lab.clients[0].netns.command("ping");
    ping.args(["-n", "-q", "-i", "0.01", "-c", "300", "-W", "2"]);
    let ping = ping.arg(SERVER_V4.to_string()).stdout(Stdio::piped());
    let ping = ping.spawn().unwrap();

    let connect = || UnixStream::connect(&path).unwrap();
    let mut long = connect();
    // It is told so long before its end, and then nobody reads it.
    let _ = long.write_all(&vec![b'x'; 10_000_000]);
    let mut garbage = connect();
    garbage.write_all(b"\0\xff\xfe\n{\"version\":1}\n").unwrap();
    let mut lines = BufReader::new(garbage).lines();
    for _ in 0..2 {
        assert!(lines.next().unwrap().unwrap().contains("bad_request"));
    }
    let mut deaf = connect();
    deaf.set_nonblocking(true).unwrap();
    let asks = "{\"version\":1,\"request\":\"status\"}\n".repeat(1000);
    let _ = deaf.write(asks.as_bytes());
    let crowd: Vec<_> = (0..1000)
        .filter_map(|_| UnixStream::connect(&path).ok())
        .collect();
    assert!(crowd.len() > 100);
    assert_eq!(status(&lab.server)["state"], "listening");

    let output = ping.wait_with_output().unwrap();
    let answer = String::from_utf8(output.stdout).unwrap();
    assert!(answer.contains(" 0% packet loss"), "{answer}");
}

/// More at once than a daemon has room for.
#[test]
fn any_number_of_operators_may_look_at_once() {
    let Some(lab) = Lab::new(0) else { return };
    let _server = lab.start_server(&lab.server_settings());
    let look = || {
        let mut command = lab.server.netns.command(program("lostlove"));
        let command = command.arg("status").stdout(Stdio::piped());
        command.stderr(Stdio::piped()).spawn().unwrap()
    };
    let looks: Vec<_> = (0..60).map(|_| look()).collect();
    for child in looks {
        let output = child.wait_with_output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{error}");
        assert!(
            String::from_utf8(output.stdout)
                .unwrap()
                .contains("server, listening")
        );
    }
}

#[test]
fn a_socket_is_its_daemons_alone_and_of_those_who_may() {
    let Some(lab) = Lab::new(0) else { return };
    let host = &lab.server;
    let group = host.etc().join("group");
    let groups = fs::read_to_string(&group).unwrap_or_default();
    fs::write(&group, format!("{groups}lostlove:x:{GROUP}:\n")).unwrap();
    let copy = host.etc().join("lostlove-copy");
    fs::copy(program("lostlove"), &copy).unwrap();
    fs::set_permissions(&copy, Permissions::from_mode(0o755)).unwrap();

    let output = lostlove(host, "status");
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("no LostLove daemon runs"), "{error}");

    let settings = lab.server_settings();
    let first = lab.start_server(&settings);
    let path = socket(host).unwrap();
    let metadata = fs::symlink_metadata(&path).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.gid()), (0o660, GROUP));

    // While a second one waits for the first.
    let mut second = host.start(&Driver::of_server().server(), &settings);
    let output = as_stranger(host, "--clear-groups", "status");
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(77), "{error}");
    assert!(error.contains("the group lostlove"), "{error}");
    let output = as_stranger(host, &format!("--groups={GROUP}"), "status");
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{error}");
    assert_who_may_not_be_asked_is_named(host, &path);
    // Whatever the file's mode: the daemon looks for itself.
    fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
    let output = as_stranger(host, "--clear-groups", "status");
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("may not control this daemon"), "{error}");

    let holder = format!("process {} (", first.pid());
    assert!(second.await_log("waiting for it to end").contains(&holder));
    assert!(!second.await_exit().success());
    assert!(second.log().lines().last().unwrap().contains(&holder));
    assert_eq!(status(host)["pid"], first.pid());

    first.kill();
    assert!(path.exists(), "it is left behind");
    let output = lostlove(host, "status");
    assert_eq!(output.status.code(), Some(1));
    let mut third = lab.start_server(&settings);
    assert_eq!(status(host)["pid"], third.pid());
    assert!(third.terminate().success());
    assert!(!path.exists());
}

/// A second daemon, in the same namespace, that began when there was no such group.
fn assert_who_may_not_be_asked_is_named(host: &Host, path: &Path) {
    let name = path.file_name().unwrap().to_str().unwrap();
    let name = name.replace(DEVICE, "other0");
    let other = path.with_file_name(&name);
    let _listener = UnixListener::bind(&other).unwrap();
    fs::set_permissions(&other, Permissions::from_mode(0o600)).unwrap();
    let ask = |order| {
        let output = as_stranger(host, &format!("--groups={GROUP}"), order);
        let [said, error] = [output.stdout, output.stderr].map(|it| String::from_utf8(it).unwrap());
        assert_eq!(output.status.code(), Some(1), "{order}: {error}");
        (said, error)
    };
    let (said, error) = ask("status");
    assert!(said.contains("server, listening"), "{said}");
    let denied = format!("permission denied: /run/lostlove/{name} is for root");
    assert!(error.contains(&denied), "{error}");
    let (_, error) = ask("reload");
    assert!(error.contains("name one of lostlove0, other0"), "{error}");
    fs::remove_file(&other).unwrap();
}

#[test]
fn a_doctor_finds_nothing_where_all_is_well_and_names_what_is_not() {
    let Some(lab) = Lab::new(1) else { return };
    let tunnel = lab.start();
    let (server, client) = (&lab.server, &lab.clients[0]);
    await_true("a client that is set up", || {
        status(client)["state"] == "connected"
    });
    for (host, looks) in [
        (server, &["server, listening on", "firewall: no other"][..]),
        (client, &["client, connected to 10.99.0.1:8443"]),
    ] {
        let (code, text) = doctor(host, "");
        assert_eq!(code, Some(0), "{text}");
        assert!(text.lines().all(|line| line.starts_with("ok ")), "{text}");
        for look in [
            looks,
            &[
                "/dev/net/tun: can be opened",
                "device: up, 10.8.0.",
                "/etc/resolv.conf: ",
            ],
        ]
        .concat()
        {
            assert!(text.contains(look), "{look} in {text}");
        }
    }
    assert_failed_reload_is_named(&lab);

    let config = server.write_settings(&lab.server_settings());
    let Tunnel {
        server: daemon,
        clients: _clients,
    } = tunnel;
    daemon.kill();
    await_true("a client that says why it has no session", || {
        let (code, text) = doctor(client, "");
        code == Some(1) && text.contains("not connected to 10.99.0.1:8443; the last of")
    });
    let listen = || TcpListener::bind(("0.0.0.0", PORT)).ok();
    let _other = await_some("a port that is free", || server.netns.run(listen).unwrap());
    let (code, text) = doctor(server, &format!("--config {}", config.display()));
    assert_eq!(code, Some(1), "{text}");
    for line in [
        "error    port 8443: another program listens on 0.0.0.0:8443",
        "         cure: sudo ss -ltnp 'sport = :8443'",
        "warning  lostlove0: a killed process has left",
        "warning  daemons: none runs on this machine",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
}

/// Of a server whose file has become wrong, in words and for a program.
fn assert_failed_reload_is_named(lab: &Lab) {
    let server = &lab.server;
    let mut settings = lab.server_settings();
    settings.set("server.prot", 1);
    server.write_settings(&settings);
    assert_eq!(lostlove(server, "reload").status.code(), Some(78));
    let (code, text) = doctor(server, "--json");
    let told: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &told["version"]), (Some(1), &1.into()), "{text}");
    assert_eq!(told["doctor"]["errors"], 1);
    let findings = told["doctor"]["findings"].as_array().unwrap();
    let wrong = findings.iter().filter(|it| it["level"] != "ok");
    let looks: Vec<_> = wrong.map(|it| it["look"].as_str().unwrap()).collect();
    assert_eq!(looks, ["configuration", "reload"], "{text}");
}

/// How it ends, and what it says.
fn doctor(host: &Host, arguments: &str) -> (Option<i32>, String) {
    let output = lostlove(host, &format!("doctor {arguments}"));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.is_empty(), "{error}");
    (
        output.status.code(),
        String::from_utf8(output.stdout).unwrap(),
    )
}

fn lostlove(host: &Host, arguments: &str) -> Output {
    host.output(program("lostlove").to_str().unwrap(), arguments)
}

fn said(host: &Host, arguments: &str) -> String {
    let output = lostlove(host, arguments);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{arguments}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn status(host: &Host) -> Value {
    let answer: Value = serde_json::from_str(&said(host, "status --json")).unwrap();
    assert_eq!(answer["version"], 1);
    answer["status"].clone()
}

/// The daemon's socket, as this process sees it.
fn socket(host: &Host) -> Option<PathBuf> {
    let entries = fs::read_dir(host.run()).ok()?;
    let mut paths = entries.map(|entry| entry.unwrap().path());
    paths.find(|path| path.extension().is_some_and(|it| it == "sock"))
}

/// Asks as a user of no rights but those of these groups.
fn as_stranger(host: &Host, groups: &str, order: &str) -> Output {
    let (user, group) = (format!("--reuid={STRANGER}"), format!("--regid={STRANGER}"));
    let mut command: Command = host.netns.command("setpriv");
    let command = command.args([&user, &group, groups]);
    command
        .args(["/etc/lostlove-copy", order])
        .output()
        .unwrap()
}

fn assert_watch_ends_with_its_reader(host: &Host) {
    let mut command = host.netns.command(program("lostlove"));
    let command = command.args(["status", "--watch"]).stdout(Stdio::piped());
    let mut watch = command.spawn().unwrap();
    let mut output = watch.stdout.take().unwrap();
    let mut page = vec![0; 4096];
    for _ in 0..2 {
        let len = output.read(&mut page).unwrap();
        let text = String::from_utf8_lossy(&page[..len]).into_owned();
        assert!(
            text.contains("server, listening") && !text.contains('\u{1b}'),
            "{text}"
        );
    }
    drop(output);
    await_true("the end of --watch", || watch.try_wait().unwrap().is_some());
}
