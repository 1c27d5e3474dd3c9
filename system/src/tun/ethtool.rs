//! Features of a network device that only `ethtool`'s ioctl switches.

#![expect(unsafe_code, reason = "an ioctl that no safe crate has")]

use std::ffi::c_char;
use std::io;
use std::os::fd::AsRawFd as _;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_SFEATURES: u32 = 0x3b;
/// The set of strings that names features, in the order of their bits.
const ETH_SS_FEATURES: u32 = 4;
const ETH_GSTRING_LEN: usize = 32;
/// Linux has fewer than 100.
const MAX_FEATURES: u32 = 4096;

/// Switches a feature on, by the name that `ethtool -k` shows.
pub(super) fn switch_on(device: &str, feature: &str) -> io::Result<()> {
    let count = count(device)?;
    let index = find(device, count, feature)?;
    let blocks = count.div_ceil(32);
    let mut request = vec![ETHTOOL_SFEATURES, blocks];
    for block in 0..blocks {
        let bit = if block == index / 32 {
            1 << (index % 32)
        } else {
            0
        };
        // What is meant, and what it is to be.
        request.extend([bit, bit]);
    }
    call(device, &mut request)
}

/// How many features the kernel knows.
fn count(device: &str) -> io::Result<u32> {
    let [low, high] = split(1 << ETH_SS_FEATURES);
    let mut request = [ETHTOOL_GSSET_INFO, 0, low, high, 0];
    call(device, &mut request)?;
    let [_, _, _, _, count] = request;
    if count == 0 || count > MAX_FEATURES {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(count)
}

/// The number of a feature.
fn find(device: &str, count: u32, feature: &str) -> io::Result<u32> {
    let mut request = vec![ETHTOOL_GSTRINGS, ETH_SS_FEATURES, count];
    let head = request.len();
    let words = count as usize * ETH_GSTRING_LEN / size_of::<u32>();
    request.resize(head + words, 0);
    call(device, &mut request)?;
    let names: Vec<u8> = request
        .iter()
        .skip(head)
        .flat_map(|word| word.to_ne_bytes())
        .collect();
    let is_wanted = |name: &[u8]| {
        let name = name.split(|byte| *byte == 0).next();
        name == Some(feature.as_bytes())
    };
    let index = names.chunks(ETH_GSTRING_LEN).position(is_wanted);
    let index = index.and_then(|index| u32::try_from(index).ok());
    index.ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// A number of 64 bits as it lies in memory.
fn split(number: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = number.to_ne_bytes();
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
    ]
}

/// Hands a request to the kernel, which answers in its place. The request is as long as its head
/// says: the kernel writes no further.
fn call(device: &str, request: &mut [u32]) -> io::Result<()> {
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let mut name = [0; libc::IFNAMSIZ];
    // The name is shorter, so that a zero ends it.
    for (to, byte) in name.iter_mut().zip(device.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = c_char::from_ne_bytes([byte]);
    }
    let data = request.as_mut_ptr().cast();
    let mut request = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: data },
    };
    // SAFETY: the kernel reads the `ifreq`, and reads and writes what it points to, whose size each
    // caller has put into it as the kernel counts it.
    let result =
        unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::net::namespace::{self, Namespace, checksum};
    use crate::tun::{Offloads, Tun, TunConfig};

    const COUNT: usize = 10;
    const LENGTH: usize = 1000;

    /// Some systems send every segment with 0 there and "don't fragment" (RFC 6864, section 4.1).
    #[test]
    fn super_packets_with_a_constant_identification_stay_whole() {
        namespace::run(|ns| {
            let (mut sender, out) = devices(ns);
            // A machine that is busy elsewhere may let the time to join segments pass.
            let mut tries = (0..5).map(|_| {
                let counting = forwarded(&mut sender, &out, |number| number);
                let constant = forwarded(&mut sender, &out, |_| 0);
                (counting, constant)
            });
            let whole = vec![COUNT * LENGTH];
            let expected = (whole.clone(), whole);
            let mut found = Vec::new();
            let is_whole = tries.any(|sizes| {
                found.push(sizes);
                found.last() == Some(&expected)
            });
            assert!(is_whole, "{found:?}");
        });
    }

    #[test]
    fn an_unknown_feature_or_device_is_an_error() {
        namespace::run(|_| {
            let error = switch_on("lo", "no-such-feature").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::Unsupported);
            switch_on("none0", "tx-tcp-mangleid-segmentation").unwrap_err();
            switch_on("a-name-that-is-too-long", "x").unwrap_err();
        });
    }

    /// A device whose packets the kernel joins, and one that they are forwarded to.
    fn devices(ns: &Namespace) -> (tun::Device, Tun) {
        let mut configuration = tun::Configuration::default();
        configuration.tun_name("in0").platform_config(|platform| {
            platform.napi(true).ensure_root_privileges(false);
        });
        let sender = tun::create(&configuration).unwrap();
        let out = Tun::open(&TunConfig {
            name: "out0",
            offload: Offloads::ALL,
        });
        ns.shell(
            "ip addr add 10.0.0.1/24 dev in0; ip link set in0 up; \
             ip addr add 10.1.0.1/24 dev out0; ip link set out0 up; \
             echo 1 > /proc/sys/net/ipv4/ip_forward; mount -t sysfs sysfs /sys; \
             echo 50000000 > /sys/class/net/in0/gro_flush_timeout",
        );
        (sender, out.unwrap())
    }

    /// Bytes of TCP payload in each packet that ten segments are forwarded as.
    fn forwarded(
        sender: &mut tun::Device,
        out: &Tun,
        identification: impl Fn(u16) -> u16,
    ) -> Vec<usize> {
        for number in 0..COUNT as u16 {
            let segment = segment(identification(number), number);
            sender.write_all(&segment).unwrap();
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut sizes = Vec::new();
        let mut packet = vec![0; 65_536];
        while sizes.iter().sum::<usize>() < COUNT * LENGTH && Instant::now() < deadline {
            match out.recv(&mut packet) {
                Ok(received) if packet[0] >> 4 == 4 && packet[9] == 6 => {
                    sizes.push(received.len - 40);
                }
                Ok(_) => {}
                Err(_) => std::thread::yield_now(),
            }
        }
        sizes
    }

    /// One of a flow of TCP segments from 10.0.0.2 to 10.1.0.2, all with "don't fragment".
    fn segment(identification: u16, number: u16) -> Vec<u8> {
        let len = (40 + LENGTH) as u16;
        let mut ip = [
            &[0x45, 0][..],
            &len.to_be_bytes(),
            &identification.to_be_bytes(),
        ]
        .concat();
        ip.extend([0x40, 0, 64, 6, 0, 0, 10, 0, 0, 2, 10, 1, 0, 2]);
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum);
        let sequence = 1 + u32::from(number) * LENGTH as u32;
        let mut tcp = vec![0x9c, 0x40, 1, 0xbb];
        tcp.extend(sequence.to_be_bytes());
        tcp.extend([0, 0, 0, 1, 0x50, 0x10, 3, 0xe8, 0, 0, 0, 0]);
        tcp.resize(20 + LENGTH, 0);
        let tcp_len = (tcp.len() as u16).to_be_bytes();
        let sum = checksum(&[&ip[12..20], &[0, 6], &tcp_len, &tcp].concat());
        tcp[16..18].copy_from_slice(&sum);
        [ip, tcp].concat()
    }
}
