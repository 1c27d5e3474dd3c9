//! A client's system: set up as its server says, and back to what has carried packets where that cuts the
//! client off.

use std::net::IpAddr;

use ipnet::IpNet;
use lostlove_config::ClientHost;
use lostlove_core::config::Assignment;
use lostlove_system::net::{
    ClientNet, ClientRoutes, ClientSetup, NameServers, NetError, Paths, Sources, check_firewall,
};
use tracing::{info, warn};

use super::super::setups;
use super::QUEUE_LEN;
use crate::mailbox::NetworkReport;

/// What of a client's system is changed; undone on drop.
pub(super) struct ClientNetwork {
    pub(super) net: ClientNet,
    profile: Profile,
    /// What the system is set up for.
    current: Option<Current>,
    /// The last assignment that carried packets.
    proven: Option<Assignment>,
    /// What is routed into the tunnel.
    routes: Vec<IpNet>,
    /// The routes and the name servers that were reported last.
    told: (Vec<IpNet>, Vec<IpAddr>),
}

/// What the client's file says.
struct Profile {
    routes: ClientRoutes,
    dns: NameServers,
    inbound: bool,
    direct_replies: bool,
}

struct Current {
    assignment: Assignment,
    /// Packets handed to the TUN device when the session began.
    packets: u64,
}

impl ClientNetwork {
    /// Takes charge of a client's system.
    pub(super) fn new(host: &ClientHost, tun: &str, paths: &Paths) -> Result<Self, NetError> {
        check_firewall(host.inbound, paths)?;
        Ok(Self {
            net: ClientNet::new(tun, paths)?,
            profile: Profile {
                routes: setups::client_routes(&host.routes),
                dns: setups::name_servers(&host.dns),
                inbound: host.inbound,
                direct_replies: host.direct_replies,
            },
            current: None,
            proven: None,
            routes: Vec::new(),
            told: Default::default(),
        })
    }

    /// Whether it is set up for a session.
    pub(super) const fn is_in_use(&self) -> bool {
        self.current.is_some()
    }

    /// Makes the system as the server assigned, and tells where packets from the tunnel may come from
    /// as soon as they may. `packets` is how many were handed to the TUN device before.
    pub(super) fn configure(
        &mut self,
        assignment: Assignment,
        packets: u64,
        usable: impl FnOnce(Sources),
    ) -> Result<(), NetError> {
        // A session that came back is told anew; what it has carried so far counts.
        self.note_proof(packets);
        self.net.set_session(true);
        let routes = &mut self.routes;
        let usable = |sources: Sources| {
            routes.clone_from(&sources.inside);
            usable(sources);
        };
        let result = self.profile.apply(&mut self.net, &assignment, usable);
        match &result {
            Err(NetError::Refused(_)) => self.reconsider(),
            _ => {
                self.current = Some(Current {
                    assignment,
                    packets,
                });
            }
        }
        result
    }

    /// Reports what is in force, if that is not what was reported before.
    pub(super) fn tell_in_force(&mut self, report: &impl Fn(NetworkReport)) {
        let now = (self.routes.clone(), self.net.name_servers().to_vec());
        if self.told != now {
            self.told.clone_from(&now);
            let (routes, name_servers) = now;
            report(NetworkReport::InForce {
                routes,
                name_servers,
            });
        }
    }

    /// What was in order before may no longer be: the host may have moved to another network.
    fn reconsider(&mut self) {
        let current = self.current.as_ref();
        let is_refused = |current: &Current| {
            self.profile
                .check(&mut self.net, &current.assignment)
                .is_err()
        };
        if current.is_some_and(is_refused) {
            self.clear();
        }
    }

    /// A session is over. An assignment that has never carried a packet may be what cut the client
    /// off, so it does not outlive its session.
    pub(super) fn session_ended(&mut self, packets: u64) {
        self.note_proof(packets);
        self.net.set_session(false);
        let Some(current) = &self.current else { return };
        if self.proven.as_ref() != Some(&current.assignment) {
            info!("the assignment has carried no packet, and is taken back");
            self.roll_back(packets);
        }
    }

    /// Remembers the present assignment if it has carried a packet.
    fn note_proof(&mut self, packets: u64) {
        if let Some(current) = &self.current
            && packets > current.packets
        {
            self.proven = Some(current.assignment.clone());
        }
    }

    /// Goes back to what has carried packets, if anything has.
    fn roll_back(&mut self, packets: u64) {
        let Some(assignment) = self.proven.clone() else {
            return self.clear();
        };
        let routes = &mut self.routes;
        let usable = |sources: Sources| *routes = sources.inside;
        match self.profile.apply(&mut self.net, &assignment, usable) {
            Ok(()) => {
                self.current = Some(Current {
                    assignment,
                    packets,
                });
            }
            Err(error) => {
                warn!(%error, "cannot go back to the assignment before");
                self.clear();
            }
        }
    }

    fn clear(&mut self) {
        self.current = None;
        self.routes.clear();
        for error in self.net.clear() {
            warn!(%error, "cannot restore the system's network");
        }
    }
}

impl Profile {
    fn apply(
        &self,
        net: &mut ClientNet,
        assignment: &Assignment,
        usable: impl FnOnce(Sources),
    ) -> Result<(), NetError> {
        self.with_setup(assignment, |setup| net.apply_and_tell(setup, usable))
    }

    fn check(&self, net: &mut ClientNet, assignment: &Assignment) -> Result<(), NetError> {
        self.with_setup(assignment, |setup| net.check(setup))
    }

    fn with_setup<T>(&self, assignment: &Assignment, act: impl FnOnce(&ClientSetup<'_>) -> T) -> T {
        let v4 = assignment.address_v4.map(IpNet::V4).into_iter();
        let addresses: Vec<_> = v4.chain(assignment.address_v6.map(IpNet::V6)).collect();
        act(&ClientSetup {
            server: Some(assignment.server.ip().to_canonical()),
            mtu: assignment.mtu,
            txqueuelen: QUEUE_LEN,
            addresses: &addresses,
            push: &assignment.push,
            routes: &self.routes,
            dns: &self.dns,
            inbound: self.inbound,
            direct_replies: self.direct_replies,
        })
    }
}
