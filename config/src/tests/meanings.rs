//! Files that are good, and what they mean.

use lostlove_core::config::Offloads;

use crate::settings::{MetricsListener, Nat, NatScope, PortRange};
use crate::testing::{Folder, key, minimal_client};

const NO_PEERS: &str =
    "server.toml: peers: none, so nobody can connect; `lostlove peer add NAME` adds one";

#[test]
fn a_file_with_the_keys_of_llp_1_0_alone_loads() {
    let folder = Folder::new();
    let text = "[server]\nbind_address = '0.0.0.0'\nport = 8443\nprotocol = 'tcp'\n\
                max_connections = 1000\nworker_threads = 4\n\n\
                [network]\ntun_name = 'lostlove0'\ntun_address = '10.8.0.1/24'\nmtu = 1400\n\
                enable_ipv6 = false\n\n\
                [limits]\nrate_limit_per_user = 10485760\nmax_streams_per_connection = 256\n\
                connection_timeout = 300\n\n\
                [monitoring]\nenable_metrics = true\nmetrics_port = 9090\nlog_level = 'info'\n";
    let settings = folder.server(text).unwrap();
    let warnings = settings.warnings.iter().map(|it| folder.strip(it));
    assert_eq!(warnings.collect::<Vec<_>>(), [NO_PEERS]);
    assert_eq!(settings.host.listen, ["0.0.0.0:8443".parse().unwrap()]);
    assert_eq!(settings.host.worker_threads, 4);
    let metrics = settings.host.monitoring.metrics;
    let expected = MetricsListener {
        address: "127.0.0.1:9090".parse().unwrap(),
        port_is_chosen: true,
    };
    assert_eq!(metrics, Some(expected));
    let server = &settings.endpoint.server;
    assert_eq!(server.rate_limit, Some(10_485_760));
    assert_eq!(server.secret_key.as_bytes(), key(200).as_bytes());
    // Extremes of the old keys load as well.
    for text in [
        "[network]\nmtu = 576\n",
        "[limits]\nconnection_timeout = 3\n",
        "[limits]\nrate_limit_per_user = 0\n",
        "",
    ] {
        assert_eq!(folder.server_errors(text), "", "{text}");
    }
}

#[test]
fn nat_takes_the_name_of_an_interface() {
    let folder = Folder::new();
    let nat = |value| {
        let settings = folder.server(&format!("[network]\nnat = {value}\n"));
        settings.unwrap().host.nat
    };
    let of = |scope: NatScope| {
        Some(Nat {
            v4: Some(scope.clone()),
            v6: Some(scope),
            ports: PortRange::NAT,
        })
    };
    assert_eq!(nat("'eth0'"), of(NatScope::Interface("eth0".to_owned())));
    assert_eq!(nat("true"), of(NatScope::Everywhere));
    assert_eq!(nat("false"), None);
}

#[test]
fn offload_is_all_none_or_what_is_listed() {
    let folder = Folder::new();
    for (value, tcp, udp) in [
        ("true", true, true),
        ("false", false, false),
        ("['tcp']", true, false),
        ("['udp']", false, true),
        ("['udp', 'tcp']", true, true),
        ("[]", false, false),
    ] {
        let expected = Offloads { tcp, udp };
        let text = format!("[network]\noffload = {value}\n");
        let server = folder.server(&text).unwrap();
        assert_eq!(server.host.tun.offload, expected, "{value}");
        let client = folder.client(&format!("{}{text}", minimal_client()));
        assert_eq!(client.unwrap().host.tun.offload, expected, "{value}");
    }
    let default = folder.server("").unwrap();
    assert_eq!(default.host.tun.offload, Offloads::ALL);
}

#[test]
fn a_check_has_the_warnings_of_a_start() {
    let folder = Folder::new();
    let text = "[monitoring]\nmetrics_address = '0.0.0.0'\n";
    let loaded = folder.server(text).unwrap().warnings;
    assert_eq!(loaded.len(), 2, "{loaded:?}");
    let checked = crate::check_server(&folder.server_path()).unwrap();
    assert_eq!(checked.warnings, loaded);
    std::fs::remove_file(folder.path("server.key")).unwrap();
    let checked = crate::check_server(&folder.server_path()).unwrap();
    assert_eq!(checked.warnings, loaded);
}
