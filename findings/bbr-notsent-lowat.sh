#!/usr/bin/env bash
# With TCP_NOTSENT_LOWAT of 16 KiB, BBR never leaves its start-up.
#
# One would guess: the two are made for each other. BBR keeps the network's queue short, the mark
# keeps the socket's short, and a program that always has more to send, and offers twice what the
# path carries, keeps the connection full.
#
# What happens: to leave its start-up, BBR needs rounds in which the program did not limit it. While
# it is in it, it paces at 2.887 times the rate it measured. 16 KiB, or the 8 KiB that are left when
# epoll tells (that takes half the mark), last less than a millisecond at that pace. A program that
# takes one to be woken and to write finds the socket dry, which counts as "application limited"
# for the whole round trip that follows. So BBR stays where it is for as long as the connection lives,
# keeps the path's queue full and loses what does not fit. Without the mark, or with one of 256 KiB,
# the same program on the same path leaves the start-up within two seconds.
#
# Version: seen on Linux 6.18.44 with its tcp_bbr (version 1), 30 November 2026.
#
# For a VPN: a tunnel over TCP wants the mark, as it can only drop or reorder what is not in the socket
# yet. With BBR it has to grow with the rate that BBR paces at, or the tunnel fills the queue that it
# wanted to spare. `ss -ti` shows it: `app_limited` and `pacing_gain:2.887` on a busy connection.
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
modprobe -q tcp_bbr 2>/dev/null || true

sandboxed python3 - <<'PYTHON'
import collections, fcntl, os, platform, select, signal, socket, struct, subprocess, sys, time

RATE, DELAY, QUEUE = 50e6 / 8, 0.010, 256 * 1024  # bytes/s, s each way, bytes: the path
SECONDS, SETTLED = 4.0, 2.0  # of a transfer; after that many it is looked at
PAUSE = 0.001  # s that the program needs from being woken to writing: 16 KiB each are 130 Mbit/s
HIGH_GAIN = 739  # BBR's 2.887, in 1/256
TUNSETIFF, IFF_TUN_NO_PI, TCP_NOTSENT_LOWAT, TCP_CC_INFO = 0x400454CA, 0x1001, 25, 26
TCP = socket.IPPROTO_TCP


def path(tun):
    """Far away is this machine again: what goes to 10.0.0.2 comes back from there, late."""
    waiting, free, addresses = collections.deque(), 0.0, None
    while True:
        pause = max(0, waiting[0][0] - time.monotonic()) if waiting else None
        readable = select.select([tun], [], [], pause)[0]
        while waiting and waiting[0][0] <= time.monotonic():
            os.write(tun, waiting.popleft()[1])
        for _ in range(32 if readable else 0):
            try:
                packet = os.read(tun, 2000)
            except BlockingIOError:
                break
            now = time.monotonic()
            free = max(free, now)
            if packet[0] >> 4 != 4 or (free - now) * RATE > QUEUE:
                continue
            if len(packet) > 200:  # acknowledgements have the other direction for themselves
                free += len(packet) / RATE
            # Swapped addresses leave all checksums as they are.
            swapped = packet[:12] + packet[16:20] + packet[12:16] + packet[20:]
            waiting.append((free + DELAY, swapped))


def child(work, *arguments):
    pid = os.fork()
    if pid == 0:
        work(*arguments)
        os._exit(0)
    return pid


def drain(connection):
    while connection.recv(1 << 20):
        pass


def connect(mark):
    """A sender with BBR, and the process that reads what it sends."""
    with socket.create_server(("10.0.0.1", 0)) as listener:
        sender = socket.socket()
        sender.setsockopt(TCP, socket.TCP_CONGESTION, b"bbr")
        if mark:
            sender.setsockopt(TCP, TCP_NOTSENT_LOWAT, mark)
        sender.connect(("10.0.0.2", listener.getsockname()[1]))
        with listener.accept()[0] as receiver:
            reader = child(drain, receiver)
    sender.setblocking(False)
    return sender, reader


def transfer(mark):
    """The share of looks in which BBR was in its start-up."""
    sender, reader = connect(mark)
    epoll = select.epoll()
    epoll.register(sender, select.EPOLLOUT)
    data, began, looked, looks = bytes(16384), time.monotonic(), 0, []
    while (now := time.monotonic() - began) < SECONDS:
        if epoll.poll(0.05):
            time.sleep(PAUSE)
            try:
                while True:
                    sender.send(data)
            except BlockingIOError:
                pass
        if now > max(SETTLED, looked + 0.02):
            looked = now
            info = sender.getsockopt(TCP, socket.TCP_INFO, 104)
            gain = struct.unpack("5I", sender.getsockopt(TCP, TCP_CC_INFO, 20))[3]
            looks.append((gain == HIGH_GAIN, info[7] & 1, struct.unpack_from("I", info, 68)[0]))
    os.kill(reader, signal.SIGKILL)
    os.waitpid(reader, 0)
    sender.close()
    start_up, limited, trips = zip(*looks)
    start_up, limited = sum(start_up) / len(looks), sum(limited) / len(looks)
    print(f"{f'mark of {mark // 1024} KiB' if mark else 'no mark':>15}: in start-up in {start_up:4.0%}"
          f" of {len(looks)} looks, application limited in {limited:4.0%}; round trip "
          f"{sorted(trips)[len(looks) // 2] / 1000:.0f} ms; sent again: "
          f"{struct.unpack_from('I', info, 100)[0]} segments", flush=True)
    return start_up


def main():
    if "bbr" not in open("/proc/sys/net/ipv4/tcp_available_congestion_control").read().split():
        print("cannot run here: this kernel has no BBR", file=sys.stderr)
        sys.exit(77)
    print(f"Linux {platform.release()}; path of {RATE * 8 / 1e6:.0f} Mbit/s and "
          f"{DELAY * 2000:.0f} ms with a queue of {QUEUE // 1024} KiB", flush=True)
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"far", IFF_TUN_NO_PI))
    for command in ("link set lo up", "addr add 10.0.0.1/24 dev far", "link set far up"):
        subprocess.run(["ip", *command.split()], check=True)
    child(path, tun)
    found = {mark: transfer(mark) for mark in (0, 16384, 262144)}
    if found[16384] < 0.9:
        sys.exit("CHANGED: BBR left its start-up with a mark of 16 KiB")
    if max(found[0], found[262144]) > 0.1:
        sys.exit("CHANGED: BBR stayed in its start-up without a small mark too")
    print("as described: with 16 KiB BBR never leaves its start-up, without or with 256 KiB it does")


main()
PYTHON
