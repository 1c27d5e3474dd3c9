#!/usr/bin/env bash
# IP_PMTUDISC_PROBE sets DF on what UDP and raw sockets send, and clears it on what TCP sends.
#
# One would guess: the value means the same for all sockets. ip(7) gives it one line, DF set and the path
# MTU ignored, and TCP segments have DF anyway, from the SYN on, so that for TCP nothing changes.
#
# What happens: TCP asks another function for DF than UDP does, and that one knows IP_PMTUDISC_DO and
# IP_PMTUDISC_WANT only. With PROBE every segment goes out without DF, the SYN included, as if
# path MTU discovery was switched off (IP_PMTUDISC_DONT). A datagram of the same size, to the same
# address and with the same value has it.
#
# Version: seen on Linux 6.18.44, 30 November 2026.
#
# For a VPN: a helper that sets PROBE on all its sockets, as it should for UDP, has its TCP segments
# fragmented at the first narrow hop, and no router tells, as "fragmentation needed" answers DF alone.
# On the other hand it is a way past a hop that drops those messages, if one can do with fragments.
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

[ -w /dev/net/tun ] || cannot "/dev/net/tun is not there or not writable for this user"

sandboxed python3 - <<'PYTHON'
import fcntl, os, platform, select, socket, struct, subprocess, sys

TUNSETIFF, TUN, NO_PI, IP_MTU_DISCOVER, DF = 0x400454CA, 0x1, 0x1000, 10, 0x4000
HERE, THERE = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
PEER = socket.inet_ntoa(THERE)
KINDS = ("SYN", "TCP data", "UDP", "raw")
EXPECTED = {  # value: its number, whether the four kinds have DF
    "DONT": (0, (False, False, False, False)),
    "WANT": (1, (True, True, True, True)),
    "DO": (2, (True, True, True, True)),
    "PROBE": (3, (False, False, True, True)),
}


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF


def syn_ack(syn):
    """What the far end answers."""
    source, target, sequence = struct.unpack_from("!HHI", syn, 20)
    tcp = struct.pack("!HHIIBBHHH", target, source, 1, sequence + 1 & 0xFFFFFFFF, 0x50, 0x12,
                      65535, 0, 0)
    total = checksum(THERE + HERE + struct.pack("!HH", 6, len(tcp)) + tcp)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 40, 1, DF, 64, 6, 0) + THERE + HERE
    return (head[:10] + struct.pack("!H", checksum(head)) + head[12:]
            + tcp[:16] + struct.pack("!H", total) + tcp[18:])


def next_packet(tun, protocol, longer_than=0):
    while select.select([tun], [], [], 5)[0]:
        packet = os.read(tun, 2000)
        if packet[0] >> 4 == 4 and packet[9] == protocol and len(packet) > longer_than:
            return packet
    sys.exit("no packet of the expected kind was sent")


def has_df(packet):
    return bool(struct.unpack_from("!H", packet, 6)[0] & DF)


def opened(kind, protocol, value):
    opened = socket.socket(socket.AF_INET, kind, protocol)
    opened.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, value)
    return opened


def look(tun, value):
    """Whether a SYN, a segment with data, a UDP datagram and an echo request have DF."""
    found = []
    with opened(socket.SOCK_STREAM, 0, value) as tcp:
        tcp.setblocking(False)
        tcp.connect_ex((PEER, 443))
        syn = next_packet(tun, socket.IPPROTO_TCP)
        os.write(tun, syn_ack(syn))
        select.select([], [tcp], [], 5)
        tcp.send(bytes(500))
        found += [has_df(syn), has_df(next_packet(tun, socket.IPPROTO_TCP, 500))]
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with opened(socket.SOCK_DGRAM, 0, value) as udp:
        udp.sendto(bytes(500), (PEER, 9))
        found.append(has_df(next_packet(tun, socket.IPPROTO_UDP)))
    with opened(socket.SOCK_RAW, socket.IPPROTO_ICMP, value) as raw:
        raw.sendto(struct.pack("!BBHHH", 8, 0, 0xF7FE, 0, 1), (PEER, 0))
        found.append(has_df(next_packet(tun, socket.IPPROTO_ICMP)))
    return tuple(found)


def main():
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"t0", TUN | NO_PI))
    for command in ("addr add 10.0.0.1/24 dev t0", "link set t0 up"):
        subprocess.run(["ip", *command.split()], check=True)
    print(f"Linux {platform.release()}; DF in what is sent, by the value of IP_MTU_DISCOVER")
    changes = []
    for name, (value, expected) in EXPECTED.items():
        found = look(tun, value)
        print(f"{name:>5}: " + ", ".join(
            f"{kind} {'DF' if df else 'none'}" for kind, df in zip(KINDS, found)), flush=True)
        if found != expected:
            changes.append(f"{name}: expected {expected}")
    if changes:
        sys.exit("CHANGED: " + "; ".join(changes))
    print("as described: with PROBE, UDP and raw sockets send with DF, TCP without")


main()
PYTHON
