//! Where the guard's routes lead: nowhere, by way of the loopback device if that is up.

use ipnet::IpNet;

use super::change::Change;
use super::error::NetError;
use super::guard::Guard;
use super::netlink::{LOOPBACK, Netlink, Route, RouteTarget, TABLE_MAIN};

/// Where packets vanish, but for those of a socket that is bound to an interface: DHCP clients, and
/// who asks whether an uplink works, mean it. Loopback throws away what is not for this host, and is no
/// reason for a reverse path filter to distrust a packet's source, as an unreachable route is. IPv6
/// makes such a route of one through loopback, and leaves bound sockets alone. In a namespace whose
/// loopback is not up there is no other way for IPv4 either.
pub(super) const fn target(network: IpNet, is_loopback_down: bool) -> RouteTarget {
    match network {
        IpNet::V4(_) if !is_loopback_down => RouteTarget::Interface(LOOPBACK),
        IpNet::V4(_) | IpNet::V6(_) => RouteTarget::Unreachable,
    }
}

/// Whether nothing can be routed through the loopback device.
pub(super) fn is_loopback_down(netlink: &mut Netlink) -> bool {
    !netlink.link(LOOPBACK).is_ok_and(|it| it.is_up)
}

/// Whether a route is the guard's, wherever it leads. Behind all others, with a metric, is what the tunnel
/// lacks.
pub(super) const fn is_guards(route: &Route) -> bool {
    route.table != TABLE_MAIN
        && route.metric == 0
        && matches!(
            route.target,
            RouteTarget::Interface(LOOPBACK) | RouteTarget::Unreachable
        )
}

/// What the route is to be instead; none if it is not the guard's, or leads where it should.
fn redirected(route: &Route, is_loopback_down: bool) -> Option<Route> {
    let target = target(route.destination, is_loopback_down);
    (is_guards(route) && route.target != target).then_some(Route { target, ..*route })
}

impl Guard {
    /// Has the guard's routes lead through the loopback device as soon as that is up, and past it when it
    /// goes down, which takes them away. Returns what was taken away.
    pub(super) fn follow_loopback(&mut self) -> Result<Vec<String>, NetError> {
        let is_down = is_loopback_down(&mut self.netlink);
        let outdated = self.changes().filter_map(|change| match change {
            Change::Route(route) => Some((*route, redirected(route, is_down)?)),
            _ => None,
        });
        let outdated: Vec<_> = outdated.collect();
        for (old, new) in &outdated {
            self.make(&Change::Route(*new))?;
            self.undo(&Change::Route(*old))?;
        }
        let lost = outdated.iter().filter(|_| is_down);
        Ok(lost
            .map(|(old, _)| Change::Route(*old).describe())
            .collect())
    }
}
