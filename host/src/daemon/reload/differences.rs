//! What is other in a configuration than in the one in force, by the keys of its file.

use std::net::{IpAddr, SocketAddr};

use lostlove_config::{
    AccessScope, ClientAccess, ClientSettings, LogLevel, MetricsListener, Monitoring,
    ServerSettings, SocketOptions, TunOptions,
};
use lostlove_core::config::{Common, Limits, Server, ServerConfig};

const LOG_LEVEL: &str = "monitoring.log_level";
const PUBLIC_ADDRESS: &str = "server.public_address";

/// What a session has agreed on at its beginning it keeps.
const FOR_NEW_SESSIONS: &str = "for each client when it next connects";

/// Keys of a file whose values are others now.
#[derive(Debug, Default)]
pub(super) struct Differences {
    pub(super) applied: Vec<String>,
    pub(super) needs_restart: Vec<String>,
}

impl Differences {
    pub(super) fn of_servers(old: &ServerSettings, new: &ServerSettings) -> Self {
        let mut found = Self::default();
        found.of_protocols(&old.endpoint, &new.endpoint);
        let (a, b) = (&old.host, &new.host);
        found.tun(&a.tun, &b.tun);
        found.monitoring(&a.monitoring, &b.monitoring);
        let key = |settings: &ServerSettings| settings.endpoint.server.secret_key.public_key();
        for (key, differs) in [
            ("server.bind_address", ips(&a.listen) != ips(&b.listen)),
            ("server.port", port(&a.listen) != port(&b.listen)),
            (
                "server.worker_threads",
                a.worker_threads != b.worker_threads,
            ),
            ("network.forwarding", a.forwarding != b.forwarding),
            ("network.inbound", a.inbound != b.inbound),
            ("peers.routes", a.peer_routes != b.peer_routes),
            ("security.private_key", key(old) != key(new)),
        ] {
            found.restart(key, differs);
        }
        found.nat(old, new);
        found.access(&a.client_access, &b.client_access);
        found.socket(&a.socket, &b.socket);
        found.apply(PUBLIC_ADDRESS, a.public_address != b.public_address);
        found
    }

    pub(super) fn of_clients(old: &ClientSettings, new: &ClientSettings) -> Self {
        let mut found = Self::default();
        let (a, b) = (&old.host, &new.host);
        found.tun(&a.tun, &b.tun);
        found.monitoring(&a.monitoring, &b.monitoring);
        let (c, d) = (&old.endpoint.client, &new.endpoint.client);
        let preshared = |it: &ClientSettings| {
            it.endpoint
                .client
                .preshared_key
                .as_ref()
                .map(|key| *key.as_bytes())
        };
        let is_same_key = c.secret_key.public_key() == d.secret_key.public_key();
        let (e, f) = (&old.endpoint.common, &new.endpoint.common);
        for (key, differs) in [
            ("client.server", a.server != b.server),
            ("client.server_public_key", c.server_key != d.server_key),
            ("client.private_key", !is_same_key),
            ("client.preshared_key", preshared(old) != preshared(new)),
            ("client.routes", a.routes != b.routes),
            ("client.dns", a.dns != b.dns),
            ("client.inbound", a.inbound != b.inbound),
            (
                "client.direct_replies",
                a.direct_replies != b.direct_replies,
            ),
            ("network.local_routes", c.routes != d.routes),
            ("client.reconnect_min", c.reconnect_min != d.reconnect_min),
            ("client.reconnect_max", c.reconnect_max != d.reconnect_max),
            ("security.suites", e.suites != f.suites),
            (
                "security.rotate_bytes",
                e.rotation.bytes != f.rotation.bytes,
            ),
            (
                "security.rotate_interval",
                e.rotation.interval != f.rotation.interval,
            ),
            ("network.compression", e.compression != f.compression),
            ("limits", e.limits != f.limits),
        ] {
            found.restart(key, differs);
        }
        found.socket(&a.socket, &b.socket);
        found
    }

    /// What would be applied, and is not, as only the peers are followed. Where clients reach the
    /// server is in force with the file: nobody but the commands that read it wants to know.
    pub(super) fn take_waiting(
        &mut self,
        old: &ServerSettings,
        new: &ServerSettings,
    ) -> Vec<String> {
        let mut waiting = std::mem::take(&mut self.applied);
        waiting.retain(|key| key != PUBLIC_ADDRESS);
        let levels = [old, new].map(|settings| settings.host.monitoring.log_level);
        if levels[0] != levels[1] {
            waiting.push(LOG_LEVEL.to_owned());
        }
        waiting
    }

    /// Another level of the log counts if nothing else decides it.
    pub(super) fn note_level(
        &mut self,
        (old, new): (LogLevel, LogLevel),
        set: impl FnOnce(LogLevel) -> bool,
    ) {
        if old == new {
            return;
        }
        if set(new) {
            self.applied.push(LOG_LEVEL.to_owned());
        } else {
            let why =
                "monitoring.log_level (--log-level, RUST_LOG or `lostlove log-level` decides)";
            self.needs_restart.push(why.to_owned());
        }
    }

    fn of_protocols(&mut self, old: &ServerConfig, new: &ServerConfig) {
        let (a, b) = (&old.server, &new.server);
        let (c, d) = (&old.common, &new.common);
        for (key, differs) in [
            (
                "network.client_to_client",
                a.client_to_client != b.client_to_client,
            ),
            ("security.probe_from", a.probe_sources != b.probe_sources),
            ("limits.rate_limit_per_user", a.rate_limit != b.rate_limit),
        ] {
            self.apply(key, differs);
        }
        for (key, differs) in [
            ("network.dns", a.push.dns != b.push.dns),
            ("network.push_routes", a.push.routes != b.push.routes),
            ("network.compression", c.compression != d.compression),
            ("security.suites", c.suites != d.suites),
            (
                "security.rotate_bytes",
                c.rotation.bytes != d.rotation.bytes,
            ),
            (
                "security.rotate_interval",
                c.rotation.interval != d.rotation.interval,
            ),
        ] {
            self.apply(&format!("{key} ({FOR_NEW_SESSIONS})"), differs);
        }
        let (a, b) = (&c.limits, &d.limits);
        self.apply(
            "server.max_connections",
            a.max_connections != b.max_connections,
        );
        self.apply("limits", !is_same_but_for_memory(a, b));
        self.restart("limits.memory", a.memory != b.memory);
        let streams = a.max_streams != b.max_streams;
        self.restart("limits.max_streams_per_connection", streams);
        self.tunnel(&old.server, &new.server);
    }

    fn tunnel(&mut self, old: &Server, new: &Server) {
        self.restart("network.tun_address", old.address_v4 != new.address_v4);
        let (key, differs) = match (old.address_v6, new.address_v6) {
            (Some(old), Some(new)) => ("network.tun_address_v6", old != new),
            (old, new) => ("network.enable_ipv6", old != new),
        };
        self.restart(key, differs);
    }

    fn nat(&mut self, old: &ServerSettings, new: &ServerSettings) {
        let [a, b] = [old, new].map(|it| it.host.nat.as_ref());
        let [v4, other_v4] = [a, b].map(|nat| nat.and_then(|nat| nat.v4.as_ref()));
        let [v6, other_v6] = [a, b].map(|nat| nat.and_then(|nat| nat.v6.as_ref()));
        self.restart("network.nat", v4 != other_v4);
        // Without a value of its own it follows the other, and IPv6 itself.
        let follows = v6 == v4 && other_v6 == other_v4;
        let [has, will_have] = [old, new].map(|it| it.endpoint.server.address_v6.is_some());
        self.restart(
            "network.nat_v6",
            v6 != other_v6 && !follows && has == will_have,
        );
        if let (Some(a), Some(b)) = (a, b) {
            self.restart("network.nat_ports", a.ports != b.ports);
        }
    }

    fn socket(&mut self, old: &SocketOptions, new: &SocketOptions) {
        let differs = old.congestion_control != new.congestion_control;
        self.restart("network.congestion_control", differs);
        let differs = old.notsent_lowat != new.notsent_lowat;
        self.restart("network.notsent_lowat", differs);
    }

    /// What clients are told of counts only where they would not get there otherwise, and is open to them
    /// only after a restart.
    fn access(&mut self, old: &ClientAccess, new: &ClientAccess) {
        self.restart("network.client_access", old.scope != new.scope);
        self.restart("network.client_deny", old.deny != new.deny);
        let (old, new) = (effective(old), effective(new));
        // Another scope alone makes these count, or count no more.
        if old.scope == new.scope {
            let differs = old.routes != new.routes;
            self.restart("network.push_routes (what it opens)", differs);
        }
        if old.scope == new.scope && old.deny == new.deny {
            self.restart("network.dns (what it opens)", old.dns != new.dns);
        }
    }

    fn tun(&mut self, old: &TunOptions, new: &TunOptions) {
        self.restart("network.tun_name", old.name != new.name);
        self.restart("network.mtu", old.mtu != new.mtu);
        self.restart("network.offload", old.offload != new.offload);
    }

    fn monitoring(&mut self, old: &Monitoring, new: &Monitoring) {
        if let (Some(old), Some(new)) = (old.metrics, new.metrics) {
            let differs = old.address.ip() != new.address.ip();
            self.restart("monitoring.metrics_address", differs);
            let port = |it: MetricsListener| (it.address.port(), it.port_is_chosen);
            self.restart("monitoring.metrics_port", port(old) != port(new));
        } else {
            self.restart("monitoring.enable_metrics", old.metrics != new.metrics);
        }
        let differs = old.metrics_per_peer != new.metrics_per_peer;
        self.restart("monitoring.metrics_per_peer", differs);
        self.restart("monitoring.log_format", old.log_format != new.log_format);
    }

    fn apply(&mut self, key: &str, differs: bool) {
        self.applied.extend(differs.then(|| key.to_owned()));
    }

    fn restart(&mut self, key: &str, differs: bool) {
        self.needs_restart.extend(differs.then(|| key.to_owned()));
    }
}

/// What is in force when a new configuration has been followed.
pub(super) fn in_force(old: &ServerConfig, new: ServerConfig) -> ServerConfig {
    let mut server = old.server.clone();
    server.push = new.server.push;
    server.client_to_client = new.server.client_to_client;
    server.probe_sources = new.server.probe_sources;
    server.rate_limit = new.server.rate_limit;
    let limits = Limits {
        memory: old.common.limits.memory,
        max_streams: old.common.limits.max_streams,
        ..new.common.limits
    };
    let common = Common {
        limits,
        mtu: old.common.mtu,
        ..new.common
    };
    ServerConfig { common, server }
}

fn ips(listen: &[SocketAddr]) -> Vec<IpAddr> {
    listen.iter().map(SocketAddr::ip).collect()
}

/// That of all of them.
fn port(listen: &[SocketAddr]) -> Option<u16> {
    listen.first().map(SocketAddr::port)
}

fn effective(access: &ClientAccess) -> ClientAccess {
    let mut access = access.clone();
    if access.scope == AccessScope::All {
        access.routes.clear();
        let deny = &access.deny;
        let is_denied = |address: &IpAddr| deny.iter().any(|net| net.contains(address));
        access.dns.retain(is_denied);
    }
    access
}

/// Of `[limits]`, what is applied as one.
fn is_same_but_for_memory(old: &Limits, new: &Limits) -> bool {
    let limits = Limits {
        memory: old.memory,
        max_streams: old.max_streams,
        max_connections: old.max_connections,
        ..new.clone()
    };
    limits == *old
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn server(folder: &Path, text: &str) -> ServerSettings {
        let config = folder.join("server.toml");
        std::fs::write(&config, text).unwrap();
        lostlove_config::load_server(&config).unwrap()
    }

    #[test]
    fn another_level_that_does_not_count_is_not_said_to_be_applied() {
        let levels = (LogLevel::Info, LogLevel::Debug);
        for (counts, lists) in [(true, [1, 0]), (false, [0, 1])] {
            let mut found = Differences::default();
            found.note_level(levels, |_| counts);
            assert_eq!([found.applied.len(), found.needs_restart.len()], lists);
        }
    }

    /// A section, a line of it, and what is said of that.
    const APPLIED: &[(&str, &str, &str)] = &[
        (
            "network",
            "client_to_client = true",
            "network.client_to_client",
        ),
        ("server", "max_connections = 5", "server.max_connections"),
        (
            "server",
            "public_address = 'a.example:1'",
            "server.public_address",
        ),
        ("limits", "queue_age_ms = 100", "limits"),
        (
            "limits",
            "rate_limit_per_user = 1000",
            "limits.rate_limit_per_user",
        ),
        ("security", "probe_from = []", "security.probe_from"),
    ];

    /// The same of what connected clients do not have.
    const APPLIED_LATER: &[(&str, &str, &str)] = &[
        ("network", "dns = ['10.8.0.1']", "network.dns"),
        (
            "network",
            "push_routes = ['192.168.1.0/24']",
            "network.push_routes",
        ),
        ("network", "compression = true", "network.compression"),
        ("security", "suites = ['aes-256-gcm']", "security.suites"),
        (
            "security",
            "rotate_interval = 60",
            "security.rotate_interval",
        ),
        (
            "security",
            "rotate_bytes = 1000000",
            "security.rotate_bytes",
        ),
    ];

    #[test]
    fn what_waits_while_the_peers_alone_are_followed_is_what_a_reload_would_apply() {
        let folder = tempfile::tempdir().unwrap();
        crate::setup::make_default_key(&folder.path().join("server.toml")).unwrap();
        let old = server(folder.path(), "");
        let text = "[server]\nport = 1\npublic_address = 'a.example:1'\n\
            [limits]\nrate_limit_per_user = 1000\n[monitoring]\nlog_level = 'debug'\n";
        let new = server(folder.path(), text);
        let mut found = Differences::of_servers(&old, &new);
        let waiting = found.take_waiting(&old, &new);
        assert_eq!(waiting, ["limits.rate_limit_per_user", LOG_LEVEL]);
        assert!(found.applied.is_empty());
        assert_eq!(found.needs_restart, ["server.port"]);
    }

    /// The same.
    const NEEDS_RESTART: &[(&str, &str, &str)] = &[
        ("server", "port = 1", "server.port"),
        ("server", "bind_address = '::'", "server.bind_address"),
        ("server", "worker_threads = 2", "server.worker_threads"),
        ("network", "mtu = 1380", "network.mtu"),
        ("network", "nat = false", "network.nat"),
        ("network", "nat_v6 = false", "network.nat_v6"),
        ("network", "nat_ports = '40000-50000'", "network.nat_ports"),
        (
            "network",
            "client_access = 'internet'",
            "network.client_access",
        ),
        ("network", "client_deny = []", "network.client_deny"),
        (
            "network",
            "tun_address = '10.9.0.1/24'",
            "network.tun_address",
        ),
        (
            "network",
            "tun_address_v6 = 'fd09::1/64'",
            "network.tun_address_v6",
        ),
        ("network", "enable_ipv6 = false", "network.enable_ipv6"),
        (
            "network",
            "congestion_control = 'cubic'",
            "network.congestion_control",
        ),
        ("network", "notsent_lowat = 65536", "network.notsent_lowat"),
        (
            "monitoring",
            "enable_metrics = false",
            "monitoring.enable_metrics",
        ),
        (
            "monitoring",
            "metrics_address = '127.0.0.2'",
            "monitoring.metrics_address",
        ),
        (
            "monitoring",
            "metrics_port = 9191",
            "monitoring.metrics_port",
        ),
        ("limits", "memory = 67108864", "limits.memory"),
        ("monitoring", "log_format = 'json'", "monitoring.log_format"),
    ];

    /// As it stands in the operator's manual.
    #[test]
    fn each_key_is_applied_or_needs_a_restart_and_then_is_in_force() {
        let folder = tempfile::tempdir().unwrap();
        crate::setup::make_default_key(&folder.path().join("server.toml")).unwrap();
        let old = server(folder.path(), "");
        let later = |key: &str| format!("{key} (for each client when it next connects)");
        let at_once = APPLIED.iter().map(|it| (it, it.2.to_owned()));
        let all = at_once.chain(APPLIED_LATER.iter().map(|it| (it, later(it.2))));
        for ((section, line, _), said) in all {
            let new = server(folder.path(), &format!("[{section}]\n{line}\n"));
            let found = Differences::of_servers(&old, &new);
            assert_eq!((found.applied, found.needs_restart), (vec![said], vec![]));
            let mut after = old.clone();
            after.endpoint = in_force(&old.endpoint, new.endpoint.clone());
            after
                .host
                .public_address
                .clone_from(&new.host.public_address);
            let found = Differences::of_servers(&after, &new);
            assert!(found.applied.is_empty(), "{found:?}");
        }
        for (section, line, key) in NEEDS_RESTART {
            let new = server(folder.path(), &format!("[{section}]\n{line}\n"));
            let found = Differences::of_servers(&old, &new);
            assert_eq!(
                (found.applied, found.needs_restart),
                (vec![], vec![(*key).to_owned()])
            );
            let mut after = old.clone();
            after.endpoint = in_force(&old.endpoint, new.endpoint.clone());
            let found = Differences::of_servers(&after, &new);
            assert_eq!(found.needs_restart, [*key], "it still does");
        }
    }

    /// Where clients do not get everywhere.
    #[test]
    fn what_clients_are_told_of_is_open_to_them_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        crate::setup::make_default_key(&folder.path().join("server.toml")).unwrap();
        let with = |lines| {
            server(
                folder.path(),
                &format!("[network]\nclient_access = 'internet'\n{lines}"),
            )
        };
        let old = with("");
        for (line, opens) in [
            (
                "push_routes = ['192.168.1.0/24']",
                "network.push_routes (what it opens)",
            ),
            ("dns = ['192.168.1.1']", "network.dns (what it opens)"),
        ] {
            let found = Differences::of_servers(&old, &with(line));
            assert_eq!(
                (found.applied.len(), found.needs_restart),
                (1, vec![opens.to_owned()])
            );
        }
    }
}
