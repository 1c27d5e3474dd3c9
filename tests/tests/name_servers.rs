//! Whom a client's host asks for names, and who else has a say in that.
#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::fs::{self, Permissions};
use std::net::{IpAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

use lostlove_tests::lab::{PORT, SERVER_V4, quoted, wire_v4};
use lostlove_tests::{Daemon, Driver, Host, Lab, Settings, await_true};
use simple_dns::rdata::RData;
use simple_dns::{CLASS, Packet, QTYPE, ResourceRecord, TYPE};

/// The system's own, and those of two tunnels.
const ORIGINAL: &str = "192.0.2.53";
const FIRST: &str = "10.8.0.1";
const SECOND: &str = "10.9.0.1";

/// Two servers on one host, and what two clients need to use one each.
struct Pair {
    lab: Lab,
    _servers: [Daemon; 2],
}

impl Pair {
    fn new(clients: u8) -> Option<Self> {
        let lab = Lab::new(clients)?;
        let mut second = lab.server_settings();
        second
            .set("server.port", PORT + 1)
            .set("network.tun_name", quoted("lostlove1"))
            .set("network.tun_address", quoted("10.9.0.1/24"))
            .set("network.enable_ipv6", false)
            .unset("network.tun_address_v6")
            .set("monitoring.enable_metrics", false)
            .unset("monitoring.metrics_port");
        for index in 0..usize::from(clients) {
            let peer = second.peer(index);
            peer.remove("address");
            peer.remove("address_v6");
        }
        let servers = [
            lab.start_server(&lab.server_settings()),
            lab.start_server(&second),
        ];
        Some(Self {
            lab,
            _servers: servers,
        })
    }

    /// The settings of a client of the first server.
    fn first(&self) -> Settings {
        let mut settings = self.lab.client_settings(0);
        settings.set("client.dns", format!("[{}]", quoted(FIRST)));
        settings
    }

    /// The settings of a client of the second server on the same host, or on host `index` with a
    /// device of the same name.
    fn second(&self, index: u8) -> Settings {
        let server = format!("{}:{}", wire_v4(index), PORT + 1);
        let mut settings = self.lab.client_settings(index);
        settings
            .set("client.server", quoted(server))
            .set("client.dns", format!("[{}]", quoted(SECOND)));
        if index == 0 {
            settings
                .set("network.tun_name", quoted("lostlove1"))
                .set("monitoring.enable_metrics", false)
                .unset("monitoring.metrics_port");
        }
        settings
    }
}

/// How a client ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Stop,
    Kill,
}

fn end(mut daemon: Daemon, how: End) {
    match how {
        End::Stop => assert!(daemon.terminate().success()),
        End::Kill => daemon.kill(),
    }
}

#[track_caller]
fn await_server(file: &Path, server: &str) {
    let expected = format!("nameserver {server}\n");
    await_true(&format!("{} with {server}", file.display()), || {
        let text = fs::read_to_string(file).unwrap();
        text.ends_with(&expected) && text.matches("nameserver").count() == 1
    });
}

fn start(host: &Host, settings: &Settings) -> Daemon {
    host.start(&Driver::of_client().client(), settings)
}

/// Whoever ends first, and however, the other's name servers are in force, and then the original ones.
#[test]
fn two_clients_on_one_host_share_its_resolver() {
    let Some(pair) = Pair::new(1) else { return };
    let client = &pair.lab.clients[0];
    let file = client.etc().join("resolv.conf");
    let before = client.network_state();
    for (is_first_to_end, hows) in [
        (true, [End::Stop, End::Stop]),
        (false, [End::Kill, End::Stop]),
        (true, [End::Kill, End::Stop]),
        (false, [End::Stop, End::Kill]),
    ] {
        let first = start(client, &pair.first());
        await_server(&file, FIRST);
        let second = start(client, &pair.second(0));
        await_server(&file, SECOND);
        let (early, late, rest) = match is_first_to_end {
            true => (first, second, SECOND),
            false => (second, first, FIRST),
        };
        end(early, hows[0]);
        await_server(&file, rest);
        end(late, hows[1]);
        if matches!(hows, [_, End::Kill]) {
            await_server(&file, rest);
        } else {
            await_server(&file, ORIGINAL);
        }
        // What was killed left routes and more to the next one of its device.
        for settings in [pair.first(), pair.second(0)] {
            let mut settings = settings;
            let daemon = start(client, settings.set("client.dns", quoted("none")));
            daemon.await_log(" established ");
            end(daemon, End::Stop);
        }
        await_server(&file, ORIGINAL);
        client.network_state().assert_same_as(&before);
        assert_eq!(originals(&client.etc()), [""; 0]);
    }
}

/// As `ip netns exec` has it: one `/etc` and one `/run`, and a resolver's file for each namespace.
#[test]
fn two_namespaces_have_a_resolver_each() {
    let Some(mut pair) = Pair::new(2) else { return };
    let etc = pair.lab.clients[0].etc();
    let run = pair.lab.clients[0].run();
    let run = run.parent().unwrap();
    let files = ["a", "b"].map(|name| etc.join(name));
    for (file, host) in files.iter().zip(&mut pair.lab.clients) {
        fs::write(file, format!("nameserver {ORIGINAL}\n")).unwrap();
        host.netns = host
            .netns
            .clone()
            .bind(run, Path::new("/run"))
            .bind(&etc, Path::new("/etc"))
            .bind(file, Path::new("/etc/resolv.conf"));
    }
    let [a, b] = [&pair.lab.clients[0], &pair.lab.clients[1]];
    let host_file = etc.join("resolv.conf");
    for how in [End::Stop, End::Kill] {
        let first = start(a, &pair.first());
        let second = start(b, &pair.second(1));
        await_server(&files[0], FIRST);
        await_server(&files[1], SECOND);
        end(first, how);
        if matches!(how, End::Kill) {
            // The next one of its namespace undoes what it left, and nothing of the other one.
            let mut settings = pair.first();
            let next = start(a, settings.set("client.dns", quoted("none")));
            a.await_ping(SERVER_V4);
            end(next, End::Stop);
        }
        await_server(&files[0], ORIGINAL);
        await_server(&files[1], SECOND);
        end(second, End::Stop);
        await_server(&files[1], ORIGINAL);
        await_server(&host_file, ORIGINAL);
        assert_eq!(originals(&etc), [""; 0]);
    }
}

/// What is left beside the resolver's files.
fn originals(etc: &Path) -> Vec<String> {
    let entries = fs::read_dir(etc).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let ours = |path: &PathBuf| path.to_string_lossy().contains(".lostlove");
    let ours = paths.filter(ours);
    ours.map(|path| path.display().to_string()).collect()
}

/// A name server on a client's own network, and what it knows.
struct NameServer {
    records: Arc<Mutex<Vec<IpAddr>>>,
}

impl NameServer {
    /// It answers on this address of the host, for as long as the test runs.
    fn start(host: &Host, address: &str) -> Self {
        let address: IpAddr = address.parse().unwrap();
        let bind = || UdpSocket::bind((address, 53));
        let socket = host.netns.run(bind).unwrap().unwrap();
        let records = Arc::new(Mutex::new(Vec::new()));
        let known = Arc::clone(&records);
        thread::spawn(move || {
            let mut query = [0; 512];
            while let Ok((len, client)) = socket.recv_from(&mut query) {
                let answer = answer(&query[..len], &known.lock().unwrap());
                socket.send_to(&answer, client).unwrap();
            }
        });
        Self { records }
    }

    fn set(&self, addresses: &[&str]) {
        let addresses = addresses.iter().map(|text| text.parse().unwrap());
        *self.records.lock().unwrap() = addresses.collect();
    }
}

fn answer(query: &[u8], known: &[IpAddr]) -> Vec<u8> {
    let mut packet = Packet::parse(query).unwrap().into_reply();
    let question = packet.questions[0].clone();
    for address in known {
        let (kind, data) = match *address {
            IpAddr::V4(address) => (TYPE::A, RData::A(address.into())),
            IpAddr::V6(address) => (TYPE::AAAA, RData::AAAA(address.into())),
        };
        if question.qtype == QTYPE::TYPE(kind) {
            let record = ResourceRecord::new(question.qname.clone(), CLASS::IN, 1, data);
            packet.answers.push(record);
        }
    }
    packet.build_bytes_vec().unwrap()
}

/// A full tunnel whose name servers are the tunnel's, to a server that is given by name.
fn full_tunnel_to(lab: &Lab, name: &str) -> Settings {
    let mut settings = lab.client_settings(0);
    settings
        .set("client.server", quoted(format!("{name}:{PORT}")))
        .set("client.routes", quoted("full"));
    settings
}

/// The tunnel's name servers are of no use while there is no session: those from before it are asked, past
/// the tunnel.
#[track_caller]
fn a_server_that_moves_is_found(driver: Driver, resolver: &str, [old, new]: [&str; 2]) {
    let Some(lab) = Lab::new(1) else { return };
    let (server, client) = (&lab.server, &lab.clients[0]);
    let length = if old.contains(':') { 64 } else { 24 };
    server.add_address(
        &format!("{resolver}/{}", if length == 64 { 128 } else { 32 }),
        "wire0",
    );
    let name_server = NameServer::start(server, resolver);
    name_server.set(&[old]);
    let resolv_conf = client.etc().join("resolv.conf");
    fs::write(&resolv_conf, format!("nameserver {resolver}\n")).unwrap();
    let mut settings = lab.server_settings();
    settings.set("network.dns", format!("[{}]", quoted(FIRST)));
    let daemon = lab.start_server(&settings);
    let settings = full_tunnel_to(&lab, "vpn.example.org");
    let _client = client.start(&driver.client(), &settings);
    await_server(&resolv_conf, FIRST);
    client.await_ping(SERVER_V4);

    daemon.kill();
    server
        .netns
        .ip(&format!("address del {old}/{length} dev wire0"))
        .unwrap();
    server.add_address(&format!("{new}/{length}"), "wire0");
    name_server.set(&[new]);
    let server = lab.start_server(
        lab.server_settings()
            .set("network.dns", format!("[{}]", quoted(FIRST))),
    );

    server.await_log(" established ");
    client.await_ping(SERVER_V4);
    await_server(&resolv_conf, FIRST);
}

#[test]
fn a_server_that_moves_is_found_while_all_names_are_the_tunnels() {
    for driver in [Driver::Mio, Driver::Smol] {
        a_server_that_moves_is_found(driver, "10.99.0.53", ["10.99.0.1", "10.99.0.9"]);
        let addresses = ["2001:db8:0::1", "2001:db8:0::9"];
        a_server_that_moves_is_found(driver, "2001:db8:0::53", addresses);
    }
}

/// No name server knows it.
#[test]
fn a_server_of_the_hosts_file_is_found_while_all_names_are_the_tunnels() {
    let Some(lab) = Lab::new(1) else { return };
    let client = &lab.clients[0];
    let hosts = client.etc().join("hosts");
    let mut text = fs::read_to_string(&hosts).unwrap_or_default();
    text.push_str(&format!("\n{} vpn.example.org\n", wire_v4(0)));
    fs::write(&hosts, text).unwrap();
    let name_server = NameServer::start(&lab.server, "10.99.0.1");
    let resolv_conf = client.etc().join("resolv.conf");
    fs::write(&resolv_conf, "nameserver 10.99.0.1\n").unwrap();
    let mut settings = lab.server_settings();
    let settings = settings.set("network.dns", format!("[{}]", quoted(FIRST)));
    let daemon = lab.start_server(settings);
    let _client = start(client, &full_tunnel_to(&lab, "vpn.example.org"));
    await_server(&resolv_conf, FIRST);
    client.await_ping(SERVER_V4);
    name_server.set(&[]);
    daemon.kill();
    let server = lab.start_server(settings);
    server.await_log(" established ");
    client.await_ping(SERVER_V4);
}

/// A stand-in for systemd-resolved's `resolvectl`, with its state in a folder.
const RESOLVECTL: &str = r#"
cd "$(dirname "$0")"
while [ -e hangs ]; do sleep 0.01; done
what=$1
case "$what $#" in
"dns 1" | "domain 1")
    echo "Link 2 (wire):"
    echo "Link 7 (lostlove0): $(cat "$what" 2>&-)"
    ;;
revert*) rm -f dns domain ;;
*) shift 2; echo "$@" > "$what" ;;
esac
"#;

/// A `resolvectl` that hangs is tried again until the name servers are set, and what it forgets it is told
/// again; `/readyz` and the figures say so.
#[test]
fn systemd_resolved_is_told_until_it_listens_and_again_when_it_has_forgotten() {
    let Some(mut lab) = Lab::new(1) else { return };
    let client = &mut lab.clients[0];
    let folder = client.etc().join("resolved");
    fs::create_dir(&folder).unwrap();
    let program = folder.join("resolvectl");
    fs::write(&program, format!("#!/bin/sh\n{RESOLVECTL}")).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    fs::create_dir_all(client.run().with_file_name("systemd/resolve")).unwrap();
    let resolv_conf = client.etc().join("resolv.conf");
    fs::write(&resolv_conf, "nameserver 127.0.0.53\n").unwrap();
    let real = ["/usr/sbin/resolvectl", "/usr/bin/resolvectl"].map(Path::new);
    for real in real.into_iter().filter(|path| path.is_file()) {
        client.netns = client.netns.clone().bind(&program, real);
    }
    let client = &lab.clients[0];
    let mut settings = lab.server_settings();
    let settings = settings.set("network.dns", format!("[{}]", quoted(FIRST)));
    let _server = lab.start_server(settings);
    fs::write(folder.join("hangs"), "").unwrap();
    let mut command = client.netns.command(Driver::of_client().client());
    let path = format!("/etc/resolved:{}", std::env::var("PATH").unwrap());
    let config = client.write_settings(&lab.client_settings(0));
    command.arg("--config").arg(config).env("PATH", path);
    let mut daemon = Daemon::spawn(&client.name, command);
    client.await_ping(SERVER_V4);

    daemon.await_log("the network is not as it should be");
    let answer = client.http("/readyz");
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(
        answer.contains("resolvectl dns lostlove0 10.8.0.1"),
        "{answer}"
    );
    fs::remove_file(folder.join("hangs")).unwrap();
    daemon.await_log("the tunnel's name servers are set now");
    let await_ready = || {
        await_true("readiness", || {
            client.http("/readyz").starts_with("HTTP/1.1 200")
        });
    };
    await_ready();
    for lost in ["dns", "domain"] {
        let repairs = "lostlove_system_repairs_total{what=\"resolver\"}";
        let before = client.metric(repairs).unwrap();
        fs::remove_file(folder.join(lost)).unwrap();
        client.await_metric(repairs, before + 1.0);
        assert!(folder.join(lost).exists());
    }
    await_ready();
    assert!(daemon.terminate().success());
    assert!(!folder.join("dns").exists() && !folder.join("domain").exists());
    assert_eq!(
        fs::read_to_string(&resolv_conf).unwrap(),
        "nameserver 127.0.0.53\n"
    );
}
