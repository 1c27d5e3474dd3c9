#!/usr/bin/env bash
# A TCP socket takes far more unsent bytes than TCP_NOTSENT_LOWAT says, unless each write ends a record.
#
# One would guess: once as many bytes are unsent as the option says, send() takes no more, as poll() and the
# option's descriptions say.
#
# What happens: the kernel asks for the mark when it begins a new piece of its queue, not when it adds to the
# last one, which grows up to what a network card may be given at once, 64 KiB. A program that writes small
# records gets rid of tens of KiB behind the mark. With MSG_EOR, which says nothing to the peer of a TCP
# socket, a write ends its piece, the next one begins another, and the mark holds.
#
# Version: seen on Linux 6.18.44, 30 November 2026.
#
# For a VPN: what the socket has taken can neither be overtaken nor dropped. On an uplink of 10 Mbit/s 64 KiB
# are 52 ms for whatever is urgent, with a mark of 16 KiB that was to make 13 of it.
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
import platform, socket, subprocess, sys

# <linux/tcp.h>
TCP_NOTSENT_LOWAT = 25
MARK, RECORD = 4096, 1000


def taken(flags):
    """Bytes that a socket takes, a record at a time, for a peer that does not read."""
    listener = socket.create_server(("127.0.0.1", 0))
    far = socket.create_connection(listener.getsockname())
    near, _ = listener.accept()
    near.setblocking(False)
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    near.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, MARK)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    count = 0
    try:
        while True:
            count += near.send(bytes(RECORD), flags)
    except BlockingIOError:
        pass
    for end in (far, near, listener):
        end.close()
    return count


def main():
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    together, apart = taken(0), taken(socket.MSG_EOR)
    print(f"Linux {platform.release()}: with {MARK} bytes in TCP_NOTSENT_LOWAT a socket took "
          f"{together} bytes of records of {RECORD}, and {apart} with MSG_EOR")
    if together < apart + 2 * MARK:
        sys.exit("CHANGED: expected that only MSG_EOR makes the mark hold")
    print("as described: what adds to the last piece is taken whatever the mark")


main()
PYTHON
