#!/usr/bin/env bash
# A TUN device with several queues sends what the kernel answers at once by the queue that the flow was
# written to before, not by the one that the question was just written to.
#
# One would guess: the device remembers for each flow which queue it was last written to, and sends the
# other direction by that queue. So when a flow moves to another queue, or is new, the answer to
# the first packet that is written there comes from there.
#
# What happens: a write gives the packet to the network stack first and remembers the queue after. The
# stack answers an echo request, a SYN or a segment inside the write call, so that the answer is
# sorted by what was remembered before: by the old queue, and for a new flow by a hash of its addresses,
# which is any. Only what is sent after the write has returned follows the flow.
#
# Version: seen on Linux 6.18.44, 30 November 2026.
#
# For a VPN with a worker for each queue: answers to a session's packets do come to another worker, at the
# first packet of each flow and at each move, also if every write of a session is by one worker. Each
# worker has to be able to hand packets on, or the queue has to be chosen by TUNSETSTEERINGEBPF.
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
import collections, fcntl, os, platform, select, socket, struct, subprocess, sys

TUNSETIFF, TUN, NO_PI, MULTI_QUEUE = 0x400454CA, 0x1, 0x1000, 0x100
FLOWS = 64


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def echo_request(host):
    """From 10.0.0.HOST to 10.0.0.1, the device's own address."""
    ends = bytes([10, 0, 0, host, 10, 0, 0, 1])
    head = struct.pack("!BBHHHBBH", 0x45, 0, 28, 1, 0x4000, 64, 1, 0) + ends
    echo = struct.pack("!BBHHH", 8, 0, 0, 1, 1)
    return (head[:10] + struct.pack("!H", checksum(head)) + head[12:]
            + echo[:2] + struct.pack("!H", checksum(echo)) + echo[4:])


def answered_by(queues, host, queue):
    """The queue that the answer to one request comes from, which is written to another or the same."""
    os.write(queues[queue], echo_request(host))
    for fd in select.select(queues, [], [], 2)[0]:
        packet = os.read(fd, 2000)
        if packet[9] == 1 and packet[19] == host and packet[20] == 0:
            return queues.index(fd)
    return None


def main():
    queues = []
    for _ in range(2):
        queues.append(os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK))
        request = struct.pack("16sH22x", b"t0", TUN | NO_PI | MULTI_QUEUE)
        fcntl.ioctl(queues[-1], TUNSETIFF, request)
    with open("/proc/sys/net/ipv6/conf/t0/disable_ipv6", "w") as file:
        file.write("1")  # so that it sends no packets of its own
    for command in ("addr add 10.0.0.1/24 dev t0", "link set t0 up"):
        subprocess.run(["ip", *command.split()], check=True)
    print(f"Linux {platform.release()}; {FLOWS} flows: which queue of two the answers come from")
    written = (1, 1, 0, 0, 1, 1)  # by each flow, one request after the other
    answers = [[answered_by(queues, 2 + flow, queue) for queue in written] for flow in range(FLOWS)]
    counted = [collections.Counter(column) for column in zip(*answers)]
    names = ("a new flow, to", "again, to", "moved, to", "again, to", "moved back, to", "again, to")
    for name, queue, count in zip(names, written, counted):
        print(f"{name} queue {queue}: " + ", ".join(
            f"{number} answers from queue {where}" for where, number in sorted(count.items())))
    changes = []
    if set(counted[0]) != {0, 1}:
        changes.append("the first answers of new flows come from one queue")
    for place, expected in enumerate((1, 1, 0, 0, 1), 1):
        if counted[place] != {expected: FLOWS}:
            changes.append(f"request {place + 1} is not answered by queue {expected} alone")
    if changes:
        sys.exit("CHANGED: " + "; ".join(changes))
    print("as described: each answer comes from the queue that was written to before")


main()
PYTHON
