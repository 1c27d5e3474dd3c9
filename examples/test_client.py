#!/usr/bin/env python3
"""Shakes hands with a LostLove server as an LLP 1.0 peer, and shows each step.

An LLP 1.0 peer can shake hands, keep alive and disconnect, and nothing else: no
key, no tunnel, no encryption. The point is to see whether a server answers at
all. Needs Python 3.8 and nothing besides its standard library.
"""

import argparse
import binascii
import json
import secrets
import socket
import struct
import sys
import time
import uuid

# LLP 1.0's header: protocol id, type, stream id, sequence, timestamp in Unix
# milliseconds, flags, checksum. In LLP 1.1 the upper 16 bits of the timestamp
# are the payload's length, so a timestamp received is not looked at here.
HEADER = struct.Struct(">HBHQQBH")
CHECKED_LEN = HEADER.size - 2
PROTOCOL_ID = 0x4C4C
PROTOCOL_VERSION = 1
MAX_HELLO_LEN = 4096

HANDSHAKE_INIT = 3
HANDSHAKE_RESPONSE = 4
KEEP_ALIVE = 5
DISCONNECT = 6
TYPE_NAMES = {
    1: "Data",
    2: "Ack",
    HANDSHAKE_INIT: "HandshakeInit",
    HANDSHAKE_RESPONSE: "HandshakeResponse",
    KEEP_ALIVE: "KeepAlive",
    DISCONNECT: "Disconnect",
}

PROBE_HINT = (
    "LLP 1.0 peers are accepted only from the server's own machine (loopback),\n"
    "    unless the server's configuration widens it. The server's log says more."
)


class ProbeError(Exception):
    """What went wrong, in words for the user."""


def checksum(data):
    """CRC-16/IBM-3740."""
    return binascii.crc_hqx(data, 0xFFFF)


def encode_packet(packet_type, sequence, payload=b""):
    """The bytes of a packet on the control stream, without flags."""
    millis = time.time_ns() // 1_000_000
    packet = HEADER.pack(PROTOCOL_ID, packet_type, 0, sequence, millis, 0, 0)
    checked = packet[:CHECKED_LEN]
    return checked + checksum(checked + payload).to_bytes(2, "big") + payload


class Connection:
    """A TCP connection that carries LLP 1.0."""

    def __init__(self, host, port, timeout):
        self.timeout = timeout
        self.sequence = 0
        self.received = b""
        self.answered = False
        self.socket = socket.create_connection((host, port), timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self):
        self.socket.close()

    def send(self, packet_type, payload=b""):
        """Sends a packet."""
        packet = encode_packet(packet_type, self.sequence, payload)
        self.socket.settimeout(self.timeout)
        self.socket.sendall(packet)
        self.sequence += 1

    def receive_header(self, expected_type):
        """Takes a header off the stream and returns it; its checksum is still to check."""
        deadline = time.monotonic() + self.timeout
        while len(self.received) < HEADER.size:
            self.fill(deadline)
        header, self.received = self.received[: HEADER.size], self.received[HEADER.size :]
        protocol_id, packet_type, *_ = HEADER.unpack(header)
        if protocol_id != PROTOCOL_ID:
            raise ProbeError(f"Not an LLP server: its answer starts with {header[:2].hex()}")
        if packet_type != expected_type:
            got = TYPE_NAMES.get(packet_type, f"packet type {packet_type}")
            raise ProbeError(f"Expected {TYPE_NAMES[expected_type]}, but the server sent {got}")
        self.answered = True
        return header

    def receive_json(self, header):
        """Takes a JSON value off the stream, which ends itself, and checks the packet."""
        deadline = time.monotonic() + self.timeout
        decoder = json.JSONDecoder()
        while True:
            try:
                # One character per byte, whatever stands behind the value.
                value, end = decoder.raw_decode(self.received.decode("latin-1"))
                break
            except (json.JSONDecodeError, RecursionError):
                # Incomplete and malformed look alike; time and size tell them apart.
                if len(self.received) > MAX_HELLO_LEN:
                    raise ProbeError("The server's hello is not JSON") from None
            self.fill(deadline)
        payload, self.received = self.received[:end], self.received[end:]
        check_packet(header, payload)
        return value

    def fill(self, deadline):
        """Waits for more bytes."""
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise socket.timeout
        self.socket.settimeout(remaining)
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionResetError
        self.received += data


def check_packet(header, payload):
    """Compares the checksum of a packet."""
    expected = int.from_bytes(header[CHECKED_LEN:], "big")
    actual = checksum(header[:CHECKED_LEN] + payload)
    if actual != expected:
        raise ProbeError(f"Wrong checksum: {expected:04x} received, {actual:04x} computed")


def session_id_of(hello):
    """Judges a ServerHello and returns its session id."""
    try:
        server_random = hello["ServerHello"]["server_random"]
        text = hello["ServerHello"]["session_id"]
        if not isinstance(server_random, list) or len(bytes(server_random)) != 32:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise ProbeError("The server's hello is not a ServerHello") from None
    try:
        session_id = uuid.UUID(text)
        if str(session_id) != text:
            raise ValueError
    except (AttributeError, TypeError, ValueError):
        raise ProbeError(f"The session id is not a UUID: {text!r}") from None
    if session_id.version != 4:
        raise ProbeError(f"The session id is not a version 4 UUID: {session_id}")
    return session_id


def shake_hands(connection):
    print("[*] Starting handshake...")
    hello = {
        "ClientHello": {
            "client_random": list(secrets.token_bytes(32)),
            "protocol_version": PROTOCOL_VERSION,
        }
    }
    payload = json.dumps(hello).encode("ascii")
    print(f"[→] Sending ClientHello ({HEADER.size + len(payload)} bytes)")
    connection.send(HANDSHAKE_INIT, payload)
    print("[←] Waiting for ServerHello...")
    header = connection.receive_header(HANDSHAKE_RESPONSE)
    session_id = session_id_of(connection.receive_json(header))
    print("[✓] ServerHello received!")
    print(f"    Session ID: {session_id}")


def keep_alive(connection):
    print("[→] Sending keepalive")
    connection.send(KEEP_ALIVE)
    check_packet(connection.receive_header(KEEP_ALIVE), b"")
    print("[✓] Keepalive response received")


def probe(arguments):
    print("[*] LostLove Test Client")
    print(f"[*] Connecting to {arguments.host}:{arguments.port}...")
    connection = connect(arguments)
    print("[✓] Connected!")
    try:
        shake_hands(connection)
        print(f"[*] Testing with {arguments.keepalive} keepalive packets...")
        for _ in range(arguments.keepalive):
            keep_alive(connection)
        print("[*] Disconnecting...")
        print("[→] Sending disconnect")
        connection.send(DISCONNECT)
    except socket.timeout:
        raise ProbeError(explain(f"No answer within {arguments.timeout:g} s", connection)) from None
    except (ConnectionResetError, BrokenPipeError):
        problem = "The server closed the connection without an answer"
        raise ProbeError(explain(problem, connection)) from None
    except OSError as error:
        raise ProbeError(f"The connection failed: {error}") from None
    finally:
        connection.close()
    print("[✓] Test completed successfully!")


def connect(arguments):
    target = f"{arguments.host}:{arguments.port}"
    try:
        return Connection(arguments.host, arguments.port, arguments.timeout)
    except ConnectionRefusedError:
        raise ProbeError(f"Connection refused: nothing listens on {target}") from None
    except socket.timeout:
        raise ProbeError(f"No connection to {target} within {arguments.timeout:g} s") from None
    except (OSError, UnicodeError) as error:
        raise ProbeError(f"Cannot connect to {target}: {error}") from None


def explain(problem, connection):
    """Adds the likeliest reason if the hello was not answered."""
    return problem if connection.answered else f"{problem}.\n    {PROBE_HINT}"


def number(convert, minimum, maximum):
    """A parser of command-line numbers in a range."""

    def parse(text):
        value = convert(text)
        if not minimum <= value <= maximum:
            raise argparse.ArgumentTypeError(f"{text} is not between {minimum} and {maximum}")
        return value

    # What argparse calls the expected kind of value.
    parse.__name__ = convert.__name__
    return parse


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Shake hands with a LostLove server as an LLP 1.0 peer.",
        epilog="Exit code: 0 if the server answered as it should, 1 if not, 2 on wrong usage.",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="name or address of the server (%(default)s)"
    )
    parser.add_argument(
        "--port", type=number(int, 1, 65535), default=8443, help="TCP port (%(default)s)"
    )
    parser.add_argument(
        "--keepalive",
        metavar="N",
        type=number(int, 0, 1_000_000),
        default=5,
        help="keepalive packets to send (%(default)s)",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=number(float, 0.001, 86400),
        default=5.0,
        help="longest wait for each answer (%(default)g)",
    )
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    # The arrows and ticks must come out in any locale.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", line_buffering=True)
    try:
        probe(arguments)
    except ProbeError as error:
        print(f"[✗] {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
