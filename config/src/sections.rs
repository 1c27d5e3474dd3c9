//! What server and client files have in common.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use lostlove_core::config::{
    Limits, MAX_MTU, MIN_MTU, MIN_ROTATION_INTERVAL, OffloadKind, Offloads, Rotation,
};
use lostlove_core::crypto::Suite;
use toml::de::DeValue;

use crate::reader::value::{
    algorithm_name, bindable, boolean, expected, fractional_seconds, integer, interface_name,
    one_of,
};
use crate::reader::{Entry, Found, Reader, Section};
use crate::settings::{LogFormat, LogLevel, MetricsListener, Monitoring, SocketOptions};

/// Default of `network.tun_name`.
pub(crate) const TUN_NAME: &str = "lostlove0";
/// Default of `network.mtu`, in bytes.
pub(crate) const MTU: u16 = 1400;
/// Default of `network.notsent_lowat`, in bytes: enough that a fast link never waits for the next
/// write, 1.3 ms of a link of 100 Mbit/s.
pub(crate) const NOTSENT_LOWAT: u32 = 16384;

/// A day: more is not what a timeout is for.
const MAX_SECONDS: u64 = 86_400;
/// The queue must hold a super-packet of 64 KiB and another that arrives meanwhile.
const MIN_QUEUE_BYTES: usize = 131_072;
const MAX_QUEUE_BYTES: usize = 64 * 1024 * 1024;
/// One full record still fits one key.
const MIN_ROTATE_BYTES: u64 = 100_000;
/// The hard limit is three times this, below the 2^38.5 bytes that one AES-GCM key may seal in
/// records of this size (RFC 8446, section 5.5).
const MAX_ROTATE_BYTES: u64 = 1 << 36;
/// Below one per second nothing flows, above no machine keeps up.
pub(crate) const MAX_RATE: u64 = 1_000_000_000_000;

/// Whole seconds.
pub(crate) fn seconds<'t>(
    reader: &mut Reader<'t>,
    section: &Section<'t>,
    key: &'static str,
    range: std::ops::RangeInclusive<u64>,
) -> Entry<Duration> {
    let entry = reader.read(section, key, integer(range));
    entry.map(Duration::from_secs)
}

/// `[limits]`, without what only a server has.
pub(crate) fn limits<'t>(
    reader: &mut Reader<'t>,
    section: &Section<'t>,
    default_timeout: Duration,
) -> Limits {
    let defaults = Limits::default();
    let timeout =
        seconds(reader, section, "connection_timeout", 3..=MAX_SECONDS).or(default_timeout);
    let keepalive = seconds(reader, section, "keepalive_interval", 1..=MAX_SECONDS).given();
    if let Some(Found { value, at }) = &keepalive
        && *value >= timeout
    {
        let (found, timeout) = (value.as_secs(), timeout.as_secs());
        let message = format!("expected less than connection_timeout ({timeout}), found {found}");
        reader.problem(at, message);
    }
    // A short timeout alone is a valid wish: three keepalives fit it.
    let keepalive = keepalive.map_or(defaults.keepalive_interval.min(timeout / 3), |k| k.value);
    let handshake_timeout = seconds(reader, section, "handshake_timeout", 1..=300);
    let drain_timeout = seconds(reader, section, "drain_timeout", 0..=60);
    let queue_bytes = integer(MIN_QUEUE_BYTES..=MAX_QUEUE_BYTES);
    let queue_age = reader.read(section, "queue_age_ms", integer(10..=10_000));
    Limits {
        connection_timeout: timeout,
        keepalive_interval: keepalive,
        handshake_timeout: handshake_timeout.or(defaults.handshake_timeout),
        drain_timeout: drain_timeout.or(defaults.drain_timeout),
        max_streams: reader
            .read(section, "max_streams_per_connection", integer(2..=u16::MAX))
            .or(defaults.max_streams),
        queue_bytes: reader
            .read(section, "queue_bytes", queue_bytes)
            .or(defaults.queue_bytes),
        queue_age: queue_age.map(Duration::from_millis).or(defaults.queue_age),
        ..defaults
    }
}

/// `suites`, best first.
pub(crate) fn suites<'t>(reader: &mut Reader<'t>, security: &Section<'t>) -> Vec<Suite> {
    let names = Suite::ALL.map(|suite| (suite.name(), suite));
    match reader.list(security, "suites", one_of(&names)) {
        Entry::Given(Found { value, at }) => {
            if value.is_empty() {
                reader.problem(&at, "expected at least one suite");
            }
            value.into_iter().map(|suite| suite.value).collect()
        }
        Entry::Absent | Entry::Invalid => Suite::ALL.to_vec(),
    }
}

/// `rotate_bytes` and `rotate_interval`.
pub(crate) fn rotation<'t>(reader: &mut Reader<'t>, security: &Section<'t>) -> Rotation {
    let defaults = Rotation::default();
    let bytes = integer(MIN_ROTATE_BYTES..=MAX_ROTATE_BYTES);
    let interval = fractional_seconds(MIN_ROTATION_INTERVAL..=Duration::from_secs(MAX_SECONDS));
    Rotation {
        bytes: reader
            .read(security, "rotate_bytes", bytes)
            .or(defaults.bytes),
        interval: reader
            .read(security, "rotate_interval", interval)
            .or(defaults.interval),
    }
}

/// What `[monitoring]` is without its keys.
pub(crate) struct MonitoringDefaults {
    pub(crate) enable_metrics: bool,
    pub(crate) metrics_port: u16,
}

/// `[monitoring]`. `listen` is where connections are accepted.
pub(crate) fn monitoring<'t>(
    reader: &mut Reader<'t>,
    root: &Section<'t>,
    defaults: &MonitoringDefaults,
    listen: &[SocketAddr],
) -> Monitoring {
    let section = reader.section(root, "monitoring");
    let enabled = reader
        .read(&section, "enable_metrics", boolean)
        .or(defaults.enable_metrics);
    let port = reader.read(&section, "metrics_port", integer(1..=u16::MAX));
    let port_is_chosen = matches!(port, Entry::Given(_));
    let address = reader.read(&section, "metrics_address", bindable);
    if let Entry::Given(Found { value, at }) = &address
        && enabled
        && !IpAddr::is_loopback(value)
    {
        reader.warning(at, format!("whoever reaches {value} can read the metrics"));
    }
    let at = match (&port, &address) {
        (Entry::Given(Found { at, .. }), _) | (_, Entry::Given(Found { at, .. })) => at.clone(),
        _ => section.missing("metrics_port"),
    };
    let metrics = SocketAddr::new(
        address.or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        port.or(defaults.metrics_port),
    );
    if enabled && let Some(listener) = listen.iter().find(|it| collide(**it, metrics)) {
        let message = format!(
            "expected another port than that of {listener}, where the server \
                               listens, found {metrics}"
        );
        reader.problem(&at, message);
    }
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    Monitoring {
        metrics: enabled.then_some(MetricsListener {
            address: metrics,
            port_is_chosen,
        }),
        metrics_per_peer: reader.read(&section, "metrics_per_peer", boolean).or(true),
        log_level: reader
            .read(&section, "log_level", one_of(&LogLevel::NAMES))
            .or(LogLevel::Info),
        log_format: reader
            .read(&section, "log_format", one_of(&formats))
            .or(LogFormat::Text),
    }
}

/// Whether a server that listens on `listener` leaves no place for metrics on `metrics`. Of the
/// wildcards, `::` is for IPv6 alone where connections are accepted, and for both families where
/// metrics are.
fn collide(listener: SocketAddr, metrics: SocketAddr) -> bool {
    let (accepting, serving) = (listener.ip(), metrics.ip().to_canonical());
    let everywhere = serving == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let same_family = accepting.is_ipv4() == serving.is_ipv4();
    let same_address =
        accepting == serving || accepting.is_unspecified() || serving.is_unspecified();
    listener.port() == metrics.port() && (everywhere || same_family && same_address)
}

/// The keys of `[network]` that a server and a client share.
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) mtu: Entry<u16>,
    pub(crate) offload: Offloads,
    pub(crate) compression: bool,
    pub(crate) socket: SocketOptions,
}

/// The tunnel device and the sockets.
pub(crate) fn device<'t>(reader: &mut Reader<'t>, network: &Section<'t>) -> Device {
    let lowat = integer(4096..=16 * 1024 * 1024);
    let congestion_control = reader.read(network, "congestion_control", algorithm_name);
    Device {
        name: reader
            .read(network, "tun_name", interface_name)
            .or_else(|| TUN_NAME.to_owned()),
        mtu: reader.read(network, "mtu", integer(MIN_MTU..=MAX_MTU)),
        offload: offload(reader, network),
        compression: reader.read(network, "compression", boolean).or(false),
        socket: SocketOptions {
            congestion_control: congestion_control.given().map(|found| found.value),
            notsent_lowat: reader
                .read(network, "notsent_lowat", lowat)
                .or(NOTSENT_LOWAT),
        },
    }
}

/// All kinds of super-packets, none, or those listed.
fn offload<'t>(reader: &mut Reader<'t>, network: &Section<'t>) -> Offloads {
    const KEY: &str = "offload";
    let names = OffloadKind::ALL.map(|kind| (kind.as_str(), kind));
    let all_or_listed = |value: &DeValue<'_>| match value {
        DeValue::Array(_) => Ok(None),
        DeValue::Boolean(all) => Ok(Some(*all)),
        _ => Err(expected("true, false or a list such as [\"tcp\"]", value)),
    };
    match reader.read(network, KEY, all_or_listed) {
        Entry::Given(Found { value: None, .. }) => {
            let kinds = values(reader.list(network, KEY, one_of(&names)));
            Offloads {
                tcp: kinds.contains(&OffloadKind::Tcp),
                udp: kinds.contains(&OffloadKind::Udp),
            }
        }
        Entry::Given(Found {
            value: Some(false), ..
        }) => Offloads::NONE,
        Entry::Given(_) | Entry::Absent | Entry::Invalid => Offloads::ALL,
    }
}

/// Values without their places.
pub(crate) fn values<T>(entry: Entry<Vec<Found<T>>>) -> Vec<T> {
    let items = entry.or_else(Vec::new);
    items.into_iter().map(|item| item.value).collect()
}
