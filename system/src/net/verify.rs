//! Whether what was made is still there, and putting back what is not.
//!
//! The record says what was made. That is no proof: whoever may change the network may also take away
//! what we have made, and much of it goes with a link that is down for a moment.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use rustix::io::Errno;

use super::change::Change;
use super::error::NetError;
use super::guard::Guard;
use super::mark::Mark;
use super::netlink::{Route, RouteTarget, Rule, TABLE_MAIN};
use super::passage::PassageFigures;
use super::{link, sysctl};
use crate::cpu::cpu_time;

/// Looks at most, each after what the one before has found is put back: more may be missing once the
/// device is up again.
const LOOKS: usize = 5;
/// Things that one log line names.
const NAMED: usize = 5;
/// Times that a list is asked for that changes while it is made.
const ATTEMPTS: usize = 3;

/// A kind of things that can be missing and be put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepairKind {
    /// An address of the device, or the route to its network that comes with it.
    Address,
    /// A route.
    Route,
    /// A policy rule.
    Rule,
    /// A firewall table.
    Firewall,
    /// A kernel parameter.
    Sysctl,
    /// The device's name, MTU, or its being up.
    Device,
    /// The name servers.
    Resolver,
    /// The record of what was made.
    Record,
}

impl RepairKind {
    /// All of them, in the order of [`Self::LABELS`].
    pub const ALL: [Self; 8] = [
        Self::Address,
        Self::Route,
        Self::Rule,
        Self::Firewall,
        Self::Sysctl,
        Self::Device,
        Self::Resolver,
        Self::Record,
    ];

    /// Their names, for figures and log lines.
    pub const LABELS: [&'static str; 8] = [
        "address", "route", "rule", "firewall", "sysctl", "device", "resolver", "record",
    ];
}

/// What a look at the system has come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    /// How many things were missing and have been put back, in the order of [`RepairKind::LABELS`].
    pub repairs: [u64; 8],
    /// What is missing and cannot be put back, or cannot be looked at; none if all is as it should be.
    pub problem: Option<String>,
    /// The name servers that were asked before the tunnel's were set, and are past it; none where none of the
    /// tunnel's are set.
    pub name_servers: Vec<SocketAddr>,
    /// What other firewalls have kept from passing; none where nobody can tell.
    pub passage: Option<PassageFigures>,
    /// From the beginning to the end, with what was put back and waited for, but without listing the
    /// rules of others, which is done rarely enough by itself.
    pub length: Duration,
    /// CPU time that looking alone has taken, also of programs.
    pub looking: Duration,
    /// What a client's next connections are marked with; none for the same as before.
    pub mark: Option<Mark>,
}

impl Verification {
    /// Whether everything was as it should be.
    #[cfg(test)]
    pub(super) fn is_clean(&self) -> bool {
        self.problem.is_none() && !self.has_repairs()
    }

    /// Whether anything was put back.
    pub fn has_repairs(&self) -> bool {
        self.repairs.iter().any(|count| *count > 0)
    }

    /// Whether something of this kind was put back.
    pub const fn has_repaired(&self, kind: RepairKind) -> bool {
        self.repairs[kind as usize] > 0
    }

    /// Counts what was put back, with a line for the operator.
    pub(super) fn note(&mut self, kind: RepairKind, what: &[String]) {
        if what.is_empty() {
            return;
        }
        self.repairs[kind as usize] += what.len() as u64;
        let mut missing = what[..what.len().min(NAMED)].join(", ");
        if what.len() > NAMED {
            missing += &format!(", and {} more", what.len() - NAMED);
        }
        let what = RepairKind::LABELS[kind as usize];
        tracing::warn!(what, missing, "put back what somebody else has taken away");
    }

    /// Adds something that cannot be put back.
    pub(super) fn complain(&mut self, problem: &impl ToString) {
        let problem = problem.to_string();
        match &mut self.problem {
            Some(problems) => *problems += &format!("; {problem}"),
            None => self.problem = Some(problem),
        }
    }
}

/// Something that is not as it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Loss {
    /// The device has this name instead.
    Name(String),
    /// The device is down.
    Down,
    /// The device has this MTU instead.
    Mtu(u32),
    /// A kernel parameter has this value instead.
    Parameter {
        key: String,
        wanted: String,
        found: String,
    },
    /// A change is not in force.
    Change(Change),
}

impl Loss {
    const fn kind(&self) -> RepairKind {
        match self {
            Self::Name(_) | Self::Down | Self::Mtu(_) => RepairKind::Device,
            Self::Parameter { .. } | Self::Change(Change::Sysctl { .. }) => RepairKind::Sysctl,
            Self::Change(Change::Address { .. }) => RepairKind::Address,
            Self::Change(Change::Route(_)) => RepairKind::Route,
            Self::Change(Change::Rule(_)) => RepairKind::Rule,
            Self::Change(Change::Nft { .. } | Change::NftArp { .. }) => RepairKind::Firewall,
            Self::Change(Change::Dns(_)) => RepairKind::Resolver,
        }
    }

    fn describe(&self, tun: &str) -> String {
        match self {
            Self::Name(found) => format!("name {tun} (the device was {found})"),
            Self::Down => format!("{tun} up (it was down)"),
            Self::Mtu(found) => format!("MTU of {tun} (it was {found})"),
            Self::Parameter { key, wanted, found } => {
                let key = key.replace('/', ".");
                format!("{key}={wanted} (it was {found})")
            }
            Self::Change(change) => change.describe(),
        }
    }
}

/// What there is of a kind that a [`Change`] can be of.
#[derive(Debug, Default)]
struct Found {
    addresses: Vec<(u32, IpNet)>,
    routes: BTreeSet<Route>,
    rules: BTreeSet<Rule>,
}

/// The addresses, routes and rules of `made` that are not `found`, in their order.
fn missing<'a>(made: impl Iterator<Item = &'a Change>, found: &Found) -> Vec<Change> {
    let is_missing = |change: &&Change| match change {
        Change::Address { index, address } => {
            let has_address = found.addresses.contains(&(*index, *address));
            !has_address
                || connected(*index, *address).is_some_and(|it| !found.routes.contains(&it))
        }
        Change::Route(route) => {
            let destination = route.destination.trunc();
            !found.routes.contains(&Route {
                destination,
                ..*route
            })
        }
        // Equal rules of other instances do as well: whose they are does not matter to packets.
        Change::Rule(rule) => !found.rules.contains(rule),
        Change::Sysctl { .. } | Change::Nft { .. } | Change::NftArp { .. } | Change::Dns(_) => {
            false
        }
    };
    made.filter(is_missing).cloned().collect()
}

/// The metric of an IPv6 route that comes with an address (`IP6_RT_PRIO_ADDRCONF`).
const CONNECTED_METRIC_V6: u32 = 256;

/// The route that comes with an address, into its network; none where it has no network.
fn connected(index: u32, address: IpNet) -> Option<Route> {
    (address.prefix_len() < address.max_prefix_len()).then(|| Route {
        destination: address.trunc(),
        target: RouteTarget::Interface(index),
        table: TABLE_MAIN,
        metric: match address {
            IpNet::V4(_) => 0,
            IpNet::V6(_) => CONNECTED_METRIC_V6,
        },
    })
}

impl Guard {
    /// Looks whether everything is as it was made, puts back what is not, and says so in the log.
    ///
    /// # Errors
    ///
    /// [`NetError::NoInterface`] when the device is gone; nothing can be put back then.
    pub(super) fn verify(&mut self) -> Result<Verification, NetError> {
        let mut verification = Verification::default();
        match self.follow_loopback() {
            Ok(lost) => verification.note(RepairKind::Route, &lost),
            // What it is about is looked at below.
            Err(error) => tracing::debug!(%error, "the guard's routes stay as they are"),
        }
        let mut problems = Vec::new();
        for look in 1..=LOOKS {
            let lost;
            let before = cpu_time();
            (lost, problems) = self.look()?;
            verification.looking += cpu_time().saturating_sub(before);
            if look == LOOKS {
                let lost = lost.iter().map(|loss| loss.describe(self.tun()));
                problems.extend(lost.map(|loss| format!("{loss} is taken away again at once")));
                break;
            }
            if !self.put_back(&lost, &mut verification, &mut problems) {
                break;
            }
        }
        for problem in &problems {
            verification.complain(problem);
        }
        let before = cpu_time();
        self.install_overdue();
        verification.looking += cpu_time().saturating_sub(before);
        self.verify_record(&mut verification);
        Ok(verification)
    }

    /// What is not as it was made, and what cannot be looked at: that keeps nothing else from being put
    /// back. A device comes before all that depends on it.
    fn look(&mut self) -> Result<(Vec<Loss>, Vec<String>), NetError> {
        let mut problems = Vec::new();
        match self.look_at_device() {
            Ok(device) if device.is_empty() => {}
            Ok(device) => return Ok((device, problems)),
            Err(error @ NetError::NoInterface(_)) => return Err(error),
            Err(error) => problems.push(error.to_string()),
        }
        let mut lost = match self.find() {
            Ok(found) => missing(self.changes(), &found),
            Err(source) => {
                let action = "listing addresses, routes and rules".to_owned();
                problems.push(NetError::Netlink { action, source }.to_string());
                Vec::new()
            }
        };
        match self.lost_tables() {
            Ok(tables) => lost.extend(tables),
            Err(error) => problems.push(error.to_string()),
        }
        let lost = lost.into_iter().map(Loss::Change);
        Ok((lost.chain(self.lost_parameters()).collect(), problems))
    }

    /// Makes the record again where it has been taken away: who starts next would not know of us.
    fn verify_record(&mut self, verification: &mut Verification) {
        if self.journal.is_in_place() {
            return;
        }
        match self.journal.put_back() {
            Ok(()) => {
                let path = self.journal.path().display().to_string();
                verification.note(RepairKind::Record, &[path]);
            }
            Err(error) => verification.complain(&error),
        }
    }

    fn look_at_device(&mut self) -> Result<Vec<Loss>, NetError> {
        let Some((index, setup)) = self.device else {
            return Ok(Vec::new());
        };
        let found =
            self.netlink
                .link(index)
                .map_err(|source| match Errno::from_io_error(&source) {
                    Some(Errno::NODEV) => NetError::NoInterface(self.tun().to_owned()),
                    _ => NetError::Netlink {
                        action: format!("looking at {}", self.tun()),
                        source,
                    },
                })?;
        let mut lost = Vec::new();
        if found.name != self.tun() {
            lost.push(Loss::Name(found.name));
        } else if found.mtu != setup.mtu {
            lost.push(Loss::Mtu(found.mtu));
        } else if !found.is_up {
            lost.push(Loss::Down);
        }
        Ok(lost)
    }

    /// What there is, as far as something of the kind was made.
    fn find(&mut self) -> io::Result<Found> {
        let (mut tables, mut addresses, mut rules) = (BTreeSet::new(), false, false);
        for change in self.changes() {
            match change {
                Change::Address { index, address } => {
                    addresses = true;
                    let route = connected(*index, *address);
                    tables.extend(route.map(|route| (route.table, Some(*index))));
                }
                Change::Route(route) => {
                    let interface = match route.target {
                        // Others have their routes there, too.
                        RouteTarget::Interface(index) if route.table == TABLE_MAIN => Some(index),
                        _ => None,
                    };
                    tables.insert((route.table, interface));
                }
                Change::Rule(_) => rules = true,
                _ => {}
            }
        }
        let mut found = Found::default();
        if addresses {
            found.addresses = patiently(|| self.netlink.addresses())?;
        }
        for (table, interface) in tables {
            let routes = patiently(|| self.netlink.routes(table, interface))?;
            found.routes.extend(routes);
        }
        if rules {
            found.rules.extend(patiently(|| self.netlink.rules())?);
        }
        Ok(found)
    }

    fn lost_parameters(&self) -> Vec<Loss> {
        let lost = self.parameters.iter().filter_map(|(key, wanted)| {
            // A parameter of an interface goes with it.
            let found = sysctl::read(&self.paths, key).ok()?;
            (!sysctl::is_in_force(key, &found, wanted)).then(|| Loss::Parameter {
                key: key.clone(),
                wanted: wanted.clone(),
                found,
            })
        });
        lost.collect()
    }

    /// Puts back what it can, and says whether that was anything.
    fn put_back(
        &mut self,
        lost: &[Loss],
        verification: &mut Verification,
        problems: &mut Vec<String>,
    ) -> bool {
        let mut repaired = [const { Vec::new() }; 8];
        for loss in lost {
            match self.put_one_back(loss) {
                Ok(()) => repaired[loss.kind() as usize].push(loss.describe(self.tun())),
                Err(error) => problems.push(error.to_string()),
            }
        }
        let is_progress = repaired.iter().any(|what| !what.is_empty());
        for (kind, what) in RepairKind::ALL.into_iter().zip(&repaired) {
            verification.note(kind, what);
        }
        is_progress
    }

    fn put_one_back(&mut self, loss: &Loss) -> Result<(), NetError> {
        match loss {
            Loss::Name(_) => self.put_name_back(),
            Loss::Down | Loss::Mtu(_) => match self.device {
                Some((index, setup)) => link::set_up(self, index, &setup),
                None => Ok(()),
            },
            Loss::Parameter { key, wanted, .. } => self.put_parameter_back(key, wanted),
            Loss::Change(change) => self.put_change_back(change),
        }
    }

    fn put_name_back(&mut self) -> Result<(), NetError> {
        let Some((index, _)) = self.device else {
            return Ok(());
        };
        let name = self.tun().to_owned();
        let renamed = self.netlink.rename_link(index, &name);
        renamed.map_err(|source| NetError::Netlink {
            action: format!("giving the tunnel's device its name {name} back"),
            source,
        })
    }

    fn put_parameter_back(&mut self, key: &str, wanted: &str) -> Result<(), NetError> {
        let is_ours =
            |change: &Change| matches!(change, Change::Sysctl { key: set, .. } if set == key);
        if self.changes().any(is_ours) {
            return sysctl::write(&self.paths, key, wanted);
        }
        // It was so when we came.
        self.set_sysctl(key, wanted)
    }

    fn put_change_back(&mut self, change: &Change) -> Result<(), NetError> {
        match change {
            Change::Address { index, address } => self.put_address_back(*index, *address),
            Change::Nft { .. } | Change::NftArp { .. } => self.put_table_back(change),
            _ => change.perform(&mut self.netlink, &self.paths),
        }
    }

    /// Also where only the route to its network is missing: it comes with a new address alone.
    fn put_address_back(&mut self, index: u32, address: IpNet) -> Result<(), NetError> {
        // As a rule it is not there.
        let _ = self.netlink.remove_address(index, address);
        let mut added = self.netlink.add_address(index, address);
        if address.addr().is_ipv6()
            && matches!(&added, Err(error) if error.kind() == io::ErrorKind::PermissionDenied)
        {
            let key = sysctl::disable_ipv6_key(self.tun());
            sysctl::write(&self.paths, &key, "0")?;
            added = self.netlink.add_address(index, address);
        }
        added.map_err(|source| NetError::Netlink {
            action: format!("adding address {address}"),
            source,
        })
    }
}

/// Asks for a list again that changed while it was made.
pub(super) fn patiently<T>(mut list: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 1..ATTEMPTS {
        match list() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
    list()
}

#[cfg(test)]
mod tests;
