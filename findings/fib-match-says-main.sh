#!/usr/bin/env bash
# The route that an IPv4 look-up matched is said to stand in the main table, wherever it stands.
#
# One would guess: RTM_GETROUTE with RTM_F_FIB_MATCH answers with the entry of the routing table that a
# packet would take, as it stands there: its prefix, its next hop, and the table that policy rules led to.
#
# What happens: the prefix is the entry's own, and the table is 254, main, in the header and in RTA_TABLE. Only
# with RTM_F_LOOKUP_TABLE as well, a flag that is about the answer's table and older than RTM_F_FIB_MATCH,
# IPv4 says the table that the entry stands in. IPv6 says it always, with either flag or none.
#
# Version: seen on Linux 6.18.44, 30 November 2026.
#
# For a VPN: who asks the kernel whether packets for the internet still take the tunnel's own table, and
# forgets the second flag, finds somebody else's route in main where its own is in force, and only for IPv4: a
# test with IPv6 alone does not show it.
set -euo pipefail

# cannot WHY: this machine cannot show the finding, which says nothing about it.
cannot() {
    echo "cannot run here: $*" >&2
    exit 77
}

# sandboxed COMMAND...: in a folder, a network and a PID namespace of its own, which end with it. As root,
# or as a user who may make user namespaces.
sandboxed() {
    local spaces=(--net --pid --fork --kill-child --mount --mount-proc)
    [ "$(id -u)" = 0 ] || spaces+=(--user --map-root-user)
    unshare "${spaces[@]}" true || cannot "no network namespace of its own"
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    (cd "$folder" && PYTHONDONTWRITEBYTECODE=1 unshare "${spaces[@]}" timeout -k 1 120 "$@")
}

sandboxed python3 - <<'PYTHON'
import platform, socket, struct, subprocess, sys

# <linux/rtnetlink.h>
RTM_NEWROUTE, RTM_GETROUTE = 24, 26
RTM_F_LOOKUP_TABLE, RTM_F_FIB_MATCH = 0x1000, 0x2000
RTA_DST, RTA_TABLE = 1, 15
MAIN, OWN = 254, 77


def ip(command):
    subprocess.run(["ip", *command.split()], check=True)


def ask(family, destination, flags):
    """Prefix length and table of the route that the kernel answers with."""
    address = socket.inet_pton(family, destination)
    message = struct.pack("=8BI", family, 8 * len(address), 0, 0, 0, 0, 0, 0, flags)
    message += struct.pack("=HH", 4 + len(address), RTA_DST) + address
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        netlink.bind((0, 0))
        netlink.send(struct.pack("=IHHII", 16 + len(message), RTM_GETROUTE, 1, 1, 0) + message)
        answer = netlink.recv(8192)
    length, kind = struct.unpack_from("=IH", answer)
    if kind != RTM_NEWROUTE:
        sys.exit(f"CHANGED: no route in answer to flags {flags:#x}, but message {kind}")
    prefix_length, table, at = answer[17], answer[20], 28
    while at < length:
        size, attribute = struct.unpack_from("=HH", answer, at)
        if attribute == RTA_TABLE:
            table = struct.unpack_from("=I", answer, at + 4)[0]
        at += (size + 3) & ~3
    return prefix_length, table


def main():
    ip("link add v0 type veth peer name v1")
    for interface in ("v0", "v1"):
        ip(f"link set {interface} up")
    ip("addr add 192.0.2.1/24 dev v0")
    ip("-6 addr add 2001:db8::1/64 dev v0 nodad")
    for family, network, router in (("-4", "198.51.100.0/24", "192.0.2.2"), ("-6", "2001:db8:1::/48", "2001:db8::2")):
        ip(f"{family} route add {network} via {router} dev v0 table {OWN}")
        ip(f"{family} rule add pref 100 lookup {OWN}")
    print(f"Linux {platform.release()}; prefix length and table of a route in table {OWN}")
    seen = {}
    for name, family, destination in (("IPv4", socket.AF_INET, "198.51.100.7"), ("IPv6", socket.AF_INET6, "2001:db8:1::7")):
        for flags, said in ((RTM_F_FIB_MATCH, "FIB_MATCH"), (RTM_F_FIB_MATCH | RTM_F_LOOKUP_TABLE, "FIB_MATCH and LOOKUP_TABLE")):
            seen[name, said] = ask(family, destination, flags)
            print(f"  {name}, {said}: /{seen[name, said][0]} in table {seen[name, said][1]}")
    expected = {
        ("IPv4", "FIB_MATCH"): (24, MAIN),
        ("IPv4", "FIB_MATCH and LOOKUP_TABLE"): (24, OWN),
        ("IPv6", "FIB_MATCH"): (48, OWN),
        ("IPv6", "FIB_MATCH and LOOKUP_TABLE"): (48, OWN),
    }
    if seen != expected:
        sys.exit(f"CHANGED: expected {expected}")
    print("as described: IPv4 says main for the route that it matched, unless asked for the table as well")


main()
PYTHON
