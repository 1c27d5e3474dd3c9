//! What people read: place, key, what was expected, and the nearest valid name.

use lostlove_core::config::{Offloads, Role};

use crate::settings::{MetricsListener, Nat, NatScope, PortRange};
use crate::testing::{Folder, key, minimal_client};
use crate::{ConfigError, ServerFile};

/// Wrong server files and all that is said about them.
const SERVER: &[(&str, &str)] = &[
    (
        "\n\n[network]\nmtu = 100\n",
        "server.toml:4:7: network.mtu: expected 576 to 9000, found 100",
    ),
    (
        "[server]\n\nbind_adress = '0.0.0.0'\n",
        "server.toml:3:1: server.bind_adress: unknown key; did you mean bind_address?",
    ),
    (
        "[netwrk]\nmtu = 1400\n",
        "server.toml:1:2: netwrk: unknown section; did you mean network?",
    ),
    (
        "[server]\nmtu = 1400\n",
        "server.toml:2:1: server.mtu: unknown key; did you mean mtu in [network]?",
    ),
    (
        "port = 1\n",
        "server.toml:1:1: port: unknown section; did you mean port in [server]?",
    ),
    (
        "[server]\ncolour = 'red'\n",
        "server.toml:2:1: server.colour: unknown key",
    ),
    (
        "server = 1\n",
        "server.toml:1:10: server: expected a section [server], found 1",
    ),
    (
        "[peers]\nname = 'a'\n",
        "server.toml:1:1: peers: expected sections [[peers]], found a table",
    ),
    (
        "peers = [1]\n",
        "server.toml:1:10: peers: expected sections [[peers]], found 1",
    ),
    (
        "[server]\nport = '8443'\n",
        "server.toml:2:8: server.port: expected 1 to 65535, found \"8443\"",
    ),
    (
        "[server]\nprotocol = 'udp'\n",
        "server.toml:2:12: server.protocol: \"udp\" is not supported yet; expected \"tcp\"",
    ),
    (
        "[server]\nprotocol = 'both'\n",
        "server.toml:2:12: server.protocol: \"both\" is not supported yet; expected \"tcp\"",
    ),
    (
        "[server]\nprotocol = 'tpc'\n",
        "server.toml:2:12: server.protocol: expected \"tcp\", found \"tpc\"",
    ),
    (
        "[server]\nbind_address = 'localhost'\n",
        "server.toml:2:16: server.bind_address: expected an IP address, found \"localhost\"",
    ),
    (
        "[server]\nbind_address = []\n",
        "server.toml:2:16: server.bind_address: expected at least one address",
    ),
    (
        "[server]\nbind_address = ['::', '::']\n",
        "server.toml:2:23: server.bind_address: \"::\" is listed twice",
    ),
    (
        "[server]\nbind_address = ['192.0.2.1', '::1', '0.0.0.0']\n",
        "server.toml:2:17: server.bind_address: 192.0.2.1 is already among 0.0.0.0 (line 2)",
    ),
    (
        "[server]\nbind_address = '10.8.0.1'\n",
        "server.toml:2:16: server.bind_address: expected an address outside the tunnel \
         (10.8.0.0/24), found 10.8.0.1",
    ),
    (
        "[server]\nbind_address = '224.0.0.1'\n",
        "server.toml:2:16: server.bind_address: expected a unicast address, found \"224.0.0.1\"",
    ),
    (
        "[server]\nport = true\n",
        "server.toml:2:8: server.port: expected 1 to 65535, found true",
    ),
    (
        "[network]\nmut = 1400\n",
        "server.toml:2:1: network.mut: unknown key; did you mean mtu?",
    ),
    (
        "[server]\nport = 1\n\n[network]\n[server]\nport = 2\n",
        "server.toml:5:2: server: duplicate key; first in line 1\n\
         server.toml:6:1: server.port: duplicate key; first in line 2",
    ),
    (
        "[network]\ntun_address = '127.0.0.1/24'\n",
        "server.toml:2:15: network.tun_address: expected a unicast address, found \
         \"127.0.0.1/24\"",
    ),
    (
        "[network]\ntun_address_v6 = 'fe80::1/64'\n",
        "server.toml:2:18: network.tun_address_v6: expected a unicast address, found \
         \"fe80::1/64\"",
    ),
    (
        "[security]\nprivate_key_file = ''\n",
        "server.toml:2:20: security.private_key_file: expected a file name",
    ),
    (
        "[network]\nenable_ipv6 = 1\n",
        "server.toml:2:15: network.enable_ipv6: expected true or false, found 1",
    ),
    (
        "[network]\nnat = 1\n",
        "server.toml:2:7: network.nat: expected true, false or an interface name, found 1",
    ),
    (
        "[network]\noffload = 'tcp'\n",
        "server.toml:2:11: network.offload: expected true, false or a list such as [\"tcp\"], found \
         \"tcp\"",
    ),
    (
        "[network]\noffload = ['tpc', 'icmp', 1]\n",
        "server.toml:2:12: network.offload: expected \"tcp\" or \"udp\", found \"tpc\"; did you mean \
         \"tcp\"?\n\
         server.toml:2:19: network.offload: expected \"tcp\" or \"udp\", found \"icmp\"\n\
         server.toml:2:27: network.offload: expected \"tcp\" or \"udp\", found 1",
    ),
    (
        "[network]\noffload = ['udp', 'udp']\n",
        "server.toml:2:19: network.offload: \"udp\" is listed twice",
    ),
    (
        "[network]\ntun_name = 'lostlove-network-0'\n",
        "server.toml:2:12: network.tun_name: expected an interface name of 1 to 15 letters, \
         digits, '.', '_' or '-', found \"lostlove-network-0\"",
    ),
    (
        "[network]\ntun_address = '10.8.0.1'\n",
        "server.toml:2:15: network.tun_address: expected an IPv4 address with prefix length such \
         as \"10.8.0.1/24\", found \"10.8.0.1\"",
    ),
    (
        "[network]\ntun_address = '10.8.0.1/31'\n",
        "server.toml:2:15: network.tun_address: expected a prefix length of 8 to 30, found 31",
    ),
    (
        "[network]\ntun_address = '10.8.0.0/24'\n",
        "server.toml:2:15: network.tun_address: expected the server's address in the tunnel, \
         found \"10.8.0.0/24\", which is the network's own address",
    ),
    (
        "[network]\nmtu = 1000\nenable_ipv6 = true\n",
        "server.toml:2:7: network.mtu: expected 1280 to 9000 with IPv6, found 1000; set \
         enable_ipv6 = false to go lower",
    ),
    (
        "[network]\nenable_ipv6 = false\ndns = ['9.9.9.9', '2620:fe::fe']\n",
        "server.toml:3:19: network.dns: expected IPv4 alone while IPv6 is off, found 2620:fe::fe",
    ),
    (
        "[network]\ndns = '9.9.9.9'\n",
        "server.toml:2:7: network.dns: expected a list, found \"9.9.9.9\"",
    ),
    (
        "[network]\npush_routes = ['192.168.1.1/24']\n",
        "server.toml:2:16: network.push_routes: expected a network without host bits, found \
         \"192.168.1.1/24\"; did you mean \"192.168.1.0/24\"?",
    ),
    (
        "[limits]\nconnection_timeout = 20\nkeepalive_interval = 20\n",
        "server.toml:3:22: limits.keepalive_interval: expected less than connection_timeout (20), \
         found 20",
    ),
    (
        "[limits]\nmax_handshakes = 4\nmax_handshakes_per_source = 5\n",
        "server.toml:3:29: limits.max_handshakes_per_source: expected at most max_handshakes (4), \
         found 5",
    ),
    (
        "[security]\nrotate_interval = 0.005\n",
        "server.toml:2:19: security.rotate_interval: expected 0.01 to 86400, found 0.005",
    ),
    (
        "[security]\nrotate_interval = nan\n",
        "server.toml:2:19: security.rotate_interval: expected 0.01 to 86400, found nan",
    ),
    (
        "[security]\nsuites = ['hse', 'aes-256-gmc']\n",
        "server.toml:2:18: security.suites: expected \"hse\" or \"aes-256-gcm\" or \
         \"chacha20-poly1305\", found \"aes-256-gmc\"; did you mean \"aes-256-gcm\"?",
    ),
    (
        "[security]\nsuites = []\n",
        "server.toml:2:10: security.suites: expected at least one suite",
    ),
    (
        "[security]\nprivate_key_file = 'absent.key'\n",
        "server.toml:2:20: security.private_key_file: cannot read absent.key: No such file or \
         directory (os error 2)",
    ),
    (
        "[monitoring]\nlog_level = 'warning'\n",
        "server.toml:2:13: monitoring.log_level: expected \"error\" or \"warn\" or \"info\" or \
         \"debug\" or \"trace\", found \"warning\"; did you mean \"warn\"?",
    ),
    (
        "[[peers]]\n",
        "server.toml:1:1: peers.name: missing; expected a name\n\
         server.toml:1:1: peers.public_key: missing; expected a public key",
    ),
];

#[test]
fn each_problem_of_a_servers_file_has_its_exact_text() {
    let folder = Folder::new();
    for (text, expected) in SERVER {
        assert_eq!(folder.server_errors(text), *expected, "{text}");
    }
}

#[test]
fn each_problem_of_a_clients_file_has_its_exact_text() {
    let folder = Folder::new();
    assert_eq!(
        folder.client_errors(""),
        "client.toml: client.server: missing; expected a server such as \
         \"vpn.example.org:8443\"\n\
         client.toml: client.server_public_key: missing; expected a public key\n\
         client.toml: client.private_key: missing; expected private_key or private_key_file"
    );
    for (line, expected) in [
        (
            "routes = 'all'",
            "client.toml:5:10: client.routes: expected \"full\", \"server\", \"none\" or a list of \
             networks, found \"all\"",
        ),
        (
            "routes = ['10.0.0.0/8', '10.0.0.0/8']",
            "client.toml:5:25: client.routes: \"10.0.0.0/8\" is listed twice",
        ),
        (
            "dns = 'sever'",
            "client.toml:5:7: client.dns: expected \"server\", \"none\" or a list of IP addresses, \
             found \"sever\"; did you mean \"server\"?",
        ),
        (
            "dns = ['0.0.0.0']",
            "client.toml:5:8: client.dns: expected the address of one host, found \"0.0.0.0\"",
        ),
        (
            "reconnect_min = 10\nreconnect_max = 5",
            "client.toml:6:17: client.reconnect_max: expected at least reconnect_min (10), found 5",
        ),
        (
            "private_key_file = 'other.key'",
            "client.toml:5:20: client.private_key_file: expected private_key or private_key_file, \
             found both",
        ),
        (
            "[limits]\nmax_handshakes = 5",
            "client.toml:6:1: limits.max_handshakes: unknown key",
        ),
    ] {
        let text = format!("{}{line}\n", minimal_client());
        assert_eq!(folder.client_errors(&text), expected, "{line}");
    }
    let servers = minimal_client().replace("'localhost'", "['a', 'b:0']");
    assert_eq!(
        folder.client_errors(&servers),
        "client.toml:2:16: client.server: expected a server such as \"vpn.example.org:8443\", \
         found \"b:0\""
    );
    let servers = minimal_client().replace("'localhost'", "[]");
    assert_eq!(
        folder.client_errors(&servers),
        "client.toml:2:10: client.server: expected at least one server"
    );
    let own = minimal_client().replace(
        &key(200).public_key().to_string(),
        &key(1).public_key().to_string(),
    );
    assert_eq!(
        folder.client_errors(&own),
        "client.toml:3:21: client.server_public_key: expected the server's public key, found \
         this client's own"
    );
}

#[test]
fn all_problems_are_reported_in_the_files_order() {
    let folder = Folder::new();
    let text = "[monitoring]\nlog_level = 1\n[server]\nport = 0\nprot = 1\n[network]\nmtu = 1\n\
                dns = ['a', '9.9.9.9', 'b']\n[oops]\n[[peers]]\nname = ''\n";
    let errors = folder.server_errors(text);
    let places: Vec<_> = errors
        .lines()
        .map(|line| {
            line.split(':')
                .take(4)
                .skip(1)
                .collect::<Vec<_>>()
                .join(":")
        })
        .collect();
    let expected = [
        "2:13: monitoring.log_level",
        "4:8: server.port",
        "5:1: server.prot",
        "7:7: network.mtu",
        "8:8: network.dns",
        "8:24: network.dns",
        "9:2: oops",
        "10:1: peers.public_key",
        "11:8: peers.name",
    ];
    assert_eq!(places, expected, "{errors}");
}

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

/// A file of LLP 1.0 is good without a key, as a start makes one.
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
fn a_missing_key_alone_is_no_problem_to_a_check() {
    let folder = Folder::new();
    let check = |text: &str| {
        folder.write("server.toml", text);
        crate::check_server(&folder.server_path())
    };
    assert_eq!(check("").unwrap().missing_key, None);
    std::fs::remove_file(folder.path("server.key")).unwrap();
    let missing = check("").unwrap().missing_key;
    assert_eq!(missing, Some(folder.path("server.key")));
    assert_eq!(
        missing,
        Some(crate::default_key_path(&folder.server_path()))
    );
    assert!(!folder.path("server.key").exists(), "a check makes nothing");
    assert_eq!(
        folder.server_errors(""),
        "server.toml: security.private_key_file: no key: expected server.key; the server's first \
         start makes it, or (umask 077; lostlove genkey > server.key)"
    );
    for text in [
        "[network]\nmtu = 1\n",
        "[network]\nmut = 1400\n",
        "[security]\nprivate_key_file = 'absent.key'\n",
    ] {
        let checked = check(text).unwrap_err().to_string();
        assert_eq!(checked.lines().count(), 1, "{checked}");
        let loaded = crate::load_server(&folder.server_path()).unwrap_err();
        assert_eq!(checked, loaded.to_string(), "{text}");
        let opened = crate::open_server(&folder.server_path()).unwrap_err();
        assert_eq!(checked, opened.to_string(), "{text}");
    }
}

/// A start reads a file once, however large, and again only after it has made the key.
#[test]
fn a_start_gets_all_at_once_or_hears_that_only_the_key_is_missing() {
    let folder = Folder::new();
    let public_key = key(1).public_key();
    let peers = format!("[[peers]]\nname = 'a'\npublic_key = '{public_key}'\n");
    folder.write("server.toml", &peers);
    let open = || crate::open_server(&folder.server_path());
    let Ok(ServerFile::Complete(settings)) = open() else {
        panic!("nothing is missing");
    };
    assert_eq!(settings.peers.len(), 1);
    std::fs::remove_file(folder.path("server.key")).unwrap();
    let error = open().unwrap_err().to_string();
    assert!(
        error.contains("the peers' profiles name the key"),
        "{error}"
    );
    folder.write("server.toml", "");
    let Ok(ServerFile::KeyMissing(path)) = open() else {
        panic!("the key is missing, and nothing else");
    };
    assert_eq!(path, folder.path("server.key"));
    assert!(!path.exists(), "who reads makes nothing");
}

/// A file restored without its key would make a server that no client knows.
#[test]
fn peers_without_a_key_are_a_problem_to_a_check_as_well() {
    let folder = Folder::new();
    std::fs::remove_file(folder.path("server.key")).unwrap();
    let public_key = key(1).public_key();
    let text = format!("[[peers]]\nname = 'a'\npublic_key = '{public_key}'\n");
    let loaded = folder.server_errors(&text);
    assert_eq!(
        loaded,
        "server.toml: security.private_key_file: no key: expected server.key; the peers' profiles \
         name the key that was there, so put it back (mode 0600); if it is lost, \
         (umask 077; lostlove genkey > server.key) makes another, and every profile needs its \
         public key"
    );
    let checked = crate::check_server(&folder.server_path()).unwrap_err();
    assert_eq!(folder.strip(&checked.to_string()), loaded);
    folder.write("server.toml", "peers = []\n");
    assert!(crate::check_server(&folder.server_path()).is_ok());
}

#[test]
fn whose_a_file_is_is_told_by_its_sections() {
    let folder = Folder::new();
    let path = folder.server_path();
    for (text, expected) in [
        ("[client]\n", Role::Client),
        ("[server]\n", Role::Server),
        ("[client]\n[server]\n", Role::Server),
        ("[network]\nmtu = 1300\n", Role::Server),
        ("", Role::Server),
    ] {
        folder.write("server.toml", text);
        assert_eq!(crate::role_of(&path).unwrap(), expected, "{text}");
    }
    folder.write("server.toml", "[client\n");
    assert!(matches!(
        crate::role_of(&path),
        Err(ConfigError::Invalid(_))
    ));
}

#[test]
fn a_file_of_the_other_end_is_recognised_in_one_sentence() {
    let folder = Folder::new();
    let profile = minimal_client();
    let expected = "server.toml:1:1: client: this is a client's profile; expected a server's \
                    configuration (a profile is for lostlove-client --config FILE, on the client)";
    assert_eq!(folder.server_errors(&profile), expected);
    let checked = crate::check_server(&folder.server_path()).unwrap_err();
    assert_eq!(folder.strip(&checked.to_string()), expected);

    let public_key = key(1).public_key();
    for (text, place) in [
        (
            "[network]\nmtu = 1\n[server]\nport = 1\n".to_owned(),
            "3:1: server",
        ),
        (
            format!("[[peers]]\nname = 'a'\npublic_key = '{public_key}'\n"),
            "1:1: peers",
        ),
    ] {
        assert_eq!(
            folder.client_errors(&text),
            format!(
                "client.toml:{place}: this is a server's configuration; expected a client's \
                 profile, which `lostlove peer add NAME --output NAME.toml` makes on the server"
            )
        );
    }
    // A section too many is an error like any other.
    let both = format!("{profile}[server]\nport = 1\n");
    assert!(
        folder
            .client_errors(&both)
            .contains("server: unknown section")
    );
    assert!(
        folder
            .server_errors(&both)
            .contains("client: unknown section")
    );
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

/// Linux refuses the second of two sockets that listen on one port and share an address.
#[test]
fn metrics_and_connections_share_no_address() {
    let folder = Folder::new();
    let collides = |bind: &str, metrics: &str| {
        let text = format!(
            "[server]\nport = 9000\nbind_address = {bind}\n\
             [monitoring]\nmetrics_port = 9000\nmetrics_address = '{metrics}'\n"
        );
        let errors = folder.server_errors(&text);
        let start =
            "server.toml:5:16: monitoring.metrics_port: expected another port than that of ";
        assert!(errors.is_empty() || errors.starts_with(start), "{errors}");
        assert!(errors.is_empty() || errors.contains(metrics), "{errors}");
        !errors.is_empty()
    };
    for (bind, metrics, expected) in [
        ("'127.0.0.1'", "127.0.0.1", true),
        ("'127.0.0.1'", "127.0.0.2", false),
        ("'127.0.0.1'", "0.0.0.0", true),
        ("'127.0.0.1'", "::", true),
        ("'127.0.0.1'", "::1", false),
        ("'127.0.0.1'", "::ffff:127.0.0.1", true),
        ("'0.0.0.0'", "127.0.0.1", true),
        ("'0.0.0.0'", "::", true),
        ("'0.0.0.0'", "::1", false),
        ("'::'", "127.0.0.1", false),
        ("'::'", "0.0.0.0", false),
        ("'::'", "::1", true),
        ("'::'", "::", true),
        ("'::'", "::ffff:127.0.0.1", false),
        ("'::1'", "::1", true),
        ("'::1'", "::", true),
        ("'::1'", "2001:db8::1", false),
        ("['192.0.2.1', '192.0.2.2']", "192.0.2.2", true),
        ("['192.0.2.1', '::']", "192.0.2.2", false),
    ] {
        assert_eq!(collides(bind, metrics), expected, "{bind} {metrics}");
    }
    let errors = folder.server_errors("[server]\nport = 9190\n");
    assert_eq!(
        errors,
        "server.toml: monitoring.metrics_port: expected another port than that of 0.0.0.0:9190, \
         where the server listens, found 127.0.0.1:9190"
    );
    let text = "[server]\nport = 9190\n[monitoring]\nenable_metrics = false\n";
    assert_eq!(folder.server_errors(text), "");
}

#[cfg(unix)]
#[test]
fn secrets_must_not_be_open_to_others() {
    let folder = Folder::new();
    folder.set_mode("server.key", 0o640);
    assert_eq!(
        folder.server_errors(""),
        "server.toml: security.private_key_file: expected mode 0600 of server.key, found 0640"
    );
    folder.set_mode("server.key", 0o400);
    assert_eq!(folder.server_errors(""), "");

    let load = |text: &str| {
        folder.write("client.toml", text);
        folder.set_mode("client.toml", 0o604);
        crate::load_client(&folder.path("client.toml"))
    };
    let error = load(&minimal_client()).unwrap_err().to_string();
    assert_eq!(
        folder.strip(&error),
        "client.toml:4:15: client.private_key: expected mode 0600 of client.toml, which holds a \
         secret, found 0604"
    );
    let inline = format!("private_key = '{}'", *key(1).to_base64());
    let beside = minimal_client().replace(&inline, "private_key_file = 'other.key'");
    assert!(load(&beside).is_ok(), "no secret is in the file itself");
}

#[test]
fn key_files_that_hold_no_key_are_refused() {
    let folder = Folder::new();
    for text in ["", "not a key", &"A".repeat(100)] {
        folder.write("server.key", text);
        assert_eq!(
            folder.server_errors("[security]\nprivate_key_file = 'server.key'\n"),
            "server.toml:2:20: security.private_key_file: expected 44 characters of base64 (32 \
             bytes) in server.key"
        );
    }
    std::fs::write(folder.path("server.key"), [0xff; 44]).unwrap();
    assert!(folder.server_errors("").ends_with(" in server.key"));
    folder.write("server.key", &"A".repeat(5000));
    let errors = folder.server_errors("");
    assert!(
        errors.ends_with("server.key: larger than 4096 bytes"),
        "{errors}"
    );
    let errors = folder.server_errors("[security]\nprivate_key_file = '.'\n");
    assert!(errors.ends_with(": not a regular file"), "{errors}");
}

#[test]
fn no_message_contains_a_secret() {
    let folder = Folder::new();
    let secret = key(77).to_base64();
    let cut = secret.get(..43).unwrap();
    for line in [
        format!("private_key = '{cut}'"),
        format!("private_key = '{}x'", *secret),
        format!("private_key = ['{}']", *secret),
        format!("private_key = {}", *secret),
        format!("private_key = '{}", *secret),
        format!("privat_key = '{}'", *secret),
        format!("private_key_file = '{}'", *secret),
        format!("private_key_file = '{cut}'"),
        format!(
            "private_key = '{}'\nprivate_key_file = 'other.key'",
            *secret
        ),
        format!("[[peers]]\nname = 'a'\npublic_key = '{cut}'"),
        format!("[[peers]]\nname = 'a'\npublic_key = '{cut}'\npreshared_key = '{cut}'"),
    ] {
        let errors = folder.server_errors(&format!("[security]\n{line}\n"));
        assert_ne!(errors, "", "{line}");
        assert!(!errors.contains(secret.get(..20).unwrap()), "{errors}");
    }
    let misplaced = format!("[security]\nprivate_key_file = '{}'\n", *secret);
    assert_eq!(
        folder.server_errors(&misplaced),
        "server.toml:2:20: security.private_key_file: expected a file name, found a key; did you \
         mean private_key?"
    );
}
