#!/usr/bin/env bash
# A program whose packets a TUN device's full queue drops is told nothing, whatever it asks for; only a packet
# socket past the queueing discipline hears of it.
#
# One would guess: once the queue is full, sendto() of a UDP socket fails with ENOBUFS or waits for room, at the
# latest with IP_RECVERR, which has a socket told of drops on this host.
#
# What happens: the device lets go of a packet's owner before it looks for room, so the socket's send buffer
# never fills, and its answer "dropped" stays within the queueing discipline. All packets count as sent. With
# PACKET_QDISC_BYPASS a packet socket gets ENOBUFS for the first one too many; without, it is told nothing either.
#
# Version: seen on Linux 6.18.44, 30 November 2026.
#
# For a VPN: a load test with UDP sockets takes its own losses in the device's queue for the tunnel's, and never
# waits. Drops are in the device's tx_dropped alone.
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
import fcntl, os, platform, socket, struct, subprocess, sys

# <linux/if_tun.h>, <linux/in.h>, <linux/if_packet.h>
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x1, 0x1000
IP_RECVERR, SOL_PACKET, PACKET_QDISC_BYPASS = 11, 263, 20
ROOM, SENT = 10, 50


def cannot(why):
    print(f"cannot run here: {why}", file=sys.stderr)
    sys.exit(77)


def command(line):
    subprocess.run(line.split(), check=True)


def send(socket_, *address):
    """How many of the packets count as sent, and how many the device has dropped."""
    def dropped():
        line = next(line for line in open("/proc/net/dev") if line.strip().startswith("t0:"))
        return int(line.split(":")[1].split()[11])

    before, accepted = dropped(), 0
    for _ in range(SENT):
        try:
            socket_.sendto(PACKET if not address else b"x", *(address or (("t0", 0x0800),)))
            accepted += 1
        except OSError as error:
            assert error.errno == 105, error
    return accepted, dropped() - before


try:
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"t0", IFF_TUN | IFF_NO_PI))
except OSError as error:
    cannot(error)
open("/proc/sys/net/ipv6/conf/t0/disable_ipv6", "w").write("1")
command(f"ip link set t0 txqueuelen {ROOM}")
command("ip addr add 10.9.0.1/24 dev t0")
command("ip link set t0 up")
PACKET = bytes.fromhex("4500001400000000 40fd0000 0a090001 0a090002".replace(" ", ""))

# Nobody reads. The first ones fill the queue.
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
first = send(udp, ("10.9.0.2", 9))
plain = send(udp, ("10.9.0.2", 9))
udp.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
recverr = send(udp, ("10.9.0.2", 9))
packet = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
queued = send(packet)
packet.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
bypassing = send(packet)

print(f"Linux {platform.release()}, a queue of {ROOM} packets, {SENT} sent each time: sent / dropped")
print(f"UDP, an empty queue: {first[0]} / {first[1]}")
print(f"UDP, a full one: {plain[0]} / {plain[1]}")
print(f"UDP with IP_RECVERR: {recverr[0]} / {recverr[1]}")
print(f"packet socket: {queued[0]} / {queued[1]}")
print(f"packet socket with PACKET_QDISC_BYPASS: {bypassing[0]} / {bypassing[1]}")
as_seen = (
    first[0] == SENT and first[1] > 0
    and plain == recverr == queued == (SENT, SENT)
    and bypassing == (0, SENT)
)
if not as_seen:
    sys.exit("expected 50 sent each time and all but the first ten dropped, and none sent past the discipline")
PYTHON
