//! What the system is asked for, in plain values: whoever asks fills them in.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use lostlove_core::config::Push;

use super::patience::Patience;

/// Where kernel parameters are configured.
const SYSCTL_FILES: [&str; 5] = [
    "/etc/sysctl.d",
    "/run/sysctl.d",
    "/usr/local/lib/sysctl.d",
    "/usr/lib/sysctl.d",
    "/etc/sysctl.conf",
];

/// Files, directories and programs outside the kernel that are read, changed or run.
#[derive(Clone, Debug)]
pub struct Paths {
    /// Where the record of changes lives, lost at boot like the changes: `/run/lostlove`. With
    /// systemd's `RuntimeDirectory=` it must outlive a crash (`RuntimeDirectoryPreserve=yes`).
    pub state_dir: PathBuf,
    /// `/proc/sys`.
    pub proc_sys: PathBuf,
    /// The folders of `sysctl.d(5)`, those that win first, and `/etc/sysctl.conf`.
    pub sysctl_files: Vec<PathBuf>,
    /// `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
    /// The directory that exists while systemd-resolved runs: `/run/systemd/resolve`.
    pub systemd_resolved: PathBuf,
    /// The `resolvectl` program; a bare name is searched for, here and below.
    pub resolvectl: PathBuf,
    /// The `resolvconf` program.
    pub resolvconf: PathBuf,
    /// The `nft` program.
    pub nft: PathBuf,
    /// The `iptables-legacy` program, which is asked only where it has been used.
    pub iptables_legacy: PathBuf,
    /// The `ip6tables-legacy` program, likewise.
    pub ip6tables_legacy: PathBuf,
    /// How long programs are waited for.
    pub patience: Patience,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            state_dir: "/run/lostlove".into(),
            proc_sys: "/proc/sys".into(),
            sysctl_files: SYSCTL_FILES.map(PathBuf::from).into(),
            resolv_conf: "/etc/resolv.conf".into(),
            systemd_resolved: "/run/systemd/resolve".into(),
            resolvectl: "resolvectl".into(),
            resolvconf: "resolvconf".into(),
            nft: "nft".into(),
            iptables_legacy: "iptables-legacy".into(),
            ip6tables_legacy: "ip6tables-legacy".into(),
            patience: Patience::default(),
        }
    }
}

/// What a server needs of the system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerSetup<'a> {
    /// The open TUN device.
    pub tun: &'a str,
    /// Its MTU in bytes.
    pub mtu: u16,
    /// Length of its transmit queue, in packets (or super-packets, with offload).
    pub txqueuelen: u32,
    /// Its addresses, with the prefix lengths of the tunnel's networks.
    pub addresses: &'a [IpNet],
    /// Networks behind clients, besides those of `addresses`.
    pub routes: &'a [IpNet],
    /// Whether to forward between the tunnel and other interfaces, for each family in `addresses`.
    pub forwarding: bool,
    /// Which clients appear outside with the server's address; none for no NAT.
    pub masquerade: Option<Masquerade>,
    /// What hosts outside may open connections to of `addresses`' networks and `routes`; none for
    /// nothing where clients of that version of IP are masqueraded, and all elsewhere.
    pub inbound: Option<&'a [IpNet]>,
    /// What clients may open connections to.
    pub access: &'a Access,
}

/// Network address translation for clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masquerade {
    /// The clients' networks that are translated, at most one of each version of IP.
    pub sources: Vec<Source>,
    /// The ports that clients appear with, as far as nothing on this host listens there at the start.
    pub ports: PortRange,
    /// So many in a row make a part of `ports` that will do. Where listeners leave none of that
    /// size, clients get them all, with a warning.
    pub min_ports: u32,
}

/// Whose packets are translated, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The clients' network.
    pub network: IpNet,
    /// The interface that packets must leave through; none for every one but the tunnel.
    pub interface: Option<String>,
}

/// TCP or UDP ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

impl PortRange {
    /// How many ports these are.
    pub(super) fn count(self) -> u32 {
        (u32::from(self.last) + 1).saturating_sub(self.first.into())
    }

    /// Whether the port is one of these.
    pub(super) const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// What clients may open connections to, through the server and on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// How far they get.
    pub scope: Scope,
    /// What they never reach.
    pub deny: Vec<IpNet>,
    /// The name servers that they may ask whatever the rest says.
    pub dns: Vec<IpAddr>,
}

/// How far clients get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// To all that the server reaches, itself included.
    All,
    /// To public addresses and to these private networks, but not to the server's own addresses.
    Internet {
        /// The private networks.
        private: Vec<IpNet>,
    },
}

/// What a server assigns to a client, and what the client's profile allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientSetup<'a> {
    /// Where the tunnel's own connection goes, if that is known.
    pub server: Option<IpAddr>,
    /// The device's MTU in bytes.
    pub mtu: u16,
    /// Length of its transmit queue, in packets (or super-packets, with offload).
    pub txqueuelen: u32,
    /// The client's addresses, with the prefix lengths of the tunnel's networks.
    pub addresses: &'a [IpNet],
    /// What the server recommends.
    pub push: &'a Push,
    /// What the profile sends into the tunnel.
    pub routes: &'a ClientRoutes,
    /// Which name servers the profile wants, always reached through the tunnel.
    pub dns: &'a NameServers,
    /// Whether connections may come in from the tunnel, not only answers.
    pub inbound: bool,
    /// Whether connections that come in by another interface are answered by it.
    pub direct_replies: bool,
}

/// What a client's profile sends into the tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientRoutes {
    /// Everything.
    Full,
    /// The tunnel's network and what the server pushes.
    Server,
    /// These networks, if any, and the server's address in the tunnel.
    List(Vec<IpNet>),
}

/// Which name servers a client's profile wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameServers {
    /// Those the server pushes, if any.
    Server,
    /// These; none to leave the system's as they are.
    List(Vec<IpAddr>),
}
