//! One TOML value into one typed value, or into the message that says what was expected.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use lostlove_core::crypto::{KeyError, PublicKey};
use lostlove_core::ip::special_range;
use toml::de::DeValue;

/// Longer values are cut in messages.
const MAX_QUOTED_CHARS: usize = 48;
/// One slip of the keys (a wrong, missing, additional or swapped letter) is likely in a short name;
/// a longer name may have one more for every so many of its characters.
const CHARS_PER_SLIP: usize = 4;
/// Below this Jaro-Winkler similarity a name is not another one with words missing or added.
const MIN_SIMILARITY: f64 = 0.82;
/// IFNAMSIZ and TCP_CA_NAME_MAX without the terminating zero.
const MAX_KERNEL_NAME_BYTES: usize = 15;
const MAX_PEER_NAME_CHARS: usize = 64;

/// `expected {what}, found {value}`.
pub(crate) fn expected(what: impl std::fmt::Display, value: &DeValue<'_>) -> String {
    format!("expected {what}, found {}", found(value))
}

/// A value as messages show it: short, and safe to print on a terminal.
pub(crate) fn found(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => quoted(text),
        DeValue::Integer(number) => cut(&number.to_string()),
        DeValue::Float(number) => cut(&number.to_string()),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// A text in quotes, cut and escaped.
pub(crate) fn quoted(text: &str) -> String {
    format!("{:?}", cut(text))
}

/// A key as TOML writes it, cut and escaped.
pub(crate) fn bare(key: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !key.is_empty() && key.len() <= MAX_QUOTED_CHARS && key.chars().all(plain) {
        key.to_owned()
    } else {
        quoted(key)
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTED_CHARS) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// The candidate that `name` is most likely a misspelling of: the one with the fewest slips, or
/// else the one that begins most alike.
pub(crate) fn nearest<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let name = name.to_lowercase();
    let max_slips = (name.chars().count() / CHARS_PER_SLIP).max(1);
    let rated = candidates.into_iter().map(|candidate| {
        let slips = strsim::osa_distance(&name, candidate);
        let slips = if slips <= max_slips {
            slips
        } else {
            usize::MAX
        };
        (slips, strsim::jaro_winkler(&name, candidate), candidate)
    });
    rated
        .filter(|(slips, similarity, _)| *slips <= max_slips || *similarity >= MIN_SIMILARITY)
        .min_by(|(a_slips, a, _), (b_slips, b, _)| a_slips.cmp(b_slips).then(b.total_cmp(a)))
        .map(|(_, _, candidate)| candidate)
}

/// A whole number in `range`.
pub(crate) fn integer<T>(
    range: RangeInclusive<T>,
) -> impl Fn(&DeValue<'_>) -> Result<T, String> + Clone
where
    T: Copy + PartialOrd + TryFrom<i128> + std::fmt::Display,
{
    move |value| {
        let number = value.as_integer().and_then(|number| {
            let number = i128::from_str_radix(number.as_str(), number.radix()).ok()?;
            T::try_from(number).ok()
        });
        number
            .filter(|number| range.contains(number))
            .ok_or_else(|| expected(format_args!("{} to {}", range.start(), range.end()), value))
    }
}

/// Seconds, also with a fraction, in `range`.
pub(crate) fn fractional_seconds(
    range: RangeInclusive<Duration>,
) -> impl Fn(&DeValue<'_>) -> Result<Duration, String> + Clone {
    move |value| {
        let seconds = match value {
            DeValue::Float(number) => number.as_str().parse().ok(),
            DeValue::Integer(_) => integer(0..=u32::MAX)(value).ok().map(f64::from),
            _ => None,
        };
        seconds
            .and_then(|seconds: f64| Duration::try_from_secs_f64(seconds).ok())
            .filter(|duration| range.contains(duration))
            .ok_or_else(|| {
                let (least, most) = (range.start().as_secs_f64(), range.end().as_secs_f64());
                expected(format_args!("{least} to {most}"), value)
            })
    }
}

/// `true` or `false`.
pub(crate) fn boolean(value: &DeValue<'_>) -> Result<bool, String> {
    value
        .as_bool()
        .ok_or_else(|| expected("true or false", value))
}

/// A string that parses as `T`.
pub(crate) fn parsed<T: FromStr>(
    what: &'static str,
) -> impl Fn(&DeValue<'_>) -> Result<T, String> + Clone {
    move |value| {
        let parsed = value.as_str().and_then(|text| text.parse().ok());
        parsed.ok_or_else(|| expected(what, value))
    }
}

/// An address that a socket can be bound to without more.
pub(crate) fn bindable(value: &DeValue<'_>) -> Result<IpAddr, String> {
    let address = parsed("an IP address")(value)?;
    match address {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            Err(expected("an address that needs no interface", value))
        }
        address => Ok(address),
    }
}

/// One of a few names.
pub(crate) fn one_of<'n, T: Copy>(
    names: &'n [(&'static str, T)],
) -> impl Fn(&DeValue<'_>) -> Result<T, String> + Clone + 'n {
    move |value| {
        let text = value.as_str();
        if let Some((_, value)) = names.iter().find(|(name, _)| Some(*name) == text) {
            return Ok(*value);
        }
        let all: Vec<String> = names.iter().map(|(name, _)| format!("{name:?}")).collect();
        let message = expected(all.join(" or "), value);
        let nearest = text.and_then(|text| nearest(text, names.iter().map(|(name, _)| *name)));
        Err(match nearest {
            Some(nearest) => format!("{message}; did you mean {nearest:?}?"),
            None => message,
        })
    }
}

/// A network as address and prefix length, without host bits; an address alone is a network of
/// one.
pub(crate) fn network(value: &DeValue<'_>) -> Result<IpNet, String> {
    const EXPECTED: &str = "a network such as \"10.0.0.0/8\"";
    let text = value.as_str().ok_or_else(|| expected(EXPECTED, value))?;
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(address));
    }
    let network: IpNet = text.parse().map_err(|_| expected(EXPECTED, value))?;
    if network == network.trunc() {
        return Ok(network);
    }
    let message = expected("a network without host bits", value);
    let nearest = network.trunc();
    Err(format!("{message}; did you mean \"{nearest}\"?"))
}

/// A network that can be routed into a tunnel.
pub(crate) fn route(value: &DeValue<'_>) -> Result<IpNet, String> {
    let network = network(value)?;
    if special_range(network).is_some() {
        return Err(expected("a network of routable unicast addresses", value));
    }
    Ok(network)
}

/// The address of a host that others can reach.
pub(crate) fn remote_host_address(value: &DeValue<'_>) -> Result<IpAddr, String> {
    let address = host_address(value)?;
    if special_range(IpNet::from(address)).is_some() {
        return Err(expected("an address that clients can reach", value));
    }
    Ok(address)
}

/// The address of one host.
pub(crate) fn host_address(value: &DeValue<'_>) -> Result<IpAddr, String> {
    let address: IpAddr = parsed("an IP address")(value)?;
    if address.is_multicast() || address.is_unspecified() {
        return Err(expected("the address of one host", value));
    }
    Ok(address)
}

/// A name that Linux takes for a network interface.
pub(crate) fn interface_name(value: &DeValue<'_>) -> Result<String, String> {
    kernel_name(value, "an interface name")
}

/// A name that Linux may know a congestion control algorithm by.
pub(crate) fn algorithm_name(value: &DeValue<'_>) -> Result<String, String> {
    kernel_name(value, "an algorithm name")
}

fn kernel_name(value: &DeValue<'_>, what: &str) -> Result<String, String> {
    let valid = |name: &&str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        (1..=MAX_KERNEL_NAME_BYTES).contains(&name.len())
            && name.chars().all(plain)
            && !matches!(*name, "." | "..")
    };
    let name = value.as_str().filter(valid).map(str::to_owned);
    name.ok_or_else(|| {
        let what = format!("{what} of 1 to 15 letters, digits, '.', '_' or '-'");
        expected(what, value)
    })
}

/// Whether `name` may name a peer: it must be at home in logs, metric labels and file names.
pub fn is_peer_name(name: &str) -> bool {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '@');
    name.chars().count() <= MAX_PEER_NAME_CHARS
        && name.starts_with(char::is_alphanumeric)
        && name.chars().all(plain)
}

/// What [`is_peer_name`] asks for.
pub(crate) const PEER_NAME: &str =
    "a name of 1 to 64 letters, digits, '.', '_', '-' or '@', a letter or digit first";

/// The name of a peer.
pub(crate) fn peer_name(value: &DeValue<'_>) -> Result<String, String> {
    match value.as_str() {
        Some(name) if is_peer_name(name) => Ok(name.to_owned()),
        _ => Err(expected(PEER_NAME, value)),
    }
}

/// A public key. The message does not repeat the text: it may be a secret key, misplaced.
pub(crate) fn public_key(value: &DeValue<'_>) -> Result<PublicKey, String> {
    match value.as_str().map(str::parse) {
        Some(Ok(key)) => Ok(key),
        Some(Err(KeyError::LowOrder)) => {
            Err("expected a usable public key, found one of low order".to_owned())
        }
        Some(Err(KeyError::Malformed)) | None => {
            Err("expected a public key of 44 characters of base64 (32 bytes)".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> DeValue<'_> {
        DeValue::parse(text).unwrap().into_inner()
    }

    #[test]
    fn integers_stay_in_their_range() {
        let mtu = integer(576_u16..=9000);
        assert_eq!(mtu(&value("576")), Ok(576));
        assert_eq!(mtu(&value("0x2328")), Ok(9000));
        for (text, found) in [
            ("575", "575"),
            ("9001", "9001"),
            ("-1", "-1"),
            ("65536", "65536"),
            ("1400.0", "1400.0"),
            ("\"1400\"", "\"1400\""),
            ("[1400]", "a list"),
            ("{}", "a table"),
            ("1979-05-27", "a date"),
            (
                "99999999999999999999999999999999999999999999",
                "99999999999999999999999999999999999999999999",
            ),
        ] {
            let message = format!("expected 576 to 9000, found {found}");
            assert_eq!(mtu(&value(text)), Err(message), "{text}");
        }
    }

    #[test]
    fn networks_have_no_host_bits() {
        assert_eq!(
            network(&value("'10.0.0.0/8'")),
            Ok("10.0.0.0/8".parse().unwrap())
        );
        assert_eq!(
            network(&value("'fd00::7'")),
            Ok("fd00::7/128".parse().unwrap())
        );
        assert_eq!(
            network(&value("'10.1.2.3/8'")).unwrap_err(),
            "expected a network without host bits, found \"10.1.2.3/8\"; \
             did you mean \"10.0.0.0/8\"?"
        );
        assert_eq!(
            network(&value("'10.0.0.0/33'")).unwrap_err(),
            "expected a network such as \"10.0.0.0/8\", found \"10.0.0.0/33\""
        );
    }

    #[test]
    fn routes_are_unicast_and_beyond_this_machine() {
        for text in ["10.0.0.0/8", "0.0.0.0/0", "::/0", "2001:db8::/32"] {
            assert!(route(&value(&format!("'{text}'"))).is_ok(), "{text}");
        }
        for text in [
            "224.0.0.0/4",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "ff00::/8",
            "::1/128",
            "fe80::/10",
            "::ffff:10.0.0.0/104",
            "0.0.0.0/8",
            "240.0.0.0/4",
        ] {
            let message = route(&value(&format!("'{text}'"))).unwrap_err();
            let expected = "expected a network of routable unicast addresses";
            assert!(message.starts_with(expected), "{text}: {message}");
        }
    }

    /// What people write, and what they mean; none where nothing is like it.
    type Misspelled = (&'static str, Option<&'static str>);

    /// Keys of sections, and what people write instead.
    const MISSPELLED: &[(&[&str], &[Misspelled])] = &[
        (
            &[
                "mtu",
                "nat",
                "dns",
                "tun_name",
                "tun_address",
                "tun_address_v6",
                "push_routes",
            ],
            &[
                ("mut", Some("mtu")),
                ("mt", Some("mtu")),
                ("MTU", Some("mtu")),
                ("mtuu", Some("mtu")),
                ("nta", Some("nat")),
                ("natt", Some("nat")),
                ("dsn", Some("dns")),
                ("dn", Some("dns")),
                ("tun_nmae", Some("tun_name")),
                ("tunname", Some("tun_name")),
                ("tun", Some("tun_name")),
                ("tun_adress", Some("tun_address")),
                ("tun_adres_v6", Some("tun_address_v6")),
                ("push_route", Some("push_routes")),
                ("puhs_ruotes", Some("push_routes")),
                ("ttl", None),
                ("ip", None),
                ("key", None),
                ("vlan", None),
                ("", None),
            ],
        ),
        (
            &[
                "bind_address",
                "port",
                "protocol",
                "max_connections",
                "worker_threads",
            ],
            &[
                ("prot", Some("port")),
                ("Port", Some("port")),
                ("potr", Some("port")),
                ("proto", Some("protocol")),
                ("bind_adress", Some("bind_address")),
                ("bind", Some("bind_address")),
                ("maxconnections", Some("max_connections")),
                ("max_conecctions", Some("max_connections")),
                ("workers", Some("worker_threads")),
                ("host", None),
                ("listen", None),
                ("colour", None),
                ("name", None),
            ],
        ),
        (
            &["server", "routes", "dns", "reconnect_min", "reconnect_max"],
            &[
                ("sever", Some("server")),
                ("srever", Some("server")),
                ("ruotes", Some("routes")),
                ("route", Some("routes")),
                ("reconect_max", Some("reconnect_max")),
                ("remote", None),
                ("address", None),
            ],
        ),
        (
            &[
                "rate_limit_per_user",
                "max_streams_per_connection",
                "drain_timeout",
            ],
            &[
                ("rate_limit", Some("rate_limit_per_user")),
                ("max_streams", Some("max_streams_per_connection")),
                ("drain_timoeut", Some("drain_timeout")),
                ("timeout", None),
                ("burst", None),
            ],
        ),
        (
            &["error", "warn", "info", "debug", "trace"],
            &[
                ("warning", Some("warn")),
                ("err", Some("error")),
                ("inof", Some("info")),
                ("verbose", None),
                ("off", None),
                ("notice", None),
            ],
        ),
    ];

    #[test]
    fn names_that_are_close_are_suggested_and_others_are_not() {
        for (keys, names) in MISSPELLED {
            for (name, expected) in *names {
                let found = nearest(name, keys.iter().copied());
                assert_eq!(found, *expected, "{name} among {keys:?}");
            }
        }
    }

    #[test]
    fn of_two_names_the_one_with_fewer_slips_is_suggested() {
        let keys = ["reconnect_min", "reconnect_max", "log_level", "log_format"];
        assert_eq!(nearest("reconnect_mix", keys), Some("reconnect_min"));
        assert_eq!(nearest("reconnect_mxa", keys), Some("reconnect_max"));
        assert_eq!(nearest("log_formta", keys), Some("log_format"));
    }

    #[test]
    fn long_and_unprintable_texts_are_cut_and_escaped() {
        let long = "x".repeat(100);
        assert_eq!(quoted(&long), format!("\"{}...\"", "x".repeat(48)));
        assert_eq!(quoted("a\u{1b}[31m"), "\"a\\u{1b}[31m\"");
        assert_eq!(bare("a b"), "\"a b\"");
    }

    #[test]
    fn interface_and_peer_names_are_plain() {
        assert!(interface_name(&value("'lostlove0'")).is_ok());
        for name in ["", "..", "a/b", "a b", "tun%d", "abcdefghijklmnop"] {
            assert!(
                interface_name(&value(&format!("'{name}'"))).is_err(),
                "{name}"
            );
        }
        assert!(is_peer_name("анна-laptop.home"));
        for name in ["", ".", "-a", "a/b", "a\"b", "a b", "a\nb", &"x".repeat(65)] {
            assert!(!is_peer_name(name), "{name}");
        }
    }
}
