//! What a server lets pass between the tunnel and the networks outside.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use lostlove_core::config::Push;
use lostlove_core::ip::NOT_PUBLIC_V4;
use toml::de::DeValue;

use crate::reader::value::{expected, interface_name, network, one_of};
use crate::reader::{At, Entry, Found, Reader, Section};
use crate::sections::values;
use crate::settings::{AccessScope, ClientAccess, Nat, NatScope, PortRange};
use crate::tunnel::Tunnel;

/// Where clouds answer whoever asks with the machine's own credentials: the link-local address of
/// most, Amazon's for IPv6, Alibaba's, and Azure's.
const METADATA_ADDRESSES: [&str; 4] = [
    "169.254.169.254",
    "fd00:ec2::254",
    "100.100.100.200",
    "168.63.129.16",
];

/// Unique local (RFC 4193) and once site-local addresses (RFC 3879), and those that a NAT64 of
/// one's own translates (RFC 8215).
const PRIVATE_V6: [&str; 3] = ["fc00::/7", "fec0::/10", "64:ff9b:1::/48"];

/// Below are the ports of well-known services, which clients must never hold.
const NAT_PORTS: RangeInclusive<u16> = 1024..=u16::MAX;

/// Words that mean something else than an interface of this name, whatever their case.
const NO_INTERFACES: [&str; 18] = [
    "true", "false", "yes", "no", "on", "off", "all", "any", "auto", "none", "both", "ip", "ip4",
    "ip6", "ipv4", "ipv6", "v4", "v6",
];

/// `nat`, `nat_v6` and `nat_ports`.
pub(crate) fn nat<'t>(
    reader: &mut Reader<'t>,
    network: &Section<'t>,
    tunnel: &Tunnel,
) -> Option<Nat> {
    let v4 = reader.read(network, "nat", nat_scope);
    let v6 = reader.read(network, "nat_v6", nat_scope);
    let ports = reader.read(network, "nat_ports", port_range);
    if let Entry::Given(Found { at, .. }) = &v6
        && !tunnel.ipv6
    {
        reader.warning(at, "unused while IPv6 is off");
    }
    let v4 = v4.or(Some(NatScope::Everywhere));
    let v6 = v6.or(v4.clone()).filter(|_| tunnel.ipv6);
    if let (None, None, Entry::Given(ports)) = (&v4, &v6, &ports) {
        reader.warning(&ports.at, "unused while nat is off");
    }
    let ports = ports.or(PortRange::NAT);
    (v4.is_some() || v6.is_some()).then_some(Nat { v4, v6, ports })
}

/// `true`, `false`, or the name of the outgoing interface.
fn nat_scope(value: &DeValue<'_>) -> Result<Option<NatScope>, String> {
    const EXPECTED: &str = "true, false or an interface name";
    match value {
        DeValue::Boolean(true) => Ok(Some(NatScope::Everywhere)),
        DeValue::Boolean(false) => Ok(None),
        DeValue::String(text) if NO_INTERFACES.contains(&text.to_lowercase().as_str()) => {
            Err(expected(EXPECTED, value))
        }
        DeValue::String(_) => interface_name(value).map(|name| Some(NatScope::Interface(name))),
        _ => Err(expected(EXPECTED, value)),
    }
}

fn port_range(value: &DeValue<'_>) -> Result<PortRange, String> {
    let range = value.as_str().and_then(|text| {
        let (first, last) = text.split_once('-')?;
        let range = PortRange {
            first: first.parse().ok()?,
            last: last.parse().ok()?,
        };
        let is_allowed = NAT_PORTS.contains(&range.first) && range.count() >= PortRange::MIN_COUNT;
        is_allowed.then_some(range)
    });
    range.ok_or_else(|| {
        let (first, last) = NAT_PORTS.into_inner();
        let what = format!(
            "{} or more of the ports {first} to {last}, such as \"{}\"",
            PortRange::MIN_COUNT,
            PortRange::NAT
        );
        expected(what, value)
    })
}

/// `inbound`: parts of the tunnel's network and of the networks behind peers.
pub(crate) fn inbound<'t>(
    reader: &mut Reader<'t>,
    section: &Section<'t>,
    tunnel: &Tunnel,
    peer_routes: &[IpNet],
) -> Option<Vec<IpNet>> {
    let Entry::Given(list) = reader.list(section, "inbound", network) else {
        return None;
    };
    let mut networks = tunnel.addresses();
    networks.extend(peer_routes);
    let mut inbound = Vec::new();
    for Found { value, at } in &list.value {
        if !tunnel.carries(value.addr()) {
            reader.warning(at, format!("{value} is unused while IPv6 is off"));
            continue;
        }
        inbound.push(*value);
        if !networks.iter().any(|known| known.trunc().contains(value)) {
            let message = format!(
                "expected addresses of the tunnel or of a network in peers.routes, found {value}"
            );
            reader.problem(at, message);
        }
    }
    Some(inbound)
}

/// `client_access` and `client_deny`.
pub(crate) fn client_access<'t>(
    reader: &mut Reader<'t>,
    section: &Section<'t>,
    push: &Push,
) -> ClientAccess {
    let scopes = [
        ("all", AccessScope::All),
        ("internet", AccessScope::Internet),
    ];
    let scope = reader.read(section, "client_access", one_of(&scopes));
    if let Entry::Given(Found { value, at }) = &scope
        && *value == AccessScope::Internet
    {
        warn_of_wide_routes(reader, at, &push.routes);
    }
    let deny = match reader.list(section, "client_deny", network) {
        Entry::Given(list) => {
            warn_of_metadata(reader, &list);
            values(Entry::Given(list))
        }
        Entry::Absent | Entry::Invalid => metadata_networks().collect(),
    };
    ClientAccess {
        scope: scope.or(AccessScope::All),
        deny,
        routes: push.routes.clone(),
        dns: push.dns.clone(),
    }
}

impl ClientAccess {
    /// The networks of `routes` that are private altogether. One that only holds private networks,
    /// such as 0.0.0.0/0, says nothing of them.
    pub fn private_routes(&self) -> Vec<IpNet> {
        let routes = self.routes.iter().copied();
        routes.filter(is_private).collect()
    }
}

fn is_private(network: &IpNet) -> bool {
    private_networks().any(|private| private.contains(network))
}

fn private_networks() -> impl Iterator<Item = IpNet> {
    let v6 = PRIVATE_V6.iter().filter_map(|text| text.parse().ok());
    NOT_PUBLIC_V4.into_iter().map(IpNet::V4).chain(v6)
}

/// Who pushes every network, private ones among them, may think that this opens them.
fn warn_of_wide_routes(reader: &mut Reader<'_>, at: &At, routes: &[IpNet]) {
    let holds_private = |route: &&IpNet| private_networks().any(|it| route.contains(&it));
    let wide = routes.iter().filter(|route| !is_private(route));
    for route in wide.filter(holds_private) {
        let message = format!(
            "the private networks in {route} of push_routes stay closed; push those that clients \
             may reach by themselves too"
        );
        reader.warning(at, message);
    }
}

/// Who adds a network of his own easily forgets what the default held. An empty list is no
/// accident.
fn warn_of_metadata(reader: &mut Reader<'_>, list: &Found<Vec<Found<IpNet>>>) {
    let is_denied = |address: &IpNet| list.value.iter().any(|found| found.value.contains(address));
    // Link-local addresses never pass, whatever the list says.
    let is_local = |address: &IpNet| matches!(address, IpNet::V4(v4) if v4.addr().is_link_local());
    let open: Vec<_> = metadata_networks()
        .filter(|address| !is_denied(address) && !is_local(address))
        .map(|address| address.addr().to_string())
        .collect();
    if !list.value.is_empty() && !open.is_empty() {
        let open = open.join(", ");
        let message = format!("clients may now ask the metadata services {open}; list them too");
        reader.warning(&list.at, message);
    }
}

fn metadata_networks() -> impl Iterator<Item = IpNet> {
    let addresses = METADATA_ADDRESSES.iter();
    addresses.filter_map(|text| text.parse::<IpAddr>().ok().map(IpNet::from))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::METADATA_ADDRESSES;
    use crate::settings::{AccessScope, NatScope, PortRange};
    use crate::testing::{Folder, key};

    #[test]
    fn a_range_of_ports_is_large_and_beyond_the_well_known_ones() {
        let folder = Folder::new();
        for (text, first, last) in [
            ("1024-65535", 1024, 65535),
            ("40000-40255", 40000, 40255),
            ("65280-65535", 65280, 65535),
        ] {
            let settings = folder.server(&format!("[network]\nnat_ports = '{text}'\n"));
            let nat = settings.unwrap().host.nat.unwrap();
            assert_eq!(nat.ports, PortRange { first, last });
        }
        for text in [
            "1023-65535",
            "40000-40254",
            "65281-65535",
            "50000-40000",
            "40000",
            "40000-",
            "40000-70000",
            "all",
        ] {
            assert_eq!(
                folder.server_errors(&format!("[network]\nnat_ports = '{text}'\n")),
                format!(
                    "server.toml:2:13: network.nat_ports: expected 256 or more of the ports 1024 \
                     to 65535, such as \"32768-60999\", found \"{text}\""
                )
            );
        }
    }

    #[test]
    fn words_that_mean_something_else_are_no_interfaces() {
        let folder = Folder::new();
        for word in ["ipv4", "false", "all", "IPv6", "v4"] {
            for (key, column) in [("nat", 7), ("nat_v6", 10)] {
                assert_eq!(
                    folder.server_errors(&format!("[network]\n{key} = '{word}'\n")),
                    format!(
                        "server.toml:2:{column}: network.{key}: expected true, false or an interface \
                         name, found \"{word}\""
                    )
                );
            }
        }
    }

    #[test]
    fn each_version_of_ip_is_translated_by_itself() {
        let folder = Folder::new();
        let nat = |keys: &str| {
            let text = format!("[network]\n{keys}\n");
            let nat = folder.server(&text).unwrap().host.nat;
            nat.map(|nat| (nat.v4, nat.v6))
        };
        let everywhere = || Some(NatScope::Everywhere);
        let on = |name: &str| Some(NatScope::Interface(name.to_owned()));
        for (keys, expected) in [
            ("", Some((everywhere(), everywhere()))),
            ("nat = 'eth0'", Some((on("eth0"), on("eth0")))),
            ("nat_v6 = false", Some((everywhere(), None))),
            (
                "nat = 'eth0'\nnat_v6 = true",
                Some((on("eth0"), everywhere())),
            ),
            ("nat = false\nnat_v6 = 'eth1'", Some((None, on("eth1")))),
            ("nat = false", None),
            ("enable_ipv6 = false", Some((everywhere(), None))),
            ("nat = false\nnat_v6 = true\nenable_ipv6 = false", None),
        ] {
            assert_eq!(nat(keys), expected, "{keys}");
        }
    }

    #[test]
    fn translation_of_ipv6_without_ipv6_is_of_no_use() {
        let folder = Folder::new();
        let text = "[network]\nenable_ipv6 = false\nnat_v6 = true\n";
        let warnings = folder
            .server(&(text.to_owned() + &peer()))
            .unwrap()
            .warnings;
        let warnings: Vec<_> = warnings.iter().map(|it| folder.strip(it)).collect();
        assert_eq!(
            warnings,
            ["server.toml:3:10: network.nat_v6: unused while IPv6 is off"]
        );
    }

    #[test]
    fn only_the_tunnels_own_networks_can_be_opened() {
        let folder = Folder::new();
        let peer = format!(
            "[[peers]]\nname = 'a'\npublic_key = '{}'\nroutes = ['192.168.0.0/16']\n",
            key(1).public_key()
        );
        let inbound = "['10.8.0.7', '192.168.7.0/24', 'fd4c:4c50:1::/64']";
        let text = format!("[network]\nclient_to_client = true\ninbound = {inbound}\n{peer}");
        let settings = folder.server(&text).unwrap();
        assert_eq!(settings.host.inbound.map(|list| list.len()), Some(3));
        let text = text.replace("10.8.0.7", "10.9.0.0/24");
        assert_eq!(
            folder.server_errors(&text),
            "server.toml:3:12: network.inbound: expected addresses of the tunnel or of a network \
             in peers.routes, found 10.9.0.0/24"
        );
        assert_eq!(folder.server("").unwrap().host.inbound, None);
    }

    /// Without one there is a warning.
    fn peer() -> String {
        let public_key = key(1).public_key();
        format!("[[peers]]\nname = 'a'\npublic_key = '{public_key}'\n")
    }

    #[test]
    fn metadata_services_are_denied_until_somebody_says_otherwise() {
        let folder = Folder::new();
        let default = folder.server("").unwrap();
        let access = default.host.client_access;
        assert_eq!(access.scope, AccessScope::All);
        for service in METADATA_ADDRESSES {
            let service: IpAddr = service.parse().unwrap();
            assert!(access.deny.iter().any(|denied| denied.contains(&service)));
        }
        let warnings = |value: &str| {
            let text = format!("[network]\nclient_deny = {value}\n{}", peer());
            let warnings = folder.server(&text).unwrap().warnings;
            let warnings = warnings.iter().map(|it| folder.strip(it));
            warnings.collect::<Vec<_>>()
        };
        assert_eq!(
            warnings("['10.0.0.0/8']"),
            [
                "server.toml:2:15: network.client_deny: clients may now ask the metadata services \
                 fd00:ec2::254, 100.100.100.200, 168.63.129.16; list them too"
            ]
        );
        assert_eq!(warnings("['0.0.0.0/0', '::/0']"), [""; 0]);
        assert_eq!(warnings("[]"), [""; 0]);
    }

    #[test]
    fn what_clients_are_told_of_they_may_reach() {
        let folder = Folder::new();
        let text = "[network]\ndns = ['10.8.0.1']\npush_routes = ['192.168.1.0/24']\n\
                    client_access = 'internet'\n";
        let access = folder.server(text).unwrap().host.client_access;
        assert_eq!(access.scope, AccessScope::Internet);
        assert_eq!(access.dns, ["10.8.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(access.routes, ["192.168.1.0/24".parse().unwrap()]);
    }

    #[test]
    fn a_wide_route_opens_no_private_networks_and_says_so() {
        let folder = Folder::new();
        let settings = |scope: &str, routes: &str| {
            let text = format!(
                "[network]\nclient_access = '{scope}'\npush_routes = {routes}\n{}",
                peer()
            );
            folder.server(&text).unwrap()
        };
        let routes = "['0.0.0.0/1', '10.1.0.0/16', '9.0.0.0/8', '2000::/3', '::/0', 'fd07::/48']";
        let found = settings("internet", routes);
        let private = found.host.client_access.private_routes();
        let private: Vec<_> = private.iter().map(ToString::to_string).collect();
        assert_eq!(private, ["10.1.0.0/16", "fd07::/48"]);
        let warnings: Vec<_> = found.warnings.iter().map(|it| folder.strip(it)).collect();
        let warning = |route: &str| {
            format!(
                "server.toml:2:17: network.client_access: the private networks in {route} of \
                 push_routes stay closed; push those that clients may reach by themselves too"
            )
        };
        assert_eq!(warnings, [warning("0.0.0.0/1"), warning("::/0")]);
        let narrow = "['10.0.0.0/8', '9.0.0.0/8', 'fc00::/7', '2000::/3']";
        assert!(settings("internet", narrow).warnings.is_empty());
        assert!(settings("all", routes).warnings.is_empty());
    }

    #[test]
    fn ports_without_translation_are_of_no_use() {
        let folder = Folder::new();
        let text = "[network]\nnat = false\nnat_ports = '40000-50000'\n";
        let warnings = folder
            .server(&(text.to_owned() + &peer()))
            .unwrap()
            .warnings;
        let warnings: Vec<_> = warnings.iter().map(|it| folder.strip(it)).collect();
        assert_eq!(
            warnings,
            ["server.toml:3:13: network.nat_ports: unused while nat is off"]
        );
    }
}
