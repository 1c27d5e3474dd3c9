//! Where a client finds its server.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::settings::DEFAULT_PORT;

/// A server to connect to: `vpn.example.org:8443`, `192.0.2.1:8443`, `[2001:db8::1]:8443`, or with
/// the interface of a link-local address (RFC 4007, section 11) `[fe80::1%eth0]:8443`. The port may
/// be missing and is then [`DEFAULT_PORT`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServerAddress {
    /// Host name or IP address, without brackets. An international name is in the form that is
    /// looked up (`xn--...`, RFC 5891).
    pub host: String,
    /// TCP port, never 0.
    pub port: u16,
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// A text that names no server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a server as \"host:port\", with a name or address that clients can connect to")]
pub struct InvalidServerAddress;

impl FromStr for ServerAddress {
    type Err = InvalidServerAddress;

    fn from_str(text: &str) -> Result<Self, InvalidServerAddress> {
        let (host, port) = if let Some(address) = v6_address(text) {
            (address, None)
        } else if let Some(rest) = text.strip_prefix('[') {
            let (host, rest) = rest.split_once(']').ok_or(InvalidServerAddress)?;
            let address = v6_address(host).ok_or(InvalidServerAddress)?;
            let port = match rest {
                "" => None,
                rest => Some(rest.strip_prefix(':').ok_or(InvalidServerAddress)?),
            };
            (address, port)
        } else {
            let (host, port) = match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            };
            (ascii_name(host).ok_or(InvalidServerAddress)?, port)
        };
        let port = match port {
            Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
                port.parse().map_err(|_| InvalidServerAddress)?
            }
            Some(_) => return Err(InvalidServerAddress),
            None => DEFAULT_PORT,
        };
        let is_host = host.contains(':') || is_host_name(&host);
        if port == 0 || !is_host || is_nobodys(&host) {
            return Err(InvalidServerAddress);
        }
        Ok(Self { host, port })
    }
}

/// Whether it is an address at which no host can be reached. A server listens on 0.0.0.0 and on ::,
/// and nobody connects there.
fn is_nobodys(host: &str) -> bool {
    host.parse().is_ok_and(|address: IpAddr| {
        address.is_unspecified() || address.is_multicast() || address == Ipv4Addr::BROADCAST
    })
}

/// An IPv6 address in its usual form, with the interface that a link-local one may name.
fn v6_address(text: &str) -> Option<String> {
    /// Of an interface's name on Linux, in bytes.
    const MAX_ZONE_LEN: usize = 15;
    let Some((address, zone)) = text.split_once('%') else {
        return text.parse::<Ipv6Addr>().ok().map(|ip| ip.to_string());
    };
    let address: Ipv6Addr = address.parse().ok()?;
    // As of network.tun_name: what else a kernel takes has no place in commands that a person is told to
    // run, and such an interface has a number.
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let is_zone = (1..=MAX_ZONE_LEN).contains(&zone.len())
        && zone.chars().all(is_name)
        && !matches!(zone, "." | "..");
    (address.is_unicast_link_local() && is_zone).then(|| format!("{address}%{zone}"))
}

/// A name as it is looked up: an international one as UTS 46 says, another one as it is.
fn ascii_name(name: &str) -> Option<String> {
    if name.is_ascii() {
        return Some(name.to_owned());
    }
    let ascii = idna::domain_to_ascii_cow(name.as_bytes(), idna::AsciiDenyList::STD3);
    ascii.ok().map(std::borrow::Cow::into_owned)
}

/// Host names and IPv4 addresses; what consists of digits alone must be the latter.
fn is_host_name(name: &str) -> bool {
    let label = |label: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        (1..=63).contains(&label.len()) && label.bytes().all(plain) && !label.starts_with('-')
    };
    let digits = |byte: u8| byte.is_ascii_digit() || byte == b'.';
    if name.bytes().all(digits) {
        return name.parse::<Ipv4Addr>().is_ok();
    }
    name.len() <= 253 && name.strip_suffix('.').unwrap_or(name).split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_print_as_they_parse() {
        for (text, printed) in [
            ("vpn.example.org:443", "vpn.example.org:443"),
            ("vpn.example.org", "vpn.example.org:8443"),
            ("192.0.2.1:1", "192.0.2.1:1"),
            ("192.0.2.1", "192.0.2.1:8443"),
            ("[2001:db8::1]:65535", "[2001:db8::1]:65535"),
            ("[2001:DB8::1]", "[2001:db8::1]:8443"),
            ("2001:db8::1", "[2001:db8::1]:8443"),
            ("localhost", "localhost:8443"),
            ("[fe80::1%eth0]:8444", "[fe80::1%eth0]:8444"),
            ("[FE80::1%wg-0.7]", "[fe80::1%wg-0.7]:8443"),
            ("fe80::1%2", "[fe80::1%2]:8443"),
            ("bücher.example:1", "xn--bcher-kva.example:1"),
            ("BÜCHER.example", "xn--bcher-kva.example:8443"),
            ("bu\u{308}cher.example", "xn--bcher-kva.example:8443"),
            ("пример.испытание", "xn--e1afmkfd.xn--80akhbyknj4f:8443"),
            ("例え。テスト:443", "xn--r8jz45g.xn--zckzah:443"),
            ("straße.example", "xn--strae-oqa.example:8443"),
            ("１９２.0.2.1", "192.0.2.1:8443"),
        ] {
            let endpoint: ServerAddress = text.parse().unwrap();
            assert_eq!(endpoint.to_string(), printed, "{text}");
            assert_eq!(printed.parse(), Ok(endpoint));
        }
    }

    #[test]
    fn what_names_no_server_is_refused() {
        for text in [
            "",
            ":8443",
            "host:",
            "host:0",
            "host:65536",
            "host:+1",
            "host:1:2",
            "a b:1",
            "a..b",
            "-a",
            "1.2.3:4",
            "0.0.0.0",
            "0.0.0.0:8443",
            "[::]:8443",
            "::",
            "224.0.0.1",
            "[ff02::1]:8443",
            "255.255.255.255",
            "300.1.1.1",
            "[::1",
            "[::1]x",
            "[1.2.3.4]:1",
            "https://host:1",
            "[fe80::1%]:1",
            "[fe80::1%eth0%1]:1",
            "[fe80::1%eth/0]:1",
            "[fe80::1%$(x)]:1",
            "[fe80::1%a;b]:1",
            "[fe80::1%..]:1",
            "[fe80::1%a23456789012345x]:1",
            "[2001:db8::1%eth0]:1",
            "fe80::1%eth0:8443x]",
            "192.0.2.1%eth0",
            "bü cher.example",
            "bü/cher.example",
            "bücher..example",
            "bücher\u{202e}.example",
            "host\u{ff1a}1",
            "\u{300}a.example",
        ] {
            assert_eq!(
                text.parse::<ServerAddress>(),
                Err(InvalidServerAddress),
                "{text}"
            );
        }
    }
}
