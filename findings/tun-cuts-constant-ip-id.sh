#!/usr/bin/env bash
# A TUN device with TSO gets forwarded TCP one segment at a time if the sender's IPv4 identification
# is constant.
#
# One would guess: with IFF_VNET_HDR and TUN_F_TSO4, what the kernel's GRO joined on its way in goes to
# the device as one super-packet. The identification matters to fragments alone, these segments have
# DF, and RFC 6864 (section 4.1) lets a sender put anything into it, such as 0 always.
#
# What happens: GRO does join such segments, but notes that their identification must stay what it is
# (SKB_GSO_TCP_FIXEDID). A device has to say that it can do that: the feature is called
# tx-tcp-mangleid-segmentation, a new TUN has it off, and TUNSETOFFLOAD has no bit for it. So the
# kernel cuts the super-packet again in software, just in front of the device, and the reader gets
# each segment in a read of its own. With identifications that count up, it stays whole. Once the
# feature is switched on, by ethtool or by its ioctl as here, both stay whole.
#
# Version: seen on Linux 6.18.44, 30 November 2026.
#
# For a VPN server: downloads from such senders cost tens of times as many reads, records and writes
# as others, though every counter says that offload is on. One ioctl after the device was made mends it.
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
[ "$(id -u)" = 0 ] || cannot "gro_flush_timeout is for root"

sandboxed python3 - <<'PYTHON'
import array, fcntl, os, platform, select, socket, struct, subprocess, sys

TUNSETIFF, TUNSETOFFLOAD, SIOCETHTOOL = 0x400454CA, 0x400454D0, 0x8946
TUN, NAPI, NO_PI, VNET_HDR = 0x1, 0x10, 0x1000, 0x4000
F_CSUM, F_TSO4, F_TSO6 = 0x1, 0x2, 0x4
GSSET_INFO, GSTRINGS, SFEATURES, SET_OF_FEATURES = 0x37, 0x1B, 0x3B, 4
COUNT, LENGTH = 10, 1000


def device(name, flags, network):
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), TUN | NO_PI | flags))
    for command in (f"addr add {network}.1/24 dev {name}", f"link set {name} up"):
        subprocess.run(["ip", *command.split()], check=True)
    return fd


def put(path, text):
    with open(path, "w") as file:
        file.write(text)


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def segment(identification, number):
    """One of a flow of TCP segments from 10.0.0.2 to 10.1.0.2, all with DF."""
    ends = socket.inet_aton("10.0.0.2") + socket.inet_aton("10.1.0.2")
    tcp = struct.pack("!HHIIBBHHH", 40000, 443, 1 + number * LENGTH, 1, 0x50, 0x10, 1000, 0, 0)
    tcp += bytes(LENGTH)
    tcp_sum = checksum(ends + struct.pack("!HH", 6, len(tcp)) + tcp)
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), identification, 0x4000, 64, 6, 0) + ends
    return (ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
            + tcp[:16] + struct.pack("!H", tcp_sum) + tcp[18:])


def forwarded(into, out, identifications):
    """Bytes of TCP payload in each read of the device that the segments were forwarded to."""
    for number, identification in enumerate(identifications):
        os.write(into, segment(identification, number))
    found = []
    while sum(found) < COUNT * LENGTH and select.select([out], [], [], 2)[0]:
        packet = os.read(out, 70000)
        if packet[10] >> 4 == 4 and packet[19] == 6:
            found.append(len(packet) - 10 - 40)
    return found


def ethtool(name, data):
    data = array.array("B", data)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCETHTOOL,
                    struct.pack("16sP16x", name.encode(), data.buffer_info()[0]))
    return data.tobytes()


def switch_on(name, feature):
    answer = ethtool(name, struct.pack("=IIQI", GSSET_INFO, 0, 1 << SET_OF_FEATURES, 0))
    count = struct.unpack_from("=I", answer, 16)[0]
    answer = ethtool(name, struct.pack("=III", GSTRINGS, SET_OF_FEATURES, count) + bytes(32 * count))
    names = [answer[12 + 32 * n:44 + 32 * n].rstrip(b"\0").decode() for n in range(count)]
    block, bit = divmod(names.index(feature), 32)
    blocks = (count + 31) // 32
    words = [(1 << bit, 1 << bit) if n == block else (0, 0) for n in range(blocks)]
    ethtool(name, struct.pack("=II", SFEATURES, blocks)
            + b"".join(struct.pack("=II", *word) for word in words))


def main():
    print(f"Linux {platform.release()}; {COUNT} segments of {LENGTH} bytes, joined by GRO on \"in\", "
          "forwarded to \"out\"")
    into = device("in", NAPI, "10.0.0")
    out = device("out", VNET_HDR, "10.1.0")
    fcntl.ioctl(out, TUNSETOFFLOAD, F_CSUM | F_TSO4 | F_TSO6)
    put("/proc/sys/net/ipv4/ip_forward", "1")
    subprocess.run("mount -t sysfs sysfs /sys".split(), check=True)
    # GRO on a TUN waits for more only if told to; 20 ms are more than ten writes take.
    put("/sys/class/net/in/gro_flush_timeout", "20000000")
    whole, cut = [COUNT * LENGTH], [LENGTH] * COUNT
    changes = []

    def look(name, identifications, expected):
        for _ in range(3):  # a machine that is busy elsewhere may let the timeout pass
            found = forwarded(into, out, identifications)
            if found == expected:
                break
        print(f"{name}: reads of {', '.join(map(str, found))} bytes", flush=True)
        if found != expected:
            changes.append(f"{name}: number of reads {len(found)}, not {len(expected)}")

    counting, constant = range(COUNT), [0] * COUNT
    look("new device, identification counts up", counting, whole)
    look("new device, identification constant", constant, cut)
    switch_on("out", "tx-tcp-mangleid-segmentation")
    look("with tx-tcp-mangleid-segmentation, counts up", counting, whole)
    look("with tx-tcp-mangleid-segmentation, constant", constant, whole)
    if changes:
        sys.exit("CHANGED: " + "; ".join(changes))
    print("as described: a constant identification has super-packets cut, until the feature is on")


main()
PYTHON
