#!/usr/bin/env bash
# TUNSETOFFLOAD grants TUN_F_UDP_TUNNEL_GSO with a virtio header that is too short for it; then every
# read of the device fails, and no counter shows what is lost.
#
# One would guess: TUNSETOFFLOAD is how a program asks what the kernel can do, so that it refuses
# (EINVAL) what cannot work, as it does with TUN_F_TSO4 without TUN_F_CSUM. Or, if it grants it, that
# only packets which need the longer header are in trouble: the super-packets of a UDP tunnel.
#
# What happens: the bit is granted with any header. The longer header (24 bytes, TUNSETVNETHDRSZ) is
# looked for when a packet is handed over, whatever packet that is. Each one makes the device readable,
# each read() takes one away and fails with EFAULT, as if the buffer were bad, and the packet counts
# neither as sent nor as dropped nor as an error. Writes go on working, so one direction looks healthy.
# TUNSETVNETHDRSZ may make the header shorter afterwards, and is not refused either.
#
# Version: seen on Linux 6.18.44, 30 November 2026. Older kernels do not know the bit.
#
# For a VPN: set the header's size before the offloads, and do not take TUNSETOFFLOAD's yes for an
# answer: judge the pair of size and bits oneself. The size belongs to the device, not to the queue, so a
# second program with a queue of the same device can break the first one's reads.
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
import errno, fcntl, os, platform, select, socket, struct, subprocess, sys

TUNSETIFF, TUNGETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x400454CA, 0x800454D2, 0x400454D0, 0x400454D8
TUN, NO_PI, VNET_HDR = 0x1, 0x1000, 0x4000
F_CSUM, F_TSO4, F_TSO6, F_UDP_TUNNEL_GSO = 0x1, 0x2, 0x4, 0x80
PLAIN = F_CSUM | F_TSO4 | F_TSO6
SENT = 3


def device(network):
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"t%d", TUN | NO_PI | VNET_HDR))
    name = fcntl.ioctl(fd, TUNGETIFF, bytes(40))[:16].rstrip(b"\0").decode()
    with open(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "w") as file:
        file.write("1")  # so that it sends no packets of its own
    for command in (f"addr add {network}.1/24 dev {name}", f"link set {name} up"):
        subprocess.run(["ip", *command.split()], check=True)
    return fd, name


def counters(name):
    """TX packets, errors and drops of the device."""
    line = next(line for line in open("/proc/net/dev") if line.strip().startswith(name + ":"))
    return [int(word) for word in line.split(":")[1].split()[9:12]]


def error(action):
    try:
        return action()
    except OSError as failed:
        return errno.errorcode[failed.errno]


def datagram(network):
    """An ordinary UDP datagram to the device's own address, without a checksum."""
    ends = socket.inet_aton(f"{network}.2") + socket.inet_aton(f"{network}.1")
    head = struct.pack("!BBHHHBBH", 0x45, 0, 32, 1, 0x4000, 64, 17, 0) + ends
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    return head[:10] + struct.pack("!H", ~total & 0xFFFF) + head[12:] + struct.pack("!4H", 9, 9, 12, 0) \
        + b"data"


def look(network, size, bits, size_afterwards=None):
    """What the reads of a few ordinary UDP datagrams give, and what is counted."""
    fd, name = device(network)
    fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", size))
    granted = error(lambda: fcntl.ioctl(fd, TUNSETOFFLOAD, bits)) == 0
    if size_afterwards:
        fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", size_afterwards))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(SENT):
            sender.sendto(bytes(100), (f"{network}.2", 9))
    reads = []
    while select.select([fd], [], [], 0.1)[0]:
        reads.append(error(lambda: len(os.read(fd, 70000)) - (size_afterwards or size)))
    header = size_afterwards or size
    written = error(lambda: os.write(fd, bytes(header) + datagram(network)) - header)
    result = granted, reads, written, counters(name)
    os.close(fd)
    return result


def main():
    print(f"Linux {platform.release()}; {SENT} UDP datagrams of 128 bytes through a new device each")
    tunnel, failed = PLAIN | F_UDP_TUNNEL_GSO, (True, ["EFAULT"] * SENT, 32, [0, 0, 0])
    fine = (True, [128] * SENT, 32, [SENT, 0, 0])
    cases = (
        ("header of 12, TSO alone", (12, PLAIN), fine),
        ("header of 24, tunnel GSO", (24, tunnel), fine),
        ("header of 12, tunnel GSO", (12, tunnel), failed),
        ("header of 24, tunnel GSO, then 12", (24, tunnel, 12), failed),
    )
    changes = []
    for number, (name, arguments, expected) in enumerate(cases):
        found = look(f"10.{number}.0", *arguments)
        if not found[0] and arguments == (24, tunnel):
            print("cannot run here: this kernel has no TUN_F_UDP_TUNNEL_GSO", file=sys.stderr)
            sys.exit(77)
        granted, reads, written, counted = found
        print(f"{name}: {'granted' if granted else 'refused'}; reads {reads}; write {written}; "
              f"counted: {counted[0]} sent, {counted[1]} errors, {counted[2]} dropped", flush=True)
        if found != expected:
            changes.append(f"{name}: expected {expected}")
    if changes:
        sys.exit("CHANGED: " + "; ".join(changes))
    print("as described: granted with a short header, and then no packet can be read, or is counted")


main()
PYTHON
