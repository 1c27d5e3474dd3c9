"""Test programs inside the namespaces: iperf3 and ping."""

import contextlib
import json
import re
import signal
import statistics
import subprocess
import sys
from pathlib import Path

from .system import Failure

LATE = 3  # seconds after which a ping that has not come back is lost
PORT, FLOOD_PORT, CALL_PORT = 5201, 5202, 5203
FLOOD_LEN = 200  # bytes of UDP payload


@contextlib.contextmanager
def iperf3_server(end, port=PORT):
    """An iperf3 server for one test, listening."""
    command = ("iperf3", "-s", "-1", "-B", end.tun_local, "-p", port, "--forceflush")
    with end.background(*command, stdout=subprocess.PIPE) as server:
        for line in server.stdout:
            if "listening" in line:
                break
        else:
            raise Failure("the iperf3 server ended")
        yield


def iperf3(server, client, seconds, *options, meanwhile=None):
    """The `end` section of the report of one test from the client, and what `meanwhile` returned,
    which is called during the test."""
    command = ("iperf3", "-J", "-c", client.tun_remote, "-t", seconds, *options)
    with iperf3_server(server), client.background(*command, stdout=subprocess.PIPE) as test:
        other = meanwhile() if meanwhile else None
        try:
            output, _ = test.communicate(timeout=seconds + 30)
        except subprocess.TimeoutExpired:
            raise Failure("iperf3 does not end") from None
    try:
        report = json.loads(output)
    except ValueError:
        raise Failure("iperf3: no report") from None
    if "error" in report:
        raise Failure(f"iperf3: {report['error']}")
    return report["end"], other


@contextlib.contextmanager
def one_stream(server, client):
    """One TCP stream from the client, at full speed, for as long as the block."""
    command = ("iperf3", "-c", client.tun_remote, "-t", 3600)
    with iperf3_server(server), client.background(*command, stdout=subprocess.DEVNULL):
        yield


@contextlib.contextmanager
def flood(server, client, mbps):
    """Small UDP packets from the client, so many Mbit/s whatever is lost, as long as the block."""
    command = ("iperf3", "-c", client.tun_remote, "-p", FLOOD_PORT, "-u", "-l", FLOOD_LEN,
               "-b", f"{mbps}M", "-t", 3600)
    with iperf3_server(server, FLOOD_PORT), client.background(*command, stdout=subprocess.DEVNULL):
        yield


def ping(client, seconds, interval):
    """{"avg", "p50", "p99": milliseconds, "lost": per cent} of pings for some seconds."""
    count = max(round(seconds / interval), 1)
    command = ("ping", "-n", "-i", interval, "-c", count, client.tun_remote)
    with client.background(*command, stdout=subprocess.PIPE) as process:
        try:
            output, _ = process.communicate(timeout=seconds + LATE)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate()
    replies = re.findall(r"icmp_seq=(\d+) .*time=([\d.]+) ms", output)
    if not replies:
        raise Failure("no ping came back")
    times = sorted(float(time) for _, time in replies)
    # What was sent after the last one that came back may still be under way.
    sent = max(int(sequence) for sequence, _ in replies)
    return {"avg": statistics.mean(times), "p50": percentile(times, 50),
            "p99": percentile(times, 99), "lost": 100 * (1 - len(times) / sent)}


def calls(server, client, seconds, kinds):
    """{name: {"p99": milliseconds of the round trip, "lost": per cent}} of the UDP flows of `kinds`,
    {name: (bytes of payload, kbit/s)}, all at once."""
    script = Path(__file__).with_name("call.py")

    def command(*arguments):
        return sys.executable, script, *arguments

    with contextlib.ExitStack() as stack:
        where = server.tun_local, CALL_PORT
        answer = stack.enter_context(
            server.background(*command("answer", *where), stdout=subprocess.PIPE))
        if not answer.stdout.readline():
            raise Failure("nobody answers calls")
        under_way = {}
        for name, (length, kbits) in kinds.items():
            options = client.tun_remote, CALL_PORT, length, kbits, seconds
            under_way[name] = stack.enter_context(
                client.background(*command("call", *options), stdout=subprocess.PIPE))
        return {name: _heard(process, seconds) for name, process in under_way.items()}


def _heard(process, seconds):
    try:
        output, _ = process.communicate(timeout=seconds + 30)
    except subprocess.TimeoutExpired:
        raise Failure("a call does not end") from None
    *times, sent = output.split() or [0]
    if not times:
        raise Failure("a call was not heard")
    times = sorted(map(float, times))
    return {"p99": percentile(times, 99), "lost": 100 * (1 - len(times) / int(sent))}


def percentile(ascending, per_cent):
    """The smallest value that so many per cent of the values do not exceed."""
    rank = -(-len(ascending) * per_cent // 100)
    return ascending[max(rank, 1) - 1]
