//! A key that does nothing is a lie: each one must change the settings.

use std::collections::BTreeSet;

use crate::client;
use crate::problem::ConfigError;
use crate::reader::Reader;
use crate::server;
use crate::source::Source;
use crate::testing::{Folder, key, minimal_client};
use crate::{ClientSettings, ServerSettings};

/// Keys of a server's file with values that are not the default.
const SERVER: &[(&str, &str)] = &[
    ("server.bind_address", "'127.0.0.1'"),
    ("server.port", "443"),
    ("server.public_address", "'vpn.example:443'"),
    ("server.max_connections", "10"),
    ("server.worker_threads", "2"),
    ("network.tun_name", "'tun7'"),
    ("network.tun_address", "'10.9.0.1/24'"),
    ("network.tun_address_v6", "'fd00::1/64'"),
    ("network.enable_ipv6", "false"),
    ("network.mtu", "1380"),
    ("network.offload", "false"),
    ("network.compression", "true"),
    ("network.forwarding", "false"),
    ("network.nat", "false"),
    ("network.nat_v6", "false"),
    ("network.nat_ports", "'40000-50000'"),
    ("network.inbound", "['10.8.0.2']"),
    ("network.client_access", "'internet'"),
    ("network.client_deny", "['192.168.0.0/16']"),
    ("network.client_to_client", "true"),
    ("network.dns", "['10.8.0.1']"),
    ("network.push_routes", "['192.168.1.0/24']"),
    ("network.congestion_control", "'bbr'"),
    ("network.notsent_lowat", "65536"),
    ("limits.rate_limit_per_user", "1000000"),
    ("limits.max_streams_per_connection", "8"),
    ("limits.connection_timeout", "60"),
    ("limits.keepalive_interval", "5"),
    ("limits.handshake_timeout", "5"),
    ("limits.max_handshakes", "100"),
    ("limits.max_handshakes_per_source", "4"),
    ("limits.memory", "67108864"),
    ("limits.queue_bytes", "200000"),
    ("limits.queue_age_ms", "100"),
    ("limits.drain_timeout", "0"),
    (
        "security.private_key",
        "'AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI='",
    ),
    ("security.private_key_file", "'other.key'"),
    ("security.suites", "['aes-256-gcm']"),
    ("security.rotate_bytes", "1000000"),
    ("security.rotate_interval", "60"),
    ("security.probe_from", "[]"),
    ("monitoring.enable_metrics", "false"),
    ("monitoring.metrics_port", "9000"),
    ("monitoring.metrics_address", "'::1'"),
    ("monitoring.metrics_per_peer", "false"),
    ("monitoring.log_level", "'debug'"),
    ("monitoring.log_format", "'json'"),
    ("peers.name", "'b'"),
    (
        "peers.public_key",
        "'3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08='",
    ),
    (
        "peers.preshared_key",
        "'AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI='",
    ),
    ("peers.preshared_key_file", "'other.key'"),
    ("peers.address", "'10.8.0.7'"),
    ("peers.address_v6", "'fd4c:4c50:1::7'"),
    ("peers.routes", "['192.168.7.0/24']"),
    ("peers.rate_limit", "1000000"),
    ("peers.expires", "2027-01-31"),
];

/// Keys of a client's file with values that are not the default.
const CLIENT: &[(&str, &str)] = &[
    ("client.server", "['a.example', 'b.example']"),
    (
        "client.server_public_key",
        "'3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08='",
    ),
    (
        "client.private_key",
        "'AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI='",
    ),
    ("client.private_key_file", "'other.key'"),
    (
        "client.preshared_key",
        "'AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI='",
    ),
    ("client.preshared_key_file", "'other.key'"),
    ("client.routes", "'full'"),
    ("client.dns", "'none'"),
    ("client.inbound", "false"),
    ("client.direct_replies", "false"),
    ("client.reconnect_min", "2"),
    ("client.reconnect_max", "20"),
    ("network.tun_name", "'tun7'"),
    ("network.mtu", "1380"),
    ("network.offload", "false"),
    ("network.compression", "true"),
    ("network.local_routes", "['192.168.7.0/24']"),
    ("network.congestion_control", "'bbr'"),
    ("network.notsent_lowat", "65536"),
    ("limits.max_streams_per_connection", "8"),
    ("limits.connection_timeout", "60"),
    ("limits.keepalive_interval", "5"),
    ("limits.handshake_timeout", "5"),
    ("limits.queue_bytes", "200000"),
    ("limits.queue_age_ms", "100"),
    ("limits.drain_timeout", "0"),
    ("security.suites", "['aes-256-gcm']"),
    ("security.rotate_bytes", "1000000"),
    ("security.rotate_interval", "0.05"),
    ("monitoring.enable_metrics", "true"),
    ("monitoring.metrics_port", "9000"),
    ("monitoring.metrics_address", "'::1'"),
    ("monitoring.metrics_per_peer", "false"),
    ("monitoring.log_level", "'debug'"),
    ("monitoring.log_format", "'json'"),
];

/// Keys that act only while metrics are served.
const NEEDS_METRICS: [&str; 2] = ["monitoring.metrics_port", "monitoring.metrics_address"];

#[test]
fn every_key_of_a_server_changes_its_settings() {
    let folder = Folder::new();
    let public_key = key(1).public_key();
    let base = format!("[[peers]]\nname = 'a'\npublic_key = '{public_key}'\n");
    for (key, value) in SERVER {
        let before = prints_server(folder.server(&base));
        let changed = with(&base, key, value);
        let after = prints_server(folder.server(&changed));
        assert_ne!(before, after, "{key} does nothing");
    }
}

#[test]
fn every_key_of_a_client_changes_its_settings() {
    let folder = Folder::new();
    for (key, value) in CLIENT {
        let mut base = minimal_client();
        if NEEDS_METRICS.contains(key) {
            base.push_str("[monitoring]\nenable_metrics = true\n");
        }
        let before = prints_client(folder.client(&base));
        let changed = match *key {
            // One excludes the other.
            "client.private_key_file" => base.replace("private_key = ", "#"),
            _ => base,
        };
        let changed = with(&changed, key, value);
        let after = prints_client(folder.client(&changed));
        assert_ne!(before, after, "{key} does nothing");
    }
}

#[test]
fn the_tables_above_have_every_key() {
    let folder = Folder::new();
    let listed = |table: &[(&str, &str)]| -> BTreeSet<String> {
        table.iter().map(|(key, _)| (*key).to_owned()).collect()
    };
    let mut known = known_server_keys(&folder);
    // Only one value is supported yet; the others are refused.
    assert!(known.remove("server.protocol"));
    assert_eq!(known, listed(SERVER));
    assert_eq!(known_client_keys(&folder), listed(CLIENT));
}

/// Every key that a server's file may have.
pub(super) fn known_server_keys(folder: &Folder) -> BTreeSet<String> {
    let path = folder.server_path();
    let source = Source::new(&path, "[[peers]]\n", None);
    let tree = source.parse().unwrap();
    let mut reader = Reader::new(&source);
    let root = reader.root(tree.get_ref());
    server::settings(&mut reader, (&root, &[]), &path);
    reader.known_keys()
}

/// Every key that a client's file may have.
pub(super) fn known_client_keys(folder: &Folder) -> BTreeSet<String> {
    let path = folder.path("client.toml");
    let source = Source::new(&path, "", None);
    let tree = source.parse().unwrap();
    let mut reader = Reader::new(&source);
    let root = reader.root(tree.get_ref());
    client::settings(&mut reader, &root);
    reader.known_keys()
}

/// `base` with one key set or replaced.
fn with(base: &str, path: &str, value: &str) -> String {
    let (section, key) = path.split_once('.').unwrap();
    let line = format!("{key} = {value}");
    let start = format!("{key} = ");
    if let Some(old) = base.lines().find(|line| line.starts_with(&start)) {
        return base.replace(old, &line);
    }
    for header in [format!("[[{section}]]"), format!("[{section}]")] {
        if base.contains(&header) {
            return base.replace(&header, &format!("{header}\n{line}"));
        }
    }
    format!("{base}\n[{section}]\n{line}\n")
}

/// Settings as text, secrets included.
fn prints_server(settings: Result<ServerSettings, ConfigError>) -> String {
    let settings = settings.unwrap();
    let psk =
        |peer: &lostlove_core::config::Peer| peer.preshared_key.as_ref().map(|key| *key.as_bytes());
    let psks: Vec<_> = settings.peers.iter().map(psk).collect();
    let key = settings.endpoint.server.secret_key.as_bytes();
    let (endpoint, peers, host) = (&settings.endpoint, &settings.peers, &settings.host);
    format!("{endpoint:?} {peers:?} {host:?} {key:?} {psks:?}")
}

/// The same for a client.
fn prints_client(settings: Result<ClientSettings, ConfigError>) -> String {
    let settings = settings.unwrap();
    let client = &settings.endpoint.client;
    let psk = client.preshared_key.as_ref().map(|key| *key.as_bytes());
    let key = client.secret_key.as_bytes();
    let (endpoint, host) = (&settings.endpoint, &settings.host);
    format!("{endpoint:?} {host:?} {key:?} {psk:?}")
}
