//! What people read: place, key, what was expected, and the nearest valid name.

use lostlove_core::config::Role;

use crate::ConfigError;
use crate::testing::{Folder, key, minimal_client};

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
        "[server]\nbind_address = ['203.0.113.1', 'fe80::1']\n",
        "server.toml:2:32: server.bind_address: expected an address that needs no interface, found \
         \"fe80::1\"",
    ),
    (
        "[server]\nbind_address = '::ffff:127.0.0.1'\n",
        "server.toml:2:16: server.bind_address: expected an IPv4 address as such, found \
         \"::ffff:127.0.0.1\"; did you mean \"127.0.0.1\"?",
    ),
    (
        "[monitoring]\nmetrics_address = 'fe80::1'\n",
        "server.toml:2:19: monitoring.metrics_address: expected an address that needs no interface, \
         found \"fe80::1\"",
    ),
    (
        "[security]\nprivate_kye = 'x'\n",
        "server.toml:2:1: security.private_kye: unknown key; did you mean private_key?",
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
