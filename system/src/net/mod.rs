//! What the daemons change on the system's network, and how it is put back.
//!
//! [`ServerNet`] and [`ClientNet`] own every change they make: addresses, routes, policy rules,
//! sysctls, firewall tables, DNS. They undo all of it on `restore` and on drop. Whatever would
//! outlive the process is first written to a record below [`Paths::state_dir`], which a lock binds
//! to the live process; the next start, or [`clean_up_after_crash`], undoes what a dead
//! predecessor left. All of it blocks, for as long as the kernel and the programs take.
//!
//! All of it needs `CAP_NET_ADMIN`; sysctls and `/etc/resolv.conf` also need root's rights on
//! files.
//! This module is Linux's; another system needs its own `ServerNet` and `ClientNet`.

pub use self::allowed::{Allowed, Sources};
pub use self::client::{ClientNet, check_firewall};
pub use self::error::{AssignmentError, NetError};
pub use self::guard::clean_up_after_crash;
pub use self::inspect::{
    DeviceState, ForeignFirewall, Leftover, WrittenResolver, device_state, foreign_firewalls,
    forwarding_parameter, has_nft, is_forwarding, leftovers, set_aside, tcp_listeners,
    written_resolver,
};
pub use self::link::transmit_dropped;
pub use self::mark::Mark;
pub use self::overlap::local_networks;
pub use self::passage::PassageFigures;
pub use self::patience::Patience;
pub use self::place::namespace_name;
pub use self::server::{ServerNet, missing_nat_interface};
pub use self::setup::{
    Access, ClientRoutes, ClientSetup, Masquerade, NameServers, Paths, PortRange, Scope,
    ServerSetup, Source,
};
pub use self::surroundings::{Named, Surroundings};
pub use self::verify::{RepairKind, Verification};
pub use self::watch::{NetworkKind, NetworkKinds, NetworkWatch};
pub use self::way::{Way, WayFinder};

mod allowed;
mod change;
mod client;
mod command;
mod dns;
mod elsewhere;
mod error;
mod firewall;
mod foreign;
mod found;
mod guard;
mod inspect;
mod journal;
mod leftovers;
mod link;
mod mark;
mod netlink;
mod nfnetlink;
mod nft;
mod nowhere;
mod obstacle;
mod overlap;
mod passage;
mod patience;
mod place;
mod plan;
mod policy;
mod ports;
mod record;
mod reliance;
mod resolv_conf;
mod server;
mod setup;
mod surroundings;
mod sysctl;
mod sysctl_files;
mod verify;
mod virtual_links;
mod watch;
mod way;

#[cfg(test)]
pub(crate) mod namespace;
