//! What a daemon tells of itself, judged.

use std::borrow::Cow;
use std::fs;
use std::io;
use std::net::IpAddr;

use lostlove_core::config::{MIN_IPV6_MTU, Role};
use lostlove_core::error::{DropReason, HandshakeError};
use lostlove_host::args::default_config;
use lostlove_host::control::status::{ClientStatus, ServerStatus, State, Status};
use lostlove_system::limits::descriptors_needed;
use lostlove_system::net::DeviceState;
use rustix::io::Errno;

use super::finding::{Finding, Look, edit, edit_what, end, quoted};
use crate::status::text::{duration, list};

/// One packet of so many that is dropped in front of the device is no accident.
const RARE: u64 = 1000;
/// Fewer packets say nothing.
const FEW: u64 = 100;
/// How long a daemon may take to set the system up.
const SLOW_START_SECONDS: f64 = 30.0;

/// Everything that the daemon tells. Its process is as it is seen from here, or 0.
pub(super) fn judge(name: &str, status: &Status) -> Vec<Finding> {
    let mut findings = vec![state(name, status)];
    findings.extend(network(name, status));
    findings.extend(version(name, status));
    findings.extend(reload(name, status));
    findings.extend(queue(name, status));
    findings.push(drops(name, status));
    if let Some(server) = &status.server {
        findings.extend(sessions(name, status, server));
        findings.extend(handshakes(name, status, server));
        findings.extend(blocked(name, server));
    }
    findings
}

/// Its process, where that can be seen from here.
fn process(status: &Status) -> Option<u32> {
    (status.pid > 0).then_some(status.pid)
}

/// What it is, by what it tells.
pub(super) fn role(status: &Status) -> Role {
    match status.client {
        Some(_) => Role::Client,
        None => Role::Server,
    }
}

/// The file that the daemon was started with; the usual one where an older one does not say.
fn config(status: &Status) -> Cow<'_, str> {
    let path = &status.configuration.path;
    if !path.is_empty() {
        return path.into();
    }
    default_config(role(status)).to_string_lossy()
}

/// What a command of `lostlove peer` needs so as to find the daemon's file.
fn with_config(status: &Status) -> String {
    let path = config(status);
    if path == default_config(Role::Server).to_string_lossy() {
        return String::new();
    }
    format!(" --config {}", quoted(&path))
}

fn state(name: &str, status: &Status) -> Finding {
    let look = Look::Daemon;
    let since = duration(status.uptime_seconds);
    let about = match process(status) {
        Some(pid) => format!("process {pid}, up for {since}"),
        None => format!("up for {since}"),
    };
    match (status.state, &status.server, &status.client) {
        (State::Listening, Some(server), _) => {
            let (sessions, max) = (server.sessions, server.max_sessions);
            let listen = list(&server.listen, "nothing");
            let found =
                format!("server, listening on {listen}; {sessions} of {max} sessions; {about}");
            Finding::ok(look, name, found)
        }
        (State::Connected, _, Some(client)) => {
            let server = client.session.as_ref().and_then(|session| session.remote);
            let server = server.map_or_else(|| "its server".to_owned(), |it| it.to_string());
            let routes = list(&client.routes, "nothing");
            let dns = list(&client.name_servers, "as without the tunnel");
            let found = format!(
                "client, connected to {server}; routes {routes}; name servers {dns}; {about}"
            );
            Finding::ok(look, name, found)
        }
        (State::Starting, ..) => Finding::warning(
            look,
            name,
            format!(
                "{} that is still setting the system up; {about}",
                status.role
            ),
            slow_start(name, status),
        ),
        (State::SettingUp, ..) => Finding::warning(
            look,
            name,
            format!("it has a session, and is setting the system up for it; {about}"),
            log_more(name),
        ),
        (State::Connecting | State::Reconnecting, _, Some(client)) => {
            not_connected(name, client, &about)
        }
        (State::Ending, ..) => Finding::warning(
            look,
            name,
            format!("it is about to end; {about}"),
            end(process(status), "ends it at once"),
        ),
        _ => Finding::warning(
            look,
            name,
            format!("in a state that this program does not know; {about}"),
            "lostlove --version; lostlove-server --version; lostlove-client --version",
        ),
    }
}

fn slow_start(name: &str, status: &Status) -> String {
    if status.uptime_seconds < SLOW_START_SECONDS {
        return "sudo lostlove doctor  # again, in a moment".to_owned();
    }
    log_more(name)
}

fn log_more(name: &str) -> String {
    let name = quoted(name);
    format!("sudo lostlove log-level --daemon {name} debug  # its log says what it waits for")
}

fn not_connected(name: &str, client: &ClientStatus, about: &str) -> Finding {
    let servers = list(&client.servers, "no server");
    if let Some(end) = &client.refused {
        let since = match &client.last_error {
            Some(error) => format!("; the last of {} attempts: {error}", client.attempts.max(1)),
            None => String::new(),
        };
        let found = format!(
            "client, not connected to {servers}, which ended a session {} ago: {}{since}; {about}",
            duration(end.ago_seconds),
            end.reason
        );
        let cure = "sudo lostlove doctor; sudo lostlove peer list  # on the server";
        return Finding::error(Look::Daemon, name, found, cure);
    }
    let why = match &client.last_error {
        Some(error) => format!("the last of {} attempts: {error}", client.attempts.max(1)),
        None => "no attempt has failed yet".to_owned(),
    };
    let found = format!("client, not connected to {servers}; {why}; {about}");
    let cure = match client.servers.first().and_then(|it| host_and_port(it)) {
        Some((host, port)) => {
            let host = quoted(host);
            format!("nc -vz {host} {port}  # and on the server: sudo lostlove doctor")
        }
        None => "sudo lostlove doctor  # on the server".to_owned(),
    };
    match client.last_error {
        Some(_) => Finding::error(Look::Daemon, name, found, cure),
        None => Finding::warning(Look::Daemon, name, found, cure),
    }
}

/// Both parts of `host:port`, the host without brackets.
fn host_and_port(server: &str) -> Option<(&str, &str)> {
    let (host, port) = server.rsplit_once(':')?;
    let inner = host.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
    Some((inner.unwrap_or(host), port))
}

fn network(name: &str, status: &Status) -> Option<Finding> {
    let problem = status.problem.as_ref()?;
    let found = format!("the network is not as the daemon has set it up: {problem}");
    let cure = "sudo timeout 60 ip monitor; sudo timeout 60 nft monitor  # who takes it away";
    Some(Finding::error(Look::Network, name, found, cure))
}

fn version(name: &str, status: &Status) -> Option<Finding> {
    let (own, its) = (env!("CARGO_PKG_VERSION"), &status.program_version);
    if its == own {
        return None;
    }
    let found = format!("the daemon is version {its}, and this program {own}");
    let cure = end(process(status), "and start it again");
    Some(Finding::warning(Look::Version, name, found, cure))
}

fn reload(name: &str, status: &Status) -> Option<Finding> {
    let error = status.configuration.reload_error.as_ref()?;
    let mut lines = error.lines();
    let first = lines.next().unwrap_or_default();
    let rest = match lines.count() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let found =
        format!("the last reload failed, and what was in force before still is: {first}{rest}");
    let edit = edit_what(first, &config(status));
    let cure = format!("{edit}; sudo lostlove reload --daemon {}", quoted(name));
    Some(Finding::error(Look::Reload, name, found, cure))
}

/// What the system has dropped in front of the device, in proportion to what came through it.
fn queue(name: &str, status: &Status) -> Option<Finding> {
    let dropped = status.tunnel.dropped_packets?;
    let look = Look::DeviceQueue;
    let subject = format!("{name} queue");
    let arrived = dropped.saturating_add(status.totals.sent_packets);
    if dropped < FEW || dropped.saturating_mul(RARE) < arrived {
        let found =
            format!("the device has dropped {dropped} packets of {arrived} since it was made");
        return Some(Finding::ok(look, subject, found));
    }
    let process = process(status);
    let process = process.map(|pid| format!(" -p {pid}")).unwrap_or_default();
    let found = format!(
        "the device has dropped {dropped} packets of {arrived}, since it was made, that the daemon did \
         not read in time"
    );
    let cure = format!(
        "top -H{process}  # a worker at 100 % needs a faster CPU, or security.suites = \
         [\"aes-256-gcm\"] at both ends; else it was a burst, or the daemon was stopped"
    );
    Some(Finding::warning(look, subject, found, cure))
}

/// Reasons that hint at a fault, of those that the daemon counts.
fn drops(name: &str, status: &Status) -> Finding {
    let look = Look::Drops;
    let subject = format!("{name} drops");
    let dropped = &status.totals.dropped;
    let count = |reason: DropReason| dropped.get(reason.as_str()).copied().unwrap_or_default();
    let own = count(DropReason::OwnPacket);
    if own > 0 {
        let found = format!("the way to the server has led into the tunnel itself ({own} packets)");
        let way = way_to_server(status);
        let cure = format!("{way}; ip rule; ip -6 rule  # and stop the other VPN");
        return Finding::warning(look, subject, found, cure);
    }
    let full = count(DropReason::MemoryFull);
    if full > 0 {
        let found = format!("{full} packets found the memory for queues full");
        let edit = edit(&config(status));
        let cure = format!("{edit}  # a larger limits.memory; then start the daemon again");
        return Finding::warning(look, subject, found, cure);
    }
    let foreign = count(DropReason::ForeignSource);
    if foreign >= FEW {
        let found = format!(
            "{foreign} packets came from addresses that are not their sender's{}",
            senders(status)
        );
        let edit = edit(&config(status));
        let cure = format!(
            "{edit}; sudo lostlove reload --daemon {name}  # peers.routes: the \
             networks behind that client"
        );
        return Finding::warning(look, subject, found, cure);
    }
    let all: u64 = dropped.values().sum();
    Finding::ok(
        look,
        subject,
        format!("{all} packets, none for a reason that hints at a fault"),
    )
}

/// The command that shows the way to a client's server.
fn way_to_server(status: &Status) -> String {
    let client = status.client.as_ref();
    let session = client.and_then(|it| it.session.as_ref());
    if let Some(remote) = session.and_then(|it| it.remote) {
        return format!("ip route get {}", remote.ip());
    }
    let server = client.and_then(|it| it.servers.first());
    let host = server.and_then(|it| host_and_port(it));
    match host {
        Some((host, _)) if host.parse::<IpAddr>().is_ok() => format!("ip route get {host}"),
        Some((host, _)) => {
            let host = quoted(host);
            format!("ip route get \"$(getent ahosts {host} | awk 'NR == 1 {{ print $1 }}')\"")
        }
        None => "ip route".to_owned(),
    }
}

/// Whose packets those were, as far as sessions that are up can tell.
fn senders(status: &Status) -> String {
    let peers = status.server.iter().flat_map(|server| &server.peers);
    let names: Vec<_> = peers
        .filter(|peer| {
            let session = peer.session.as_ref();
            let reason = DropReason::ForeignSource.as_str();
            session.is_some_and(|it| it.dropped.contains_key(reason))
        })
        .map(|peer| peer.name.as_str())
        .collect();
    if names.is_empty() {
        return String::new();
    }
    format!(": {}", names.join(", "))
}

fn sessions(name: &str, status: &Status, server: &ServerStatus) -> Option<Finding> {
    let (sessions, max) = (server.sessions, server.max_sessions);
    if sessions < max {
        return None;
    }
    let found = format!("all {max} sessions are in use, and nobody else gets in");
    let edit = edit(&config(status));
    let daemon = quoted(name);
    let cure = format!(
        "{edit}; sudo lostlove reload --daemon {daemon}  # a larger server.max_connections"
    );
    Some(Finding::warning(Look::Sessions, name, found, cure))
}

/// Handshakes that failed for what one of both ends has been told, and not for what a network does.
fn handshakes(name: &str, status: &Status, server: &ServerStatus) -> Vec<Finding> {
    let (look, subject) = (Look::Handshakes, format!("{name} handshakes"));
    let (edit, config) = (edit(&config(status)), with_config(status));
    let (key, daemon) = (quoted(&server.public_key), quoted(name));
    let known = [
        (
            HandshakeError::UnknownPeer,
            "clients whose key the server does not know",
            format!("sudo lostlove peer list{config}; sudo lostlove reload --daemon {daemon}"),
        ),
        (
            HandshakeError::Expired,
            "clients whose time is over",
            format!(
                "sudo lostlove peer list{config}  # then: sudo lostlove peer set NAME --expires \
                 DATE{config}"
            ),
        ),
        (
            HandshakeError::Authentication,
            "clients that have the key of another server",
            format!("grep server_public_key client.toml  # on the client: it must be {key}"),
        ),
        (
            HandshakeError::NoCommonSuite,
            "clients that have none of this server's cipher suites",
            format!("{edit}  # leave security.suites out, as in the profile"),
        ),
        (
            HandshakeError::Version,
            "clients that speak no version of the protocol that the server speaks",
            "lostlove-server --version; lostlove-client --version".to_owned(),
        ),
    ];
    let failed = &status.totals.handshakes_failed;
    let warnings: Vec<_> = known
        .into_iter()
        .filter_map(|(reason, who, cure)| {
            let count = failed.get(reason.as_str()).filter(|count| **count > 0)?;
            let found = format!("{count} failed since the server began, of {who}");
            Some(Finding::warning(look, &subject, found, cure))
        })
        .collect();
    if !warnings.is_empty() {
        return warnings;
    }
    let count = status.totals.sessions_established;
    let found = format!(
        "{count} sessions since the server began, and nobody kept out by an unknown key, a date or a suite"
    );
    vec![Finding::ok(look, subject, found)]
}

fn blocked(name: &str, server: &ServerStatus) -> Vec<Finding> {
    let errors = server.blocked.iter().map(|way| {
        let found = way.in_words();
        let cure = "sudo nft list ruleset  # allow forwarding from and to the tunnel's device";
        Finding::error(Look::Firewall, name, found, cure)
    });
    errors.collect()
}

/// Whether the device is as the daemon has set it up. Only of a daemon in this network namespace, once
/// it has done so.
pub(super) fn device(
    name: &str,
    status: &Status,
    found: &io::Result<DeviceState>,
) -> Option<Finding> {
    let look = Look::Device;
    let tunnel = &status.tunnel;
    let device = &tunnel.device;
    let subject = format!("{name} device");
    if !matches!(status.state, State::Listening | State::Connected) {
        return None;
    }
    let found = match found {
        Ok(found) => found,
        Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => {
            let cure = end(process(status), "and start the daemon again");
            let found = format!("there is no device {device}: {error}");
            return Some(Finding::error(look, subject, found, cure));
        }
        Err(error) => {
            let cure = format!("ip address show dev {}", quoted(device));
            let found = format!("the device {device} cannot be looked at: {error}");
            return Some(Finding::warning(look, subject, found, cure));
        }
    };
    if !found.is_up {
        let cure = format!("sudo ip link set {} up", quoted(device));
        return Some(Finding::error(look, subject, "the device is down", cure));
    }
    // A client leaves out what the system or a small MTU has no room for.
    let has_v6 = status.client.is_none() || (found.has_ipv6 && tunnel.mtu >= MIN_IPV6_MTU);
    let wanted = tunnel.addresses.iter();
    let wanted: Vec<_> = wanted.filter(|it| has_v6 || it.addr().is_ipv4()).collect();
    let has = |wanted: IpAddr| found.addresses.iter().any(|it| it.addr() == wanted);
    if let Some(missing) = wanted.iter().find(|it| !has(it.addr())) {
        let what = format!("the device does not have the address {}", missing.addr());
        let whole = match status.client {
            // Its network is routed by other means.
            Some(_) => missing.addr().to_string(),
            None => missing.to_string(),
        };
        let cure = format!("sudo ip address add {whole} dev {}", quoted(device));
        return Some(Finding::error(look, subject, what, cure));
    }
    let addresses = list(&wanted, "no address");
    let what = format!("up, {addresses}, MTU {}", found.mtu);
    Some(Finding::ok(look, subject, what))
}

/// Whether a server may open as many files as its clients need.
pub(super) fn descriptors(name: &str, status: &Status, limit: Option<u64>) -> Option<Finding> {
    let server = status.server.as_ref()?;
    let max = usize::try_from(server.max_sessions).unwrap_or(usize::MAX);
    let needed = descriptors_needed(max);
    let (look, subject) = (Look::Descriptors, format!("{name} open files"));
    let (limit, pid) = (limit?, process(status)?);
    if limit >= needed {
        let found = format!("at most {limit}; {max} sessions alone need {needed}");
        return Some(Finding::ok(look, subject, found));
    }
    let found = format!("at most {limit}, but {max} sessions alone need {needed}");
    let enough = needed.max(65_535);
    let cure = format!(
        "sudo prlimit --pid {pid} --nofile={enough}:{enough}  # for good: LimitNOFILE= of systemd, or ulimit -n \
         before the start"
    );
    Some(Finding::warning(look, subject, found, cure))
}

/// How many files a process may open; none without a limit, or where nobody can tell.
pub(super) fn descriptor_limit(pid: u32) -> Option<u64> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    limit_of(&limits)
}

fn limit_of(limits: &str) -> Option<u64> {
    let mut lines = limits.lines();
    let line = lines.find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests;
