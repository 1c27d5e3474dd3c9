//! Kernel parameters below `/proc/sys`. A key is a path there, such as `net/ipv4/ip_forward`.

use std::fs;
use std::io;

use super::error::NetError;
use super::setup::Paths;

pub(super) const IPV4_FORWARD: &str = "net/ipv4/ip_forward";
pub(super) const IPV6_FORWARD: &str = "net/ipv6/conf/all/forwarding";
pub(super) const SRC_VALID_MARK: &str = "net/ipv4/conf/all/src_valid_mark";
/// Whether an accepted connection's packets have the mark that its first one came with.
pub(super) const TCP_FWMARK_ACCEPT: &str = "net/ipv4/tcp_fwmark_accept";
const IPV4_CONF: &str = "net/ipv4/conf";
const IPV6_CONF: &str = "net/ipv6/conf";

/// Reads a parameter.
pub(super) fn read(paths: &Paths, key: &str) -> io::Result<String> {
    let value = fs::read_to_string(paths.proc_sys.join(key))?;
    Ok(value.trim_end().to_owned())
}

/// Sets a parameter.
pub(super) fn write(paths: &Paths, key: &str, value: &str) -> Result<(), NetError> {
    fs::write(paths.proc_sys.join(key), value).map_err(|source| NetError::Sysctl {
        key: key.to_owned(),
        value: value.to_owned(),
        source,
    })
}

/// Whether a parameter that was set to `wanted` still works as such: for a switch, anything but 0 is
/// on. `accept_ra` was 1, which the kernel takes for 0 where it forwards; who has written 0 since
/// listens to routers himself.
pub(super) fn is_in_force(key: &str, found: &str, wanted: &str) -> bool {
    match wanted {
        "2" if key.ends_with("/accept_ra") => found != "1",
        "1" => found != "0",
        _ => found == wanted,
    }
}

/// The parameter that this one goes with: the kernel writes it anew whenever that is switched on or off,
/// or it makes sense beside that alone.
pub(super) fn follows(key: &str) -> Option<&'static str> {
    let (folder, name) = key.rsplit_once('/')?;
    match (
        folder.strip_prefix(IPV4_CONF),
        folder.strip_prefix(IPV6_CONF),
    ) {
        (Some("/all"), _) => (name == "accept_redirects").then_some(IPV4_FORWARD),
        (Some(_), _) => (name == "forwarding").then_some(IPV4_FORWARD),
        (_, Some("/all")) => None,
        (_, Some(_)) => ["forwarding", "accept_ra"]
            .contains(&name)
            .then_some(IPV6_FORWARD),
        _ => None,
    }
}

/// Whether the parameter lets packets in that a strict reverse path filter would drop, as tunnels need
/// it.
pub(super) fn is_for_tunnels(key: &str) -> bool {
    key == SRC_VALID_MARK || key == rp_filter_key("all")
}

/// What the kernel writes itself when it is told to forward no more, with the values that it writes: who
/// has others there loses them (`inet_forward_change` and `addrconf_fixup_forwarding`).
pub(super) fn switched_off_with(
    paths: &Paths,
    key: &str,
    tun: &str,
) -> Vec<(String, &'static str)> {
    let (conf, mut keys) = match key {
        IPV4_FORWARD => {
            let redirects = format!("{IPV4_CONF}/all/accept_redirects");
            (IPV4_CONF, vec![(redirects, "1")])
        }
        IPV6_FORWARD => (IPV6_CONF, Vec::new()),
        _ => return Vec::new(),
    };
    let interfaces = entries(paths, conf);
    let interfaces = interfaces
        .iter()
        .filter(|name| *name != "all" && *name != tun);
    keys.extend(interfaces.map(|name| (format!("{conf}/{name}/forwarding"), "0")));
    keys
}

/// The key that has IPv4 packets forwarded that come from an interface.
pub(super) fn forwarding_key(interface: &str) -> String {
    format!("{IPV4_CONF}/{interface}/forwarding")
}

/// Whether the kernel has IPv6 at all, even if it is switched off for some interfaces.
pub(super) fn knows_ipv6(paths: &Paths) -> bool {
    paths.proc_sys.join(IPV6_CONF).is_dir()
}

/// Whether an interface can have IPv6 addresses, at least once its MTU is large enough: below, it has no
/// value of its own, and gets that of new ones.
pub(super) fn may_have_ipv6(paths: &Paths, interface: &str) -> bool {
    let value = read(paths, &disable_ipv6_key(interface));
    let value = value.or_else(|_| read(paths, &disable_ipv6_key("default")));
    value.is_ok_and(|value| value == "0")
}

/// Whether this interface can have IPv6 addresses.
pub(super) fn has_ipv6_of(paths: &Paths, interface: &str) -> bool {
    read(paths, &disable_ipv6_key(interface)).is_ok_and(|value| value == "0")
}

/// Whether the kernel drops what arrives on another interface than the answer would take
/// (`rp_filter=1`; the larger of an interface's value and that of `all` counts).
pub(super) fn has_strict_rp_filter(paths: &Paths) -> bool {
    let all = read(paths, &rp_filter_key("all")).unwrap_or_default();
    let strict = |name: &str| {
        let own = read(paths, &rp_filter_key(name)).unwrap_or_default();
        all.as_str().max(own.as_str()) == "1"
    };
    interfaces(paths, IPV4_CONF).iter().any(|name| strict(name))
}

/// The key of an interface's reverse path filter.
pub(super) fn rp_filter_key(interface: &str) -> String {
    format!("{IPV4_CONF}/{interface}/rp_filter")
}

/// The key that takes IPv6 away from an interface.
pub(super) fn disable_ipv6_key(interface: &str) -> String {
    format!("{IPV6_CONF}/{interface}/disable_ipv6")
}

/// The key that keeps the kernel from giving an interface a link-local address.
pub(super) fn addr_gen_mode_key(interface: &str) -> String {
    format!("{IPV6_CONF}/{interface}/addr_gen_mode")
}

/// The keys that say whether interfaces take router advertisements, but for that of `tun`.
pub(super) fn accept_ra_keys(paths: &Paths, tun: &str) -> Vec<String> {
    interfaces(paths, IPV6_CONF)
        .iter()
        .filter(|name| *name != tun)
        .map(|name| format!("{IPV6_CONF}/{name}/accept_ra"))
        .collect()
}

/// The names of this host's interfaces, but for loopback.
pub(super) fn all_interfaces(paths: &Paths) -> Vec<String> {
    interfaces(paths, IPV4_CONF)
}

fn interfaces(paths: &Paths, conf: &str) -> Vec<String> {
    let mut names = entries(paths, conf);
    names.retain(|name| !matches!(name.as_str(), "all" | "default" | "lo"));
    names
}

fn entries(paths: &Paths, conf: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(paths.proc_sys.join(conf)) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect()
}
