#!/usr/bin/env bash
# An interface whose MTU was below 1280 for a moment has none of its IPv6 settings any more.
#
# One would guess: below 1280, IPv6's least, the interface loses its IPv6 addresses and routes (that is well
# known), and what was set below /proc/sys/net/ipv6/conf/NAME stays, as it stays when the interface goes
# down and as IPv4's settings do.
#
# What happens: the kernel throws away all that IPv6 has of the interface, settings included, and makes it
# anew from conf/default once the MTU is large enough. disable_ipv6, accept_ra, addr_gen_mode, use_tempaddr,
# hop_limit are back at the default, no message of the kernel names them, and an interface with
# IPv6 switched off has a link-local address. What sysctl.d or a network manager set once is not set again.
#
# Version: seen on Linux 6.18.44, 30 November 2026.
#
# For a VPN: its device's settings (no link-local address, IPv6 off where the tunnel has none) and those that it
# made of others (accept_ra=2 on a host that forwards) have to be looked at again after each change of an
# MTU, by reading them: putting addresses and routes back is half of it.
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
import os, platform, subprocess, sys

SETTINGS = {"disable_ipv6": "1", "accept_ra": "0", "addr_gen_mode": "1", "use_tempaddr": "1", "hop_limit": "5"}


def ip(command):
    return subprocess.run(["ip", *command.split()], check=True, capture_output=True, text=True).stdout


def conf(family, interface, name):
    return f"/proc/sys/net/{family}/conf/{interface}/{name}"


def read(path):
    with open(path) as file:
        return file.read().strip()


def write(path, value):
    with open(path, "w") as file:
        file.write(value)


def settings(interface):
    return {name: read(conf("ipv6", interface, name)) for name in SETTINGS}


def main():
    if not os.path.exists(conf("ipv6", "default", "accept_ra")):
        print("cannot run here: no IPv6", file=sys.stderr)
        sys.exit(77)
    ip("link add name v0 type veth peer name v1")
    ip("link set dev v1 up")
    ip("link set dev v0 up")
    default = settings("default")
    for name, value in SETTINGS.items():
        write(conf("ipv6", "v0", name), value)
    write(conf("ipv4", "v0", "rp_filter"), "2")
    print(f"Linux {platform.release()}; settings of v0, after")
    seen = {}
    for what, commands in (
        ("being down", ("link set dev v0 down", "link set dev v0 up")),
        ("MTU 1280", ("link set dev v0 mtu 1280", "link set dev v0 mtu 1500")),
        ("MTU 1279", ("link set dev v0 mtu 1279", "link set dev v0 mtu 1500")),
    ):
        for command in commands:
            ip(command)
        seen[what] = settings("v0")
        address = "fe80:" in ip("-6 addr show dev v0")
        seen[what]["link-local address"] = address
        print(f"  {what} for a moment: " + ", ".join(f"{k}={v}" for k, v in seen[what].items()))
    changes = []
    for what in ("being down", "MTU 1280"):
        if seen[what] != {**SETTINGS, "link-local address": False}:
            changes.append(f"{what} changes them, too")
    if seen["MTU 1279"] != {**default, "link-local address": True}:
        changes.append("MTU 1279 does not bring the defaults back")
    if read(conf("ipv4", "v0", "rp_filter")) != "2":
        changes.append("IPv4's are lost, too")
    if changes:
        sys.exit("CHANGED: " + "; ".join(changes))
    print("as described: below 1280 all IPv6 settings of an interface go back to conf/default")


main()
PYTHON
