"""Test programs inside the namespaces: iperf3 and ping."""

import contextlib
import json
import re
import statistics
import subprocess

from .system import Failure


@contextlib.contextmanager
def iperf3_server(end):
    """An iperf3 server for one test, listening."""
    command = ("iperf3", "-s", "-1", "-B", end.tun_local, "--forceflush")
    with end.background(*command, stdout=subprocess.PIPE) as server:
        for line in server.stdout:
            if "listening" in line:
                break
        else:
            raise Failure("the iperf3 server ended")
        yield


def iperf3(server, client, seconds, *options):
    """The `end` section of the report of one test from the client."""
    command = ("iperf3", "-J", "-c", client.tun_remote, "-t", seconds, *options)
    with iperf3_server(server):
        done = client.run(*command, timeout=seconds + 30, check=False)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        raise Failure(f"iperf3: {done.stderr.strip() or 'no report'}") from None
    if "error" in report:
        raise Failure(f"iperf3: {report['error']}")
    return report["end"]


@contextlib.contextmanager
def one_stream(server, client):
    """One TCP stream from the client, at full speed, for as long as the block."""
    command = ("iperf3", "-c", client.tun_remote, "-t", 3600)
    with iperf3_server(server), client.background(*command, stdout=subprocess.DEVNULL):
        yield


def ping(client, seconds, interval):
    """{"avg", "p50", "p99": milliseconds, "lost": per cent} of pings for some seconds."""
    count = max(round(seconds / interval), 1)
    command = ("ping", "-n", "-i", interval, "-c", count, "-W", 2, client.tun_remote)
    # Under load each may be late, and the last one decides the end.
    output = client.run(*command, timeout=4 * seconds + 30, check=False).stdout
    times = sorted(float(time) for time in re.findall(r"time=([\d.]+) ms", output))
    if not times:
        raise Failure("no ping came back")
    return {"avg": statistics.mean(times), "p50": percentile(times, 50),
            "p99": percentile(times, 99), "lost": 100 * (count - len(times)) / count}


def percentile(ascending, per_cent):
    """The smallest value that so many per cent of the values do not exceed."""
    rank = -(-len(ascending) * per_cent // 100)
    return ascending[max(rank, 1) - 1]
