//! The server's file.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lostlove_core::config::{
    Common, Limits, MAX_PUSHED_DNS, MAX_PUSHED_ROUTES, Push, Server, ServerConfig,
};
use lostlove_core::crypto::SecretKey;
use toml::de::DeValue;

use crate::forwarding;
use crate::peer_files::{self, PeerText};
use crate::peers::{self, PeerFile};
use crate::problem::ConfigError;
use crate::reader::secret::PRIVATE_KEY;
use crate::reader::value::{
    bindable, boolean, expected, found, integer, network, parsed, remote_host_address, route,
};
use crate::reader::{At, Entry, Found, Reader, Section};
use crate::sections::{self, MAX_RATE, MonitoringDefaults, values};
use crate::server_address::ServerAddress;
use crate::settings::{DEFAULT_PORT, ServerHost, ServerSettings, TunOptions};
use crate::source::{Source, read_config};
use crate::tunnel::{self, Tunnel};

/// Each takes a descriptor, and no kernel gives a process more than about a million.
const MAX_CONNECTIONS: usize = 1_000_000;
const MAX_WORKER_THREADS: usize = 256;
/// A few sessions with full queues.
const MIN_MEMORY: u64 = 8 * 1024 * 1024;
/// Far more than any queues need: a typing error.
const MAX_MEMORY: u64 = 1 << 40;

const MONITORING: MonitoringDefaults = MonitoringDefaults {
    enable_metrics: true,
    metrics_port: 9190,
};

/// Reads and judges a server's file, those of its peers in the folder `peers.d` beside it, and the key
/// files that these name. Touches nothing else.
///
/// A file with LLP 1.0's keys alone has no key: it then takes the one at
/// [`default_key_path`], which must exist.
///
/// # Errors
///
/// If the file cannot be read, or with everything that is wrong with it.
pub fn load_server(path: &Path) -> Result<ServerSettings, ConfigError> {
    let (text, mode) = read_config(path)?;
    let source = Source::new(path, &text, mode);
    read(&source, &peer_files::read(path)?)
}

/// What is to be said of a server's file that is good, perhaps but for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerCheck {
    /// The key that the file takes and that does not exist, at [`default_key_path`]: so it is with
    /// a file of LLP 1.0, which knew no keys.
    pub missing_key: Option<PathBuf>,
    /// The outgoing interfaces that the file names for `nat` and `nat_v6`. Whether they are there, only
    /// the host can tell.
    pub nat_interfaces: Vec<String>,
    /// Whether a start fails where the host has no `nft`.
    pub needs_firewall: bool,
    /// What is allowed and probably not meant, one line each.
    pub warnings: Vec<String>,
}

/// Judges a server's file as [`load_server`] does, but for one thing: that there is no key yet at
/// [`default_key_path`] is no problem.
///
/// # Errors
///
/// If the file cannot be read, or with everything else that is wrong with it.
pub fn check_server(path: &Path) -> Result<ServerCheck, ConfigError> {
    let (text, mode) = read_config(path)?;
    let source = Source::new(path, &text, mode);
    let texts = peer_files::read(path)?;
    judge(&source, &texts, judge_check)
}

/// What a server's start finds.
#[derive(Debug)]
pub enum ServerFile {
    /// All that it needs.
    Complete(Box<ServerSettings>),
    /// All but a key at [`default_key_path`], which a start makes: as with a file of LLP 1.0, which
    /// knew no keys.
    KeyMissing(PathBuf),
}

/// Reads a server's file as [`load_server`] does, but for one thing: that there is no key yet at
/// [`default_key_path`], and nobody who would know it, is no problem.
///
/// # Errors
///
/// If the file cannot be read, or with everything else that is wrong with it.
pub fn open_server(path: &Path) -> Result<ServerFile, ConfigError> {
    let (text, mode) = read_config(path)?;
    let source = Source::new(path, &text, mode);
    let texts = peer_files::read(path)?;
    judge(&source, &texts, judge_start)
}

/// Where a server's secret key is if its file does not say: `server.key` beside it.
pub fn default_key_path(config: &Path) -> PathBuf {
    config.with_file_name(DEFAULT_KEY_FILE)
}

pub(crate) const DEFAULT_KEY_FILE: &str = "server.key";

/// Judges a server's file, with those of its peers.
pub(crate) fn read(source: &Source<'_>, texts: &[PeerText]) -> Result<ServerSettings, ConfigError> {
    judge(source, texts, judge_all)
}

/// Reads a server's file, with those of its peers; what is to come of it says `finish`.
fn judge<T>(
    source: &Source<'_>,
    texts: &[PeerText],
    finish: impl FnOnce(Reader<'_>, Parts) -> Result<T, ConfigError>,
) -> Result<T, ConfigError> {
    let tree = source.parse()?;
    let sources: Vec<_> = texts.iter().map(PeerText::source).collect();
    let trees = peer_files::parse(&sources)?;
    let mut reader = Reader::new(source);
    let root = reader.root(tree.get_ref());
    refuse_profile(&reader, &root)?;
    let files = peer_files::enter(&mut reader, texts, (&sources, &trees));
    let parts = settings(&mut reader, (&root, &files), source.path());
    finish(reader, parts)
}

fn judge_all(mut reader: Reader<'_>, parts: Parts) -> Result<ServerSettings, ConfigError> {
    // Whoever has more to mend hears of it when a start does not make the key.
    if let Some(Found { value, at }) = parts.missing_key
        && (parts.has_peers || !reader.has_problems())
    {
        let message = if parts.has_peers {
            lost_key(&value)
        } else {
            let path = value.display();
            format!(
                "no key: expected {path}; the server's first start makes it, or \
                 (umask 077; lostlove genkey > {path})"
            )
        };
        reader.problem(&at, message);
    }
    let (mut settings, warnings) = reader.finish(parts.settings)?;
    settings.warnings = warnings;
    Ok(settings)
}

fn judge_check(mut reader: Reader<'_>, parts: Parts) -> Result<ServerCheck, ConfigError> {
    if let Some(missing) = &parts.missing_key
        && parts.has_peers
    {
        reader.problem(&missing.at, lost_key(&missing.value));
    }
    let ((), warnings) = reader.finish(Some(()))?;
    let host = parts.settings.map(|settings| settings.host);
    let needs_firewall = host.as_ref().is_some_and(ServerHost::needs_firewall);
    let nat = host.and_then(|host| host.nat);
    Ok(ServerCheck {
        needs_firewall,
        missing_key: parts.missing_key.map(|found| found.value),
        nat_interfaces: nat.map_or_else(Vec::new, |nat| {
            nat.interfaces().into_iter().map(str::to_owned).collect()
        }),
        warnings,
    })
}

fn judge_start(mut reader: Reader<'_>, parts: Parts) -> Result<ServerFile, ConfigError> {
    match parts.missing_key {
        Some(Found { value, at }) if parts.has_peers => reader.problem(&at, lost_key(&value)),
        Some(missing) => {
            let ((), _) = reader.finish(Some(()))?;
            return Ok(ServerFile::KeyMissing(missing.value));
        }
        None => {}
    }
    let (mut settings, warnings) = reader.finish(parts.settings)?;
    settings.warnings = warnings;
    Ok(ServerFile::Complete(Box::new(settings)))
}

/// A client's profile is a file of another kind, and what it lacks here says nothing.
fn refuse_profile<'t>(reader: &Reader<'t>, root: &Section<'t>) -> Result<(), ConfigError> {
    let own = ["server", "peers"];
    if own.iter().any(|name| reader.place_of(root, name).is_some()) {
        return Ok(());
    }
    match reader.place_of(root, "client") {
        Some(at) => Err(reader.refuse(
            &at,
            "this is a client's profile; expected a server's configuration (a profile is for \
             lostlove-client --config FILE, on the client)",
        )),
        None => Ok(()),
    }
}

/// What to do about a file with peers and without a key: it comes from elsewhere, and its peers
/// know the server by its key.
fn lost_key(path: &Path) -> String {
    let path = path.display();
    format!(
        "no key: expected {path}; the peers' profiles name the key that was there, so put it back \
         (mode 0600); if it is lost, (umask 077; lostlove genkey > {path}) makes another, and every \
         profile needs its public key"
    )
}

/// What a server's file says.
pub(crate) struct Parts {
    /// The settings, without their warnings; or nothing, for there are problems or there is no key.
    settings: Option<ServerSettings>,
    /// The key that the file takes and that does not exist.
    missing_key: Option<Found<PathBuf>>,
    /// Whether there is anybody who knows the server's key.
    has_peers: bool,
}

pub(crate) fn settings<'t>(
    reader: &mut Reader<'t>,
    (root, files): (&Section<'t>, &[PeerFile<'t>]),
    path: &Path,
) -> Parts {
    let security = reader.section(root, "security");
    let (secret_key, missing_key) = match secret_key(reader, &security, path) {
        Key::Given(key) => (Some(key), None),
        Key::Missing(missing) => (None, Some(missing)),
        Key::Invalid => (None, None),
    };
    Parts {
        has_peers: reader.has_items(root, "peers") || !files.is_empty(),
        settings: with_key(reader, (root, files), secret_key),
        missing_key,
    }
}

/// The settings, with the problems of everything but the key.
fn with_key<'t>(
    reader: &mut Reader<'t>,
    (root, files): (&Section<'t>, &[PeerFile<'t>]),
    secret_key: Option<SecretKey>,
) -> Option<ServerSettings> {
    let server = reader.section(root, "server");
    let network = reader.section(root, "network");
    let security = reader.section(root, "security");
    let device = sections::device(reader, &network);
    let tunnel = tunnel::read(reader, &network, &device.mtu);
    let push = push(reader, &network, &tunnel);
    let limits = reader.section(root, "limits");
    let rate_limit = rate_limit(reader, &limits);
    let limits = self::limits(reader, &server, &limits);
    let peers = peers::read(reader, (root, files), &tunnel, secret_key.as_ref());
    tunnel::warn_of_crowd(reader, &network, &tunnel, peers.peers.len());
    let client_to_client = client_to_client(reader, &network, peers.first_route.as_ref());
    let listen = listen(reader, &server, &tunnel);
    let monitoring = sections::monitoring(reader, root, &MONITORING, &listen);
    let host = ServerHost {
        listen,
        public_address: public_address(reader, &server),
        forwarding: reader.read(&network, "forwarding", boolean).or(true),
        nat: forwarding::nat(reader, &network, &tunnel),
        inbound: forwarding::inbound(reader, &network, &tunnel, &peers.routes),
        client_access: forwarding::client_access(reader, &network, &push),
        peer_routes: peers.routes,
        worker_threads: reader
            .read(&server, "worker_threads", integer(0..=MAX_WORKER_THREADS))
            .or(0),
        monitoring,
        socket: device.socket,
        tun: TunOptions {
            name: device.name,
            mtu: tunnel.mtu,
            addresses: tunnel.addresses(),
            offload: device.offload,
        },
    };
    let suites = sections::suites(reader, &security);
    let rotation = sections::rotation(reader, &security);
    let probe_sources = probe_sources(reader, &security);
    let server = Server {
        secret_key: secret_key?,
        address_v4: tunnel.v4?,
        address_v6: tunnel.v6,
        client_to_client,
        probe_sources,
        push,
        rate_limit,
    };
    let common = Common {
        suites,
        rotation,
        limits,
        mtu: host.tun.mtu,
        compression: device.compression,
    };
    Some(ServerSettings {
        endpoint: ServerConfig { common, server },
        peers: peers.peers,
        host,
        warnings: Vec::new(),
    })
}

/// What came of looking for the server's key.
enum Key {
    Given(SecretKey),
    /// The file names none, and there is none beside it.
    Missing(Found<PathBuf>),
    /// The problem is noted.
    Invalid,
}

/// The key that the file names, or the one beside it.
fn secret_key<'t>(reader: &mut Reader<'t>, security: &Section<'t>, path: &Path) -> Key {
    let entry = match reader.secret(security, &PRIVATE_KEY) {
        Entry::Absent => {
            let at = security.missing(PRIVATE_KEY.file);
            let value = default_key_path(path);
            // What cannot be looked at exists as far as anybody knows: reading it says why not.
            if matches!(value.try_exists(), Ok(false)) {
                return Key::Missing(Found { value, at });
            }
            reader.key_file(&value, &at)
        }
        entry => entry,
    };
    match entry.given() {
        Some(found) => Key::Given(found.value),
        None => Key::Invalid,
    }
}

fn push<'t>(reader: &mut Reader<'t>, network: &Section<'t>, tunnel: &Tunnel) -> Push {
    let dns = reader.list(network, "dns", remote_host_address);
    let routes = reader.list(network, "push_routes", route);
    limit(reader, &dns, MAX_PUSHED_DNS);
    limit(reader, &routes, MAX_PUSHED_ROUTES);
    Push {
        dns: tunnel.carried(reader, dns, |address| *address),
        routes: tunnel.carried(reader, routes, IpNet::addr),
    }
}

/// Notes a problem at the first entry that clients could not be told of.
fn limit<T>(reader: &mut Reader<'_>, list: &Entry<Vec<Found<T>>>, max: usize) {
    if let Entry::Given(list) = list
        && let Some(surplus) = list.value.get(max)
    {
        let found = list.value.len();
        let message = format!("expected at most {max} entries, found {found}");
        reader.problem(&surplus.at, message);
    }
}

/// Off by default, which surprises whoever has networks behind peers.
fn client_to_client<'t>(
    reader: &mut Reader<'t>,
    network: &Section<'t>,
    first_route: Option<&At>,
) -> bool {
    let entry = reader.read(network, "client_to_client", boolean);
    if let (Entry::Absent, Some(at)) = (&entry, first_route) {
        let what = "other peers cannot reach it; set network.client_to_client to say whether \
                    they should";
        reader.warning(at, what);
    }
    entry.or(false)
}

/// `[limits]`, with what only a server has.
fn limits<'t>(reader: &mut Reader<'t>, server: &Section<'t>, section: &Section<'t>) -> Limits {
    let shared = sections::limits(reader, section, Limits::default().connection_timeout);
    let total = reader
        .read(section, "max_handshakes", integer(1..=65_535))
        .or(shared.max_handshakes);
    let per_source = reader.read(section, "max_handshakes_per_source", integer(1..=65_535));
    let memory = reader.read(section, "memory", integer(MIN_MEMORY..=MAX_MEMORY));
    if let Entry::Given(Found { value, at }) = &per_source
        && *value > total
    {
        let message = format!("expected at most max_handshakes ({total}), found {value}");
        reader.problem(at, message);
    }
    Limits {
        max_connections: reader
            .read(server, "max_connections", integer(1..=MAX_CONNECTIONS))
            .or(shared.max_connections),
        max_handshakes: total,
        max_handshakes_per_source: per_source.or(shared.max_handshakes_per_source.min(total)),
        memory: memory
            .given()
            .map(|found| usize::try_from(found.value).unwrap_or(usize::MAX)),
        ..shared
    }
}

fn rate_limit<'t>(reader: &mut Reader<'t>, limits: &Section<'t>) -> Option<u64> {
    let entry = reader.read(limits, "rate_limit_per_user", integer(0..=MAX_RATE));
    Some(entry.or(0)).filter(|rate| *rate > 0)
}

fn probe_sources<'t>(reader: &mut Reader<'t>, security: &Section<'t>) -> Vec<IpNet> {
    match reader.list(security, "probe_from", network) {
        Entry::Absent => vec![
            IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
            IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)),
        ],
        entry => values(entry),
    }
}

fn listen<'t>(reader: &mut Reader<'t>, server: &Section<'t>, tunnel: &Tunnel) -> Vec<SocketAddr> {
    // Later versions may add to this list.
    reader.read(server, "protocol", protocol);
    let port = reader
        .read(server, "port", integer(1..=u16::MAX))
        .or(DEFAULT_PORT);
    let addresses = bind_addresses(reader, server);
    for Found { value, at } in &addresses {
        let network = tunnel.network_for(*value);
        if let Some(network) = network.filter(|network| network.contains(value)) {
            let network = network.trunc();
            let message =
                format!("expected an address outside the tunnel ({network}), found {value}");
            reader.problem(at, message);
        }
    }
    refuse_covered(reader, &addresses);
    let addresses = addresses.into_iter().map(|found| found.value);
    let mut listen: Vec<_> = addresses
        .map(|address| SocketAddr::new(address, port))
        .collect();
    if listen.is_empty() {
        listen.push((Ipv4Addr::UNSPECIFIED, port).into());
        listen.push((Ipv6Addr::UNSPECIFIED, port).into());
    }
    listen
}

/// Where clients reach the server. Nothing of the server itself depends on it.
fn public_address<'t>(reader: &mut Reader<'t>, server: &Section<'t>) -> Option<ServerAddress> {
    let address = parsed::<ServerAddress>("a server such as \"vpn.example.org:8443\"");
    let entry = reader.read(server, "public_address", address);
    entry.given().map(|found| found.value)
}

/// One address or a list of them; empty for the default.
fn bind_addresses<'t>(reader: &mut Reader<'t>, server: &Section<'t>) -> Vec<Found<IpAddr>> {
    const KEY: &str = "bind_address";
    let address = |value: &DeValue<'_>| {
        let address = bindable(value)?;
        if address.is_multicast() {
            return Err(expected("a unicast address", value));
        }
        // A socket is for one family here.
        if address.is_ipv6() && address.to_canonical().is_ipv4() {
            let what = expected("an IPv4 address as such", value);
            return Err(format!(
                "{what}; did you mean \"{}\"?",
                address.to_canonical()
            ));
        }
        Ok(address)
    };
    let is_list = |value: &DeValue<'_>| Ok(value.is_array());
    match reader.read(server, KEY, is_list) {
        Entry::Given(Found { value: true, at }) => {
            let list = reader.list(server, KEY, address).or_else(Vec::new);
            if list.is_empty() {
                reader.problem(&at, "expected at least one address");
            }
            list
        }
        _ => reader
            .read(server, KEY, address)
            .given()
            .into_iter()
            .collect(),
    }
}

/// Two sockets of one port cannot listen on every address of a family and on one of these.
fn refuse_covered(reader: &mut Reader<'_>, addresses: &[Found<IpAddr>]) {
    for Found { value, at } in addresses {
        let covers = |other: &&Found<IpAddr>| {
            let any = other.value;
            any.is_unspecified() && any.is_ipv4() == value.is_ipv4() && any != *value
        };
        if let Some(any) = addresses.iter().find(covers) {
            let line = reader.line(&any.at, at);
            let message = format!("{value} is already among {} ({line})", any.value);
            reader.problem(at, message);
        }
    }
}

fn protocol(value: &DeValue<'_>) -> Result<(), String> {
    match value.as_str() {
        Some("tcp") => Ok(()),
        Some("udp" | "both") => Err(format!(
            "{} is not supported yet; expected \"tcp\"",
            found(value)
        )),
        _ => Err(expected("\"tcp\"", value)),
    }
}
