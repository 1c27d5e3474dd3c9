#!/usr/bin/env bash
# io_uring's incremental buffers (IOU_PBUF_RING_INC) cut packets of a TUN device, and nothing says so.
#
# One would guess: with a multishot read, incremental buffers are what a TUN device wants. Packets come
# to lie one behind the other in a few large buffers, and no small one keeps a buffer to itself. When
# the next packet does not fit into what is left of a buffer, the kernel goes on with the next buffer,
# as it keeps the packet and says ENOBUFS when there is none.
#
# What happens: the device is read into whatever is left of the buffer, as read() with a small buffer
# would. The last packet of nearly every buffer is cut at its end, and the rest of it is gone. The
# completion has the same flags as one that used a buffer up exactly, and its result is just a smaller
# number; for a TUN device there is no MSG_TRUNC. With ordinary buffers of the same size, or
# with read() itself into a large one, all packets are whole.
#
# Version: seen on Linux 6.18.44, 30 November 2026; IOU_PBUF_RING_INC is there since 6.12.
#
# For a VPN: every buffer's worth of long packets has one that is cut, and is thrown away far off, so
# that TCP crawls while ping works. With offload packets are up to 64 KiB, and more of them are cut.
# Use ordinary provided buffers, each as long as the longest packet, and compare a read's result with
# the length in the IP header in any case.
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
import ctypes, errno, fcntl, mmap, os, platform, select, socket, struct, subprocess, sys

SETUP, ENTER, REGISTER = 425, 426, 427  # system calls
READ_MULTISHOT, BUFFER_SELECT, REGISTER_PBUF_RING, PBUF_RING_INC, GETEVENTS = 49, 1 << 5, 22, 2, 1
TUNSETIFF, TUN, NO_PI = 0x400454CA, 0x1, 0x1000
LENGTH, COUNT, BUFFERS = 1428, 5, 6
libc = ctypes.CDLL(None, use_errno=True)


def call(number, *arguments):
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    if (result := libc.syscall(number, *words)) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def address(memory):
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


class Ring:
    """One multishot read with provided buffers, and its completions."""

    def __init__(self, size, flags):
        parameters = ctypes.create_string_buffer(120)
        self.fd = call(SETUP, 16, parameters)
        self.sq = struct.unpack_from("7I", parameters, 40)
        self.cq = struct.unpack_from("7I", parameters, 80)
        self.rings = mmap.mmap(self.fd, max(self.sq[6] + 16 * 4, self.cq[5] + 32 * 16))
        self.entries = mmap.mmap(self.fd, 16 * 64, offset=0x10000000)
        self.buffers = mmap.mmap(-1, BUFFERS * 4096)
        self.provided = mmap.mmap(-1, 4096)
        about = struct.pack("QIHHQQQ", address(self.provided), 8, 1, flags, 0, 0, 0)
        call(REGISTER, self.fd, REGISTER_PBUF_RING, ctypes.create_string_buffer(about, 40), 1)
        for number in range(BUFFERS):
            struct.pack_into("QIH", self.provided, 16 * number,
                             address(self.buffers) + 4096 * number, size, number)
        struct.pack_into("H", self.provided, 14, BUFFERS)

    def read(self, fd):
        entry = struct.pack("=BBHiQQIIQH", READ_MULTISHOT, BUFFER_SELECT, 0, fd, 2**64 - 1,
                            0, 0, 0, 0, 1)
        self.entries[:len(entry)] = entry
        struct.pack_into("I", self.rings, self.sq[6], 0)
        struct.pack_into("I", self.rings, self.sq[1], 1)
        call(ENTER, self.fd, 1, 0, 0, 0, 0)

    def completions(self):
        """(result, flags, first bytes) of each completion so far."""
        call(ENTER, self.fd, 0, 0, GETEVENTS, 0, 0)
        tail, places, found = struct.unpack_from("I", self.rings, self.cq[1])[0], {}, []
        for number in range(tail):
            result, flags = struct.unpack_from("iI", self.rings, self.cq[5] + 16 * number + 8)
            buffer = flags >> 16
            start = 4096 * buffer + places.get(buffer, 0)
            places[buffer] = places.get(buffer, 0) + max(result, 0)
            found.append((result, flags & 0xFFFF, self.buffers[start:start + 20]))
        return found


def look(tun, sender, size, flags):
    """Reads of a few datagrams of one length: results, flags, and the lengths in the IP headers."""
    ring = Ring(size, flags)
    ring.read(tun)
    for _ in range(COUNT):
        sender.sendto(bytes(LENGTH - 28), ("10.0.0.2", 9))
    for _ in range(50):
        select.select([], [], [], 0.02)
        if len(found := ring.completions()) >= COUNT:
            break
    os.close(ring.fd)
    return ([result for result, _, _ in found], [bits for _, bits, _ in found],
            [struct.unpack_from("!H", first, 2)[0] for _, _, first in found])


def main():
    tun = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"t0", TUN | NO_PI))
    with open("/proc/sys/net/ipv6/conf/t0/disable_ipv6", "w") as file:
        file.write("1")  # so that it sends no packets of its own
    for command in ("addr add 10.0.0.1/24 dev t0", "link set t0 up"):
        subprocess.run(["ip", *command.split()], check=True)
    print(f"Linux {platform.release()}; {COUNT} packets of {LENGTH} bytes, by one multishot "
          "read; flag 0x10: something is left of this buffer")
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        found = {
            "ordinary, 4096": look(tun, sender, 4096, 0),
            "incremental, 4096": look(tun, sender, 4096, PBUF_RING_INC),
            f"incremental, {2 * LENGTH}": look(tun, sender, 2 * LENGTH, PBUF_RING_INC),
        }
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EPERM, errno.ENOSYS):
            raise
        print(f"cannot run here: io_uring or its incremental buffers: {error.strerror}", file=sys.stderr)
        sys.exit(77)
    for name, (results, bits, lengths) in found.items():
        print(f"{name}: results {results}, flags {[f'{word:#x}' for word in bits]}, "
              f"lengths in the IP headers {lengths}", flush=True)
    whole, rest = [LENGTH] * COUNT, 4096 - 2 * LENGTH
    ordinary, incremental, exact = found.values()
    changes = []
    if ordinary[0] != whole or exact[0] != whole:
        changes.append("packets are cut where they fit")
    if incremental[0] != [LENGTH, LENGTH, rest, LENGTH, LENGTH]:
        changes.append(f"incremental buffers do not cut the third packet to {rest} bytes")
    if any(lengths != whole for _, _, lengths in found.values()):
        changes.append("the packets themselves are others")
    if incremental[1][2] != exact[1][1]:
        changes.append("the cut packet's completion has flags that tell it")
    if changes:
        sys.exit("CHANGED: " + "; ".join(changes))
    print(f"as described: the third packet is cut to the {rest} bytes that were left, with the flags of "
          "one that fits exactly")


main()
PYTHON
