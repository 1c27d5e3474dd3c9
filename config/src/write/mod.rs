//! Files for people in a hurry: a new server's, a new client's, and a peer's.

use std::fmt::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use lostlove_core::crypto::{PresharedKey, PublicKey, SecretKey};
use zeroize::Zeroizing;

use crate::reader::value::is_peer_name;
use crate::server::DEFAULT_KEY_FILE;
use crate::server_address::ServerAddress;
use crate::settings::{DEFAULT_PORT, Routes};
use crate::tunnel::ADDRESS_V4;

mod file;
mod outline;
mod peer;

pub use file::{AddedPeer, ServerFile};
pub use peer::{Assigned, NewPeer, PeerValue, line_of_peer, networks_of_peers, set_in_peer};

/// Room for a client's file: growing would leave copies of its secrets behind.
const CLIENT_CAPACITY: usize = 16 * 1024;

/// What a new server's file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewServer {
    /// TCP port.
    pub port: u16,
    /// The server's address in the tunnel, with the tunnel's network.
    pub tun_address: Ipv4Net,
    /// The same for IPv6, best from [`random_ula`]; none for a tunnel without IPv6.
    pub tun_address_v6: Option<Ipv6Net>,
    /// Name servers for clients. Those with IPv6 addresses are left out without IPv6.
    pub dns: Vec<IpAddr>,
}

impl Default for NewServer {
    fn default() -> Self {
        Self {
            port: DEFAULT_PORT,
            tun_address: ADDRESS_V4,
            tun_address_v6: None,
            // A client that sends everything through the tunnel cannot count on the name server
            // of the network it happens to be in. This one answers anybody and keeps no records.
            dns: vec![
                IpAddr::V4(Ipv4Addr::new(9, 9, 9, 9)),
                IpAddr::V6(Ipv6Addr::new(0x2620, 0xfe, 0, 0, 0, 0, 0, 0xfe)),
            ],
        }
    }
}

/// What a new client's file says.
#[derive(Clone, Debug)]
pub struct NewClient<'a> {
    /// The name that the server knows the client by.
    pub name: &'a str,
    /// Where the server is.
    pub server: &'a ServerAddress,
    /// The server's identity.
    pub server_public_key: PublicKey,
    /// The client's identity.
    pub private_key: &'a SecretKey,
    /// Optional second secret.
    pub preshared_key: Option<&'a PresharedKey>,
    /// What goes through the tunnel.
    pub routes: &'a Routes,
}

/// The first address of a unique local /64 (RFC 4193, section 3.2) whose global id is `random`.
pub fn random_ula(random: [u8; 5]) -> Ipv6Net {
    let [a, b, c, d, e] = random;
    let head = u64::from_be_bytes([0xfd, a, b, c, d, e, 0, 0]);
    let address = Ipv6Addr::from((u128::from(head) << 64) | 1);
    Ipv6Net::new_assert(address, 64)
}

/// A new server's file. Its secret key belongs in `server.key` beside it.
pub fn server_toml(new: &NewServer) -> String {
    let NewServer {
        port,
        tun_address,
        tun_address_v6,
        dns,
    } = new;
    let ipv6 = match tun_address_v6 {
        Some(address) => format!("tun_address_v6 = \"{address}\""),
        None => "enable_ipv6 = false".to_owned(),
    };
    let dns = dns
        .iter()
        .filter(|address| address.is_ipv4() || tun_address_v6.is_some());
    let dns = List(dns);
    format!(
        "\
# LostLove server. Only what is often changed stands here; examples/server.toml has every key.
# After a change: lostlove-server --config FILE --check-config

[server]
port = {port}

[network]
# The server's address in the tunnel, with the tunnel's network.
tun_address = \"{tun_address}\"
{ipv6}
# Name servers for clients.
dns = {dns}
# Networks here that clients may reach, such as [\"192.168.1.0/24\"].
push_routes = []
# Whether clients may reach each other.
client_to_client = false
# How far clients get: \"all\" is whatever this host reaches, itself included, \"internet\" is public
# addresses and what is named above.
client_access = \"all\"

[limits]
# Bytes per second for each client; 0 is no limit.
rate_limit_per_user = 0

[security]
# Keep a copy: with another key, no client finds this server again.
private_key_file = \"{DEFAULT_KEY_FILE}\"

[monitoring]
log_level = \"info\"

# Clients have a file each, peers.d/NAME.toml. `lostlove peer add NAME` makes one.
"
    )
}

/// A new client's file. It holds secrets and needs mode 0600.
pub fn client_toml(new: &NewClient<'_>) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(CLIENT_CAPACITY));
    text.push_str(
        "# LostLove client. This file holds secrets: mode 0600, and show it to nobody.\n",
    );
    if is_peer_name(new.name) {
        line(
            &mut text,
            format_args!("# The server knows it as {}.", new.name),
        );
    }
    text.push_str("\n[client]\n");
    line(&mut text, format_args!("server = \"{}\"", new.server));
    let server_key = new.server_public_key;
    line(
        &mut text,
        format_args!("server_public_key = \"{server_key}\""),
    );
    let private_key = new.private_key.to_base64();
    line(
        &mut text,
        format_args!("private_key = \"{}\"", *private_key),
    );
    if let Some(key) = new.preshared_key {
        line(
            &mut text,
            format_args!("preshared_key = \"{}\"", *key.to_base64()),
        );
    }
    text.push_str(
        "# What goes through the tunnel: \"full\" is everything, \"server\" what the server says;\n\
         # or a list of networks.\n",
    );
    match new.routes {
        Routes::Full => text.push_str("routes = \"full\"\n"),
        Routes::Server => text.push_str("routes = \"server\"\n"),
        Routes::None => text.push_str("routes = \"none\"\n"),
        Routes::List(routes) => line(&mut text, format_args!("routes = {}", List(routes.iter()))),
    }
    text.push_str(
        "# Name servers: \"server\" takes those the server names, \"none\" changes nothing.\n",
    );
    // Names of the networks that stay outside are known there alone.
    match new.routes {
        Routes::Full => text.push_str("dns = \"server\"\n"),
        Routes::Server | Routes::List(_) | Routes::None => text.push_str("dns = \"none\"\n"),
    }
    text.push_str(
        "# Uncomment it to let only answers in from the tunnel: then neither the server nor other\n\
         # clients can open a connection to this machine.\n\
         #inbound = false\n",
    );
    text
}

fn line(text: &mut String, content: fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "{content}");
}

/// Items as a TOML list of strings that need no escapes.
struct List<I>(I);

impl<I> fmt::Display for List<I>
where
    I: Iterator + Clone,
    I::Item: fmt::Display,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (index, item) in self.0.clone().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}\"{item}\"")?;
        }
        f.write_str("]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Dns;
    use crate::testing::{Folder, key};

    #[test]
    fn a_new_servers_file_loads_with_what_was_asked_for() {
        let folder = Folder::new();
        let new = NewServer {
            port: 443,
            tun_address: "10.9.0.1/16".parse().unwrap(),
            tun_address_v6: Some(random_ula([1, 2, 3, 4, 5])),
            ..NewServer::default()
        };
        let settings = folder.server(&server_toml(&new)).unwrap();
        assert_eq!(settings.warnings.len(), 1, "there are no peers yet");
        assert_eq!(settings.host.listen[0].port(), 443);
        let server = &settings.endpoint.server;
        assert_eq!(server.address_v4, new.tun_address);
        assert_eq!(
            server.address_v6,
            Some("fd01:203:405::1/64".parse().unwrap())
        );
        assert_eq!(server.push.dns, new.dns);

        let without_ipv6 = folder.server(&server_toml(&NewServer::default())).unwrap();
        let server = &without_ipv6.endpoint.server;
        assert_eq!(server.address_v6, None);
        assert_eq!(server.push.dns, new.dns[..1]);
    }

    #[test]
    fn a_new_clients_file_loads_with_what_was_asked_for() {
        let folder = Folder::new();
        let psk = PresharedKey::from_bytes([9; 32]);
        let list = Routes::List(vec![
            "10.0.0.0/8".parse().unwrap(),
            "fd00::/8".parse().unwrap(),
        ]);
        for routes in [Routes::Full, Routes::Server, Routes::None, list] {
            let text = client_toml(&NewClient {
                name: "laptop",
                server: &"[2001:db8::1]:443".parse().unwrap(),
                server_public_key: key(1).public_key(),
                private_key: &key(2),
                preshared_key: Some(&psk),
                routes: &routes,
            });
            assert!(text.capacity() == CLIENT_CAPACITY, "it was moved");
            let settings = folder.client(&text).unwrap();
            assert_eq!(settings.host.routes, routes);
            let takes_servers = matches!(routes, Routes::Full);
            assert_eq!(settings.host.dns == Dns::Server, takes_servers);
            // As users of other tunnels expect; the line that changes it is there.
            assert!(settings.host.inbound);
            let closed = text.replace("#inbound", "inbound");
            assert!(!folder.client(&closed).unwrap().host.inbound);
            assert_eq!(settings.host.server[0].to_string(), "[2001:db8::1]:443");
            let client = &settings.endpoint.client;
            assert_eq!(client.server_key, key(1).public_key());
            assert_eq!(client.secret_key.as_bytes(), key(2).as_bytes());
            let psk = client.preshared_key.as_ref().unwrap();
            assert_eq!(psk.as_bytes(), &[9; 32]);
        }
    }
}
