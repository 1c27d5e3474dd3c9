//! The resolver's configuration: systemd-resolved, resolvconf, or `/etc/resolv.conf` itself.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use super::command;
use super::error::NetError;
use super::netlink::Netlink;
use super::patience::Patience;
use super::resolv_conf::{self, Claim, ResolvConf, nameservers};
use super::setup::Paths;
use crate::control_socket::Holder;

/// Where name servers listen.
const PORT: u16 = 53;
/// Where systemd-resolved can be asked (since 247), in its directory.
const RESOLVED_SOCKET: &str = "io.systemd.Resolve";
/// The routing domain of systemd-resolved that all names are in.
const EVERYTHING: &str = "~.";
/// What stands for no link in particular: no interface has a name with a space.
pub(super) const ALL_LINKS: &str = "all links";

/// Who is told about DNS servers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Dns {
    /// systemd-resolved, which forgets them with the interface.
    Resolved { program: PathBuf, interface: String },
    /// openresolv. Debian's resolvconf has the name servers of others in the file, too.
    Resolvconf { program: PathBuf, record: String },
    /// Nobody: the file is written. `backup` holds the original, or what it linked to.
    File { path: PathBuf, backup: PathBuf },
}

/// What a look at the resolver has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Look {
    /// Whether it asks the tunnel's name servers, or those of a newer tunnel.
    pub(super) is_set: bool,
    /// The name servers that it would ask without the tunnel's.
    pub(super) former: Vec<SocketAddr>,
    /// Names that others are asked for nevertheless, and whose name servers those are.
    pub(super) elsewhere: Vec<(String, Vec<String>)>,
}

impl Dns {
    /// Finds out who is in charge of the system's resolver: nobody, where a file of this namespace's own
    /// is mounted in the place of theirs.
    ///
    /// # Errors
    ///
    /// [`NetError::ForeignResolver`] where that is a systemd-resolved of another network namespace.
    pub(super) fn choose(paths: &Paths, tun: &str) -> Result<Self, NetError> {
        if resolv_conf::is_mounted(&paths.resolv_conf) {
            return Ok(Self::file(&paths.resolv_conf));
        }
        let is_resolved = is_resolved_in_charge(paths);
        // It is told of interfaces by their numbers, and has others of the same numbers.
        if is_resolved && is_resolved_elsewhere(paths) {
            let path = paths.resolv_conf.clone();
            return Err(NetError::ForeignResolver { path });
        }
        if is_resolved && let Some(program) = command::find(&paths.resolvectl) {
            let interface = tun.to_owned();
            return Ok(Self::Resolved { program, interface });
        }
        if let Some(program) = command::find(&paths.resolvconf).filter(|p| !is_resolvectl(p))
            && is_openresolv(&program, &paths.patience)
        {
            // It puts `tun*` before the hardware's.
            let record = format!("tun.{tun}");
            return Ok(Self::Resolvconf { program, record });
        }
        Ok(Self::file(&paths.resolv_conf))
    }

    /// The file itself, whoever is in charge.
    pub(super) fn file(path: &Path) -> Self {
        let (path, backup) = resolv_conf::places(path);
        Self::File { path, backup }
    }

    /// Makes the resolver ask `servers` and no others, unless another tunnel is newer; may be repeated.
    /// Others know of it by the `claim`, as long as the process lives.
    pub(super) fn set(
        &self,
        servers: &[IpAddr],
        claim: &mut Option<Claim>,
        paths: &Paths,
    ) -> Result<(), NetError> {
        let patience = &paths.patience;
        match self {
            Self::Resolved { program, interface } => {
                set_resolved(program, interface, servers, patience)
            }
            Self::Resolvconf { program, record } => {
                let arguments = ["-a", record, "-m", "0", "-x"];
                command::run(program, &arguments, &nameservers(servers), patience).map(drop)
            }
            Self::File { path, backup } => {
                ResolvConf::new(path, backup, &paths.state_dir).set(servers, claim)
            }
        }
    }

    /// Whether the resolver still asks `servers`, and whom it would ask without them.
    pub(super) fn look(
        &self,
        servers: &[IpAddr],
        claim: Option<&Claim>,
        netlink: &Netlink,
        paths: &Paths,
    ) -> Result<Look, NetError> {
        match self {
            Self::File { path, backup } => {
                let file = ResolvConf::new(path, backup, &paths.state_dir);
                let former = file.former_text(claim)?;
                Ok(Look {
                    is_set: file.is_set(servers, claim),
                    former: parsed(listed_name_servers(&former), servers, netlink),
                    elsewhere: Vec::new(),
                })
            }
            Self::Resolvconf { program, record } => {
                let text = command::run(program, &["-l"], "", &paths.patience)?;
                Ok(look_at_records(&text, record, servers, netlink))
            }
            Self::Resolved { program, interface } => {
                let ask = |what| command::run(program, &[what], "", &paths.patience);
                let (dns, domains) = (ask("dns")?, ask("domain")?);
                Ok(look_at_links(&dns, &domains, interface, servers, netlink))
            }
        }
    }

    /// Puts back what was there before, or what other tunnels want. Harmless when nothing was changed.
    /// The caller's own claim has been dropped before.
    pub(super) fn restore(&self, netlink: &Netlink, paths: &Paths) -> Result<(), NetError> {
        let patience = &paths.patience;
        match self {
            Self::Resolved { interface, .. } if netlink.index_of(interface).is_err() => Ok(()),
            Self::Resolved { program, interface } => {
                command::run(program, &["revert", interface], "", patience).map(drop)
            }
            Self::Resolvconf { program, record } => {
                command::run(program, &["-d", record, "-f"], "", patience).map(drop)
            }
            Self::File { path, backup } => {
                ResolvConf::new(path, backup, &paths.state_dir).restore()
            }
        }
    }
}

/// Whether the C library's resolver asks systemd-resolved.
fn is_resolved_in_charge(paths: &Paths) -> bool {
    let running = paths.systemd_resolved.is_dir();
    let linked = fs::canonicalize(&paths.resolv_conf)
        .is_ok_and(|target| target.starts_with(&paths.systemd_resolved));
    let asked = || {
        let text = fs::read_to_string(&paths.resolv_conf).unwrap_or_default();
        text.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some("nameserver") && words.next() == Some("127.0.0.53")
        })
    };
    running && (linked || asked())
}

/// Whether systemd-resolved is in another network namespace: whoever listens where it can be asked. Not,
/// where nobody can tell.
fn is_resolved_elsewhere(paths: &Paths) -> bool {
    let socket = paths.systemd_resolved.join(RESOLVED_SOCKET);
    let listener = connect_at_once(&socket).and_then(|stream| Holder::of(&stream));
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/net"));
    match listener.map(|listener| listener.pid) {
        Ok(Some(pid)) => {
            let found = (namespace(&pid.to_string()), namespace("thread-self"));
            matches!(found, (Ok(its), Ok(own)) if its != own)
        }
        _ => false,
    }
}

/// Connects to a socket, unless that would take a while.
fn connect_at_once(path: &Path) -> io::Result<UnixStream> {
    let (kind, flags) = (
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
    );
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

/// systemd-resolved's package installs `resolvconf` as another name of `resolvectl`.
fn is_resolvectl(program: &Path) -> bool {
    fs::canonicalize(program).is_ok_and(|target| target.ends_with("resolvectl"))
}

/// Whether this is openresolv, which can have one record alone in force. Whatever else goes by the name
/// `resolvconf`, the file itself decides who is asked.
fn is_openresolv(program: &Path, patience: &Patience) -> bool {
    let version = command::run(program, &["--version"], "", patience);
    version.is_ok_and(|version| version.starts_with("openresolv"))
}

/// From what openresolv lists of its records.
fn look_at_records(text: &str, record: &str, servers: &[IpAddr], netlink: &Netlink) -> Look {
    let (mut own, mut others) = (Vec::new(), Vec::new());
    let mut is_own = false;
    for line in text.lines() {
        match line.strip_prefix("# resolv.conf from ") {
            Some(name) => is_own = name == record,
            None if is_own => own.extend(listed_name_servers(line)),
            None => others.extend(listed_name_servers(line)),
        }
    }
    Look {
        is_set: are(&own, servers),
        former: parsed(others, servers, netlink),
        elsewhere: Vec::new(),
    }
}

/// From what systemd-resolved lists of its links: their name servers, and their domains. Names go to the
/// link that has the longest domain of theirs.
fn look_at_links(
    dns: &str,
    domains: &str,
    interface: &str,
    servers: &[IpAddr],
    netlink: &Netlink,
) -> Look {
    let mut look = Look::default();
    let mut asked = Vec::new();
    for (link, words) in links(dns) {
        if link == interface {
            look.is_set = are(&words, servers);
        } else if !words.is_empty() {
            look.former.extend(parsed(words, servers, netlink));
            asked.push(link);
        }
    }
    let mut has_everything = false;
    for (link, words) in links(domains) {
        if link == interface {
            has_everything = words.contains(&EVERYTHING);
        } else if asked.contains(&link) && !words.is_empty() {
            let domains = words
                .iter()
                .map(|word| word.trim_start_matches('~').to_owned());
            look.elsewhere.push((link.to_owned(), domains.collect()));
        }
    }
    look.is_set &= has_everything;
    look
}

/// What `resolvectl` says of each link, and of none in particular. Long lists go on in the next line,
/// which is indented.
fn links(text: &str) -> Vec<(&str, Vec<&str>)> {
    let mut links: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in text.lines() {
        let link = line.strip_prefix("Link ").and_then(|rest| {
            let (link, words) = rest.split_once("):")?;
            Some((link.split_once('(')?.1, words))
        });
        let global = || Some((ALL_LINKS, line.strip_prefix("Global:")?));
        match (link.or_else(global), links.last_mut()) {
            (Some((link, words)), _) => links.push((link, words.split_whitespace().collect())),
            (None, Some((_, words))) => words.extend(line.split_whitespace()),
            (None, None) => {}
        }
    }
    links
}

/// Whether these words are those addresses.
fn are(words: &[&str], servers: &[IpAddr]) -> bool {
    let words = words.iter().map(|word| word.parse().ok());
    words.eq(servers.iter().map(|server| Some(*server)))
}

/// The name servers of lines of `/etc/resolv.conf`, as they are written.
pub(super) fn listed_name_servers(text: &str) -> Vec<&str> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let is_server = words.next() == Some("nameserver");
        words.next().filter(|_| is_server)
    });
    servers.collect()
}

/// Name servers that are written as an address, perhaps with the interface of a link-local one, a port, or
/// the name of its certificate behind `#`; but not those of the tunnel.
fn parsed(words: Vec<&str>, tunnels_own: &[IpAddr], netlink: &Netlink) -> Vec<SocketAddr> {
    let parse = |word: &str| {
        let word = word.split('#').next()?;
        if let Ok(ip) = word.parse() {
            return Some(SocketAddr::new(ip, PORT));
        }
        if let Some((ip, zone)) = word.split_once('%') {
            let index = netlink.index_of(zone).ok().or_else(|| zone.parse().ok())?;
            return Some(SocketAddrV6::new(ip.parse().ok()?, PORT, 0, index).into());
        }
        word.parse().ok()
    };
    let mut found = Vec::new();
    for server in words.into_iter().filter_map(parse) {
        if !found.contains(&server) && !tunnels_own.contains(&server.ip()) {
            found.push(server);
        }
    }
    found
}

fn set_resolved(
    program: &Path,
    interface: &str,
    servers: &[IpAddr],
    patience: &Patience,
) -> Result<(), NetError> {
    let servers: Vec<_> = servers.iter().map(ToString::to_string).collect();
    let mut dns = vec!["dns", interface];
    dns.extend(servers.iter().map(String::as_str));
    let steps = [
        dns,
        vec!["domain", interface, EVERYTHING],
        vec!["default-route", interface, "yes"],
    ];
    for arguments in &steps {
        if let Err(error) = command::run(program, arguments, "", patience) {
            // The first error says more than one of cleaning up.
            let _ = command::run(program, &["revert", interface], "", &patience.to_restore());
            return Err(error);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
