"""Both ends of something like a call: UDP packets of one size at a steady pace, sent back one by one.

    call.py answer ADDRESS PORT
    call.py call ADDRESS PORT BYTES KBIT/S SECONDS

`answer` says "ready", and ends when it is told to. `call` prints the round trips in milliseconds, a line each, and in the
last line how many packets it sent."""

import socket
import struct
import sys
import time

LATE = 3  # seconds after which a packet that has not come back is lost
STAMP = struct.Struct("!Id")


def answer(address, port):
    end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    end.bind((address, int(port)))
    print("ready", flush=True)
    while True:
        packet, caller = end.recvfrom(65535)
        end.sendto(packet, caller)


def call(address, port, length, kbits, seconds):
    length, pause = int(length), int(length) * 8 / (float(kbits) * 1000)
    count = max(int(float(seconds) / pause), 1)
    end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    end.connect((address, int(port)))
    start, sent, heard = time.monotonic(), 0, set()
    while True:
        now = time.monotonic()
        if sent < count and now >= start + sent * pause:
            end.send(STAMP.pack(sent, now).ljust(length, b"\0"))
            sent += 1
            continue
        until = start + sent * pause if sent < count else start + (count - 1) * pause + LATE
        if len(heard) == count or now >= until:
            break
        end.settimeout(until - now)
        try:
            number, at = STAMP.unpack_from(end.recv(65535))
        except TimeoutError:
            continue
        if number not in heard:
            heard.add(number)
            print((time.monotonic() - at) * 1000)
    print(sent)


if __name__ == "__main__":
    {"answer": answer, "call": call}[sys.argv[1]](*sys.argv[2:])
