//! Ports that programs of this host listen on.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::setup::PortRange;

/// The kernel's tables, each with the state that a socket has there while it takes whatever comes:
/// TCP_LISTEN, and TCP_CLOSE for a datagram socket without a peer.
const TABLES: [(&str, &str); 6] = [
    ("tcp", "0A"),
    ("tcp6", "0A"),
    ("udp", "07"),
    ("udp6", "07"),
    ("udplite", "07"),
    ("udplite6", "07"),
];

/// Ports on which this network namespace takes what comes from outside at the moment. A table that the kernel
/// does not have is empty.
pub(super) fn listening() -> BTreeSet<u16> {
    of_tables(&TABLES)
}

/// The same of TCP alone.
pub(super) fn listening_tcp() -> BTreeSet<u16> {
    let is_tcp = |(table, _): &(&str, &str)| table.starts_with("tcp");
    of_tables(&TABLES.into_iter().filter(is_tcp).collect::<Vec<_>>())
}

/// Where programs accept TCP connections, also from this host alone.
pub(super) fn tcp_listeners() -> BTreeSet<SocketAddr> {
    let mut found = BTreeSet::new();
    for (table, state) in TABLES.iter().filter(|(table, _)| table.starts_with("tcp")) {
        found.extend(of_table(&text_of(table), state));
    }
    found
}

fn of_tables(tables: &[(&str, &str)]) -> BTreeSet<u16> {
    let mut ports = BTreeSet::new();
    for (table, state) in tables {
        let text = text_of(table);
        let is_outside = |socket: &SocketAddr| !socket.ip().is_loopback();
        let found = of_table(&text, state).filter(is_outside);
        ports.extend(found.map(|socket| socket.port()));
    }
    ports
}

fn text_of(table: &str) -> String {
    fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap_or_default()
}

/// The largest part of `range` without `taken` ports; of equal ones the first. None if there is
/// nothing left.
pub(super) fn largest_part(range: PortRange, taken: &BTreeSet<u16>) -> Option<PortRange> {
    let mut parts = Vec::new();
    let mut first = u32::from(range.first);
    for &port in taken.range(range.first..=range.last) {
        parts.push((first, u32::from(port)));
        first = u32::from(port) + 1;
    }
    parts.push((first, u32::from(range.last) + 1));
    let (first, end) = parts
        .into_iter()
        .rev()
        .max_by_key(|(first, end)| end - first)?;
    Some(PortRange {
        first: u16::try_from(first).ok()?,
        last: u16::try_from(end.checked_sub(1)?).ok()?,
    })
    .filter(|part| part.first <= part.last)
}

fn of_table<'a>(text: &'a str, state: &'a str) -> impl Iterator<Item = SocketAddr> + 'a {
    text.lines().filter_map(move |line| {
        let mut words = line.split_whitespace().skip(1);
        let (address, port) = words.next()?.split_once(':')?;
        let is_listening = words.nth(1)? == state;
        let port = u16::from_str_radix(port, 16).ok()?;
        let socket = SocketAddr::new(address_of(address)?, port);
        is_listening.then_some(socket)
    })
}

/// The kernel prints the words of an address as numbers of its own byte order.
fn address_of(text: &str) -> Option<IpAddr> {
    let words = (0..text.len()).step_by(8).map(|at| text.get(at..at + 8));
    let mut bytes = Vec::with_capacity(16);
    for word in words {
        bytes.extend(u32::from_str_radix(word?, 16).ok()?.to_ne_bytes());
    }
    match <[u8; 4]>::try_from(&bytes[..]) {
        Ok(v4) => Some(v4.into()),
        Err(_) => {
            let v6 = Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?);
            Some(v6.to_canonical())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;
    use crate::net::namespace;

    #[test]
    fn the_largest_part_without_a_taken_port_is_chosen() {
        let part = |first, last, taken: &[u16]| {
            let taken = taken.iter().copied().collect();
            let part = largest_part(PortRange { first, last }, &taken);
            part.map(|part| part.to_string()).unwrap_or_default()
        };
        assert_eq!(part(32768, 60999, &[22, 8443, 61000]), "32768-60999");
        assert_eq!(part(32768, 60999, &[51820]), "32768-51819");
        assert_eq!(part(32768, 60999, &[33000, 51820]), "33001-51819");
        assert_eq!(part(10, 15, &[10, 15]), "11-14");
        assert_eq!(part(10, 14, &[12]), "10-11");
        assert_eq!(part(65000, 65535, &[65000, 65535]), "65001-65534");
        assert_eq!(part(10, 11, &[10, 11]), "");
    }

    #[test]
    fn sockets_that_wait_for_strangers_are_found() {
        namespace::run(|_| {
            let tcp = TcpListener::bind("0.0.0.0:40001").unwrap();
            let tcp6 = TcpListener::bind("[::]:40002").unwrap();
            let udp = UdpSocket::bind("0.0.0.0:40003").unwrap();
            let udp6 = UdpSocket::bind("[::]:40004").unwrap();
            let _local = TcpListener::bind("127.0.0.1:40005").unwrap();
            let _local6 = UdpSocket::bind("[::1]:40006").unwrap();
            let connected = UdpSocket::bind("127.0.0.1:40007").unwrap();
            connected.connect("127.0.0.1:9").unwrap();

            assert_eq!(listening(), BTreeSet::from([40001, 40002, 40003, 40004]));
            drop((tcp, tcp6, udp, udp6));
            assert_eq!(listening(), BTreeSet::new());
        });
    }

    #[test]
    fn addresses_are_read_as_the_kernel_writes_them() {
        let hex = |address: &str| -> String {
            let address: IpAddr = address.parse().unwrap();
            let bytes = match address {
                IpAddr::V4(address) => address.octets().to_vec(),
                IpAddr::V6(address) => address.octets().to_vec(),
            };
            let words = bytes
                .chunks(4)
                .map(|word| format!("{:08X}", u32::from_ne_bytes(word.try_into().unwrap())));
            words.collect()
        };
        for address in ["127.0.0.1", "192.0.2.1", "::1", "2001:db8::1"] {
            assert_eq!(address_of(&hex(address)), address.parse().ok());
        }
        let mapped = hex("::ffff:127.0.0.1");
        assert!(address_of(&mapped).unwrap().is_loopback());
        assert_eq!(address_of("0100007"), None);
        assert_eq!(address_of("xyzxyzxy"), None);
    }
}
