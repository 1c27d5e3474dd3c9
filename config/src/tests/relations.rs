//! What peers may not share, with each other and with the server.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};

use crate::testing::{Folder, key};

/// Peers `a`, `b`, ... with these further lines.
fn peers(lines: &[&str]) -> String {
    let peer = |(index, lines): (u8, &&str)| {
        let name = char::from(b'a' + index);
        let public_key = key(index + 1).public_key();
        format!("[[peers]]\nname = '{name}'\npublic_key = '{public_key}'\n{lines}\n")
    };
    (0..).zip(lines).map(peer).collect()
}

#[test]
fn names_and_keys_are_unique() {
    let folder = Folder::new();
    let text = peers(&["", ""]).replace("'b'", "'a'");
    assert_eq!(
        folder.server_errors(&text),
        "server.toml:6:8: peers.name: \"a\" is already taken (line 2)"
    );
    let first = key(1).public_key().to_string();
    let text = peers(&["", ""]).replace(&key(2).public_key().to_string(), &first);
    assert_eq!(
        folder.server_errors(&text),
        "server.toml:7:14: peers.public_key: this key is already taken (line 3)"
    );
    let text = peers(&[""]).replace(&first, &key(200).public_key().to_string());
    assert_eq!(
        folder.server_errors(&text),
        "server.toml:3:14: peers.public_key: expected the peer's public key, found the server's \
         own"
    );
}

/// Case 21: a key of low order would make every session's secret the same.
#[test]
fn keys_of_low_order_are_refused() {
    let folder = Folder::new();
    let low = "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let text = peers(&[""]).replace(&key(1).public_key().to_string(), low);
    assert_eq!(
        folder.server_errors(&text),
        "server.toml:3:14: peers.public_key: expected a usable public key, found one of low order"
    );
}

/// Case 60: a fixed address is of the tunnel's network, not the server's, and nobody else's.
#[test]
fn fixed_addresses_are_free_addresses_of_the_tunnel() {
    let folder = Folder::new();
    for (line, expected) in [
        (
            "address = '10.9.0.2'",
            "address: expected an address in 10.8.0.0/24, found 10.9.0.2",
        ),
        (
            "address = '10.8.0.1'",
            "address: expected a free address, found 10.8.0.1, which is the server's",
        ),
        (
            "address = '10.8.0.0'",
            "address: expected a host's address, found 10.8.0.0, which is the network's own \
             address",
        ),
        (
            "address = '10.8.0.255'",
            "address: expected a host's address, found 10.8.0.255, which is the broadcast address",
        ),
        (
            "address = '10.8.0.2/32'",
            "address: expected an IPv4 address, found \"10.8.0.2/32\"",
        ),
        (
            "address_v6 = 'fd4c:4c50:1::1'",
            "address_v6: expected a free address, found fd4c:4c50:1::1, which is the server's",
        ),
        (
            "address_v6 = 'fd4c:4c50:1::'",
            "address_v6: expected a host's address, found fd4c:4c50:1::, which is the network's \
             subnet-router anycast address",
        ),
        (
            "address_v6 = 'fd00::2'",
            "address_v6: expected an address in fd4c:4c50:1::/64, found fd00::2",
        ),
    ] {
        let errors = folder.server_errors(&peers(&[line]));
        let (_, message) = errors.split_once("peers.").unwrap();
        assert_eq!(message, expected);
        assert!(errors.starts_with("server.toml:4:"), "{errors}");
    }
    let text = peers(&["address = '10.8.0.2'", "address = '10.8.0.2'"]);
    assert_eq!(
        folder.server_errors(&text),
        "server.toml:8:11: peers.address: 10.8.0.2 is already taken (line 4)"
    );
}

/// As on a host that has lost it: nobody takes it out of all files.
#[test]
fn what_is_configured_of_ipv6_is_unused_while_it_is_off() {
    let folder = Folder::new();
    let of_peer = "address_v6 = 'fd4c:4c50:1::2'\nroutes = ['2001:db8:7::/48', '10.7.0.0/16']";
    let text = format!(
        "[network]\nenable_ipv6 = false\ndns = ['2620:fe::fe', '9.9.9.9']\n\
         push_routes = ['2001:db8::/32']\ninbound = ['fd4c:4c50:1::2']\n{}",
        peers(&[of_peer, "address_v6 = 'fd4c:4c50:1::2'"])
    );
    let settings = folder.server(&text).unwrap();
    for peer in &settings.peers {
        assert_eq!(peer.address_v6, None);
    }
    assert_eq!(settings.host.peer_routes.len(), 1);
    assert_eq!(settings.host.client_access.dns.len(), 1);
    assert!(settings.host.client_access.routes.is_empty());
    // None at all: without a list all would be open.
    assert_eq!(settings.host.inbound, Some(Vec::new()));
    let said = settings.warnings.join("\n");
    for expected in [
        "network.inbound: fd4c:4c50:1::2/128 is unused while IPv6 is off",
        "network.dns: 2620:fe::fe is unused while IPv6 is off",
        "network.push_routes: 2001:db8::/32 is unused while IPv6 is off",
        "peers.address_v6: unused while IPv6 is off, as those of all peers are",
        "peers.routes: 2001:db8:7::/48 is unused while IPv6 is off",
    ] {
        assert_eq!(said.matches(expected).count(), 1, "{expected} in {said}");
    }
}

/// Case 54: equal networks of two peers are refused; of nested ones the more specific wins, and
/// that is said.
#[test]
fn networks_of_two_peers_may_nest_and_not_be_equal() {
    let folder = Folder::new();
    let equal = peers(&["routes = ['192.168.0.0/16']", "routes = ['192.168.0.0/16']"]);
    assert_eq!(
        folder.server_errors(&equal),
        "server.toml:8:11: peers.routes: 192.168.0.0/16 is already taken (line 4)"
    );

    let nested = peers(&["routes = ['192.168.0.0/16']", "routes = ['192.168.7.0/24']"]);
    let settings = folder
        .server(&format!("network.client_to_client = false\n{nested}"))
        .unwrap();
    let warnings: Vec<_> = settings
        .warnings
        .iter()
        .map(|it| folder.strip(it))
        .collect();
    assert_eq!(
        warnings,
        [
            "server.toml:9:11: peers.routes: 192.168.7.0/24 is taken out of 192.168.0.0/16 of \
          another peer (line 5)"
        ]
    );
    let routes: Vec<String> = settings
        .host
        .peer_routes
        .iter()
        .map(IpNet::to_string)
        .collect();
    assert_eq!(routes, ["192.168.0.0/16", "192.168.7.0/24"]);
}

/// Case 61: the pool is nobody's network but the tunnel's.
#[test]
fn networks_behind_peers_stay_clear_of_the_tunnels_own() {
    let folder = Folder::new();
    for (route, tunnel) in [
        ("10.8.0.0/24", "10.8.0.0/24"),
        ("10.8.0.128/25", "10.8.0.0/24"),
        ("10.0.0.0/8", "10.8.0.0/24"),
        ("0.0.0.0/0", "10.8.0.0/24"),
        ("::/0", "fd4c:4c50:1::/64"),
    ] {
        let text = peers(&[&format!("routes = ['{route}']")]);
        assert_eq!(
            folder.server_errors(&text),
            format!(
                "server.toml:4:11: peers.routes: expected a network beside the tunnel's own \
                 ({tunnel}), found {route}"
            )
        );
    }
}

#[test]
fn a_wrong_network_is_reported_once_and_not_for_every_peer() {
    let folder = Folder::new();
    let text = format!(
        "{}[network]\ntun_address = '10.9.0.1/99'\n",
        peers(&["address = '10.9.0.2'", "address = '10.9.0.3'"])
    );
    assert_eq!(folder.server_errors(&text).lines().count(), 1);
}

/// More would keep every client out.
#[test]
fn no_more_is_pushed_than_clients_can_be_told() {
    let folder = Folder::new();
    let list = |of: &dyn Fn(usize) -> String, count| {
        let items: Vec<_> = (1..=count).map(of).collect();
        items.join("\n")
    };
    let dns = |index| format!("'9.9.9.{index}',");
    let route = |index| format!("'172.16.{index}.0/24',");
    let file = |dns_count, route_count| {
        let (dns, routes) = (list(&dns, dns_count), list(&route, route_count));
        format!("network.dns = [\n{dns}\n]\nnetwork.push_routes = [\n{routes}\n]\n")
    };
    assert_eq!(folder.server_errors(&file(8, 64)), "");
    assert_eq!(
        folder.server_errors(&file(10, 64)),
        "server.toml:10:1: network.dns: expected at most 8 entries, found 10"
    );
    assert_eq!(
        folder.server_errors(&file(8, 65)),
        "server.toml:76:1: network.push_routes: expected at most 64 entries, found 65"
    );
}

#[test]
fn what_is_allowed_and_probably_not_meant_is_a_warning() {
    let folder = Folder::new();
    for (text, warning) in [
        (
            peers(&["routes = ['192.168.7.0/24']"]),
            "server.toml:4:11: peers.routes: other peers cannot reach it; set \
             network.client_to_client to say whether they should",
        ),
        (
            String::new(),
            "server.toml: peers: none, so nobody can connect; `lostlove peer add NAME` adds one",
        ),
        (
            format!(
                "[network]\ntun_address = '10.8.0.1/30'\n{}",
                peers(&["", ""])
            ),
            "server.toml:2:15: network.tun_address: room for at most 1 peers in 10.8.0.0/30, and \
             there are 2",
        ),
        (
            format!(
                "[network]\ntun_address_v6 = 'fd00::1/126'\n{}",
                peers(&["", "", ""])
            ),
            "server.toml:2:18: network.tun_address_v6: room for at most 2 peers in fd00::/126, and \
             there are 3",
        ),
        (
            format!("[network]\nmtu = 1000\n{}", peers(&[""])),
            "server.toml:2:7: network.mtu: IPv6 is off: it needs 1280 or more",
        ),
        (
            format!(
                "[network]\nenable_ipv6 = false\ntun_address_v6 = 'fd00::1/64'\n{}",
                peers(&[""])
            ),
            "server.toml:3:18: network.tun_address_v6: unused while IPv6 is off",
        ),
        (
            format!(
                "[monitoring]\nmetrics_address = '0.0.0.0'\n{}",
                peers(&[""])
            ),
            "server.toml:2:19: monitoring.metrics_address: whoever reaches 0.0.0.0 can read the \
             metrics",
        ),
        (
            format!(
                "[network]\ntun_address = '10.8.0.1/29'\n{}",
                peers(&[""; 6])
            ),
            "server.toml:2:15: network.tun_address: room for at most 5 peers in 10.8.0.0/29, and \
             there are 6",
        ),
    ] {
        let warnings = folder.server(&text).unwrap().warnings;
        let warnings: Vec<_> = warnings.iter().map(|it| folder.strip(it)).collect();
        assert_eq!(warnings, [warning]);
    }
}

#[test]
fn a_network_with_room_for_every_peer_is_no_warning() {
    let folder = Folder::new();
    let network = "tun_address = '10.8.0.1/29'\ntun_address_v6 = 'fd00::1/125'";
    let text = format!("[network]\n{network}\n{}", peers(&[""; 5]));
    let warnings = folder.server(&text).unwrap().warnings;
    assert_eq!(warnings, [] as [String; 0]);
}

/// Case 62: many prefixes come back as they were written.
#[test]
fn sixty_five_thousand_networks_are_read_back_exactly() {
    let folder = Folder::new();
    let network = |index: u32| {
        let address = Ipv4Addr::from(0xac10_0000 + index * 16);
        IpNet::V4(Ipv4Net::new(address, 28).unwrap())
    };
    let all: Vec<IpNet> = (0..65_000).map(network).collect();
    let lists: Vec<String> = all
        .chunks(13_000)
        .map(|chunk| {
            let quoted: Vec<_> = chunk.iter().map(|net| format!("'{net}'")).collect();
            format!("routes = [{}]", quoted.join(","))
        })
        .collect();
    let lists: Vec<&str> = lists.iter().map(String::as_str).collect();
    let settings = folder.server(&peers(&lists)).unwrap();
    assert_eq!(settings.host.peer_routes, all);
    let of_peers = settings.peers.iter().flat_map(|peer| &peer.routes);
    let of_peers: HashSet<_> = of_peers.copied().collect();
    assert_eq!(of_peers.len(), all.len());
}
