"""The tests of one peer in one round."""

import os
import tempfile
import time

from .lab import two_ends
from .peer import Peer
from .system import Failure
from .traffic import calls, flood, iperf3, one_stream, ping
from .usage import CpuMeter, peak_rss_mib

GIB = 2**30
SMALL = 64  # bytes of UDP payload
FLOOD = 1.2  # times the link's rate
CALLS = {"voice": (300, 120), "video": (1000, 400)}  # bytes of UDP payload, kbit/s
IDLE_INTERVAL, LOADED_INTERVAL = 0.002, 0.01  # seconds between pings


class Rig:
    """A tunnel that is up, and what its tests found."""

    def __init__(self, ends, options, helpers):
        self.server, self.client = self.ends = ends
        self.seconds = options.seconds
        self.rate = options.rate
        self.helpers = helpers
        self.tunnel = {end.role: end.pids() for end in ends}
        self.found = {}

    def meter(self):
        tunnel = [pid for pids in self.tunnel.values() for pid in pids]
        return CpuMeter(tunnel, self.ends, self.helpers)

    def tcp(self, key, *options):
        self._tcp(key, options)

    def tcp_and_ping(self, key, *options):
        def pings():
            time.sleep(1)  # until the streams have found their speed
            return ping(self.client, max(self.seconds - 1, 0.5), LOADED_INTERVAL)

        pings = self._tcp(key, options, pings)
        self.found.update({f"{key}_{which}": pings[which] for which in ("p50", "p99", "lost")})

    def _tcp(self, key, options, meanwhile=None):
        meter = self.meter()
        end, other = iperf3(*self.ends, self.seconds, *options, meanwhile=meanwhile)
        spent = meter.spent()
        received = end["sum_received"]
        self.found[f"{key}_mbps"] = received["bits_per_second"] / 1e6
        if gib := received["bytes"] / GIB:
            if any(self.tunnel.values()):
                self.found[f"{key}_tunnel_cpu"] = spent["tunnel"] / gib
            self.found[f"{key}_machine_cpu"] = spent["machine"] / gib
        self._elsewhere(key, spent)
        return other

    def idle(self):
        meter = self.meter()
        self.found["idle_ms"] = ping(self.client, self.seconds, IDLE_INTERVAL)["avg"]
        self._elsewhere("idle", meter.spent())

    def loaded(self):
        meter = self.meter()
        with one_stream(*self.ends):
            time.sleep(1)  # until the stream has found its speed
            pings = ping(self.client, self.seconds, LOADED_INTERVAL)
        self.found.update({f"loaded_{key}": pings[key] for key in ("p50", "p99", "lost")})
        self._elsewhere("loaded", meter.spent())

    def small(self):
        meter = self.meter()
        options = ("-u", "-l", SMALL, "-b", 0)
        total = iperf3(*self.ends, self.seconds, *options)[0]["sum"]
        received = total["packets"] - total["lost_packets"]
        self.found["small_kpps"] = received / total["seconds"] / 1e3
        self.found["small_lost"] = total["lost_percent"]
        self._elsewhere("small", meter.spent())

    def flood(self):
        with flood(*self.ends, FLOOD * self.rate):
            self.tcp_and_ping("flood")

    def calls(self):
        def meanwhile():
            time.sleep(1)  # until the stream has found its speed
            return calls(*self.ends, max(self.seconds - 1, 0.5), CALLS)

        for name, heard in self._tcp("calls", (), meanwhile).items():
            self.found.update({f"calls_{name}_{which}": heard[which] for which in heard})

    def memory(self):
        for role, pids in self.tunnel.items():
            if pids:
                self.found[f"{role}_rss_mib"] = peak_rss_mib(pids)

    def _elsewhere(self, key, spent):
        share = spent["elsewhere"] / (spent["seconds"] * os.cpu_count())
        self.found[f"{key}_elsewhere"] = share


FAST = {
    "up": lambda rig: rig.tcp("up"),
    "down": lambda rig: rig.tcp("down", "-R"),
    "eight": lambda rig: rig.tcp("eight", "-P", 8),
    "idle": Rig.idle,
    "loaded": Rig.loaded,
    "small": Rig.small,
    "memory": Rig.memory,
}
LINK = {
    "idle": Rig.idle,
    "up": lambda rig: rig.tcp_and_ping("up"),
    "down": lambda rig: rig.tcp_and_ping("down", "-R"),
    "eight": lambda rig: rig.tcp_and_ping("eight", "-P", 8),
    "flood": Rig.flood,
    "calls": Rig.calls,
}
TESTS = {"fast": FAST, "link": LINK}
PAUSE = 0.5  # seconds between tests, for the queues to drain


def measure(name, wire, options):
    """One peer's {metric: number}, with {test: message} of what failed under "errors"."""
    with tempfile.TemporaryDirectory(prefix="lostlove-bench-") as directory, \
            two_ends(wire, options.pin, options.congestion) as ends:
        started = Peer(name, directory).start(*ends)
        rig = Rig(ends, options, wire.pids)
        rig.found["start_s"] = started
        errors = {}
        for test, function in options.tests.items():
            try:
                function(rig)
            except (Failure, OSError, KeyError) as error:
                errors[test] = str(error) or type(error).__name__
            time.sleep(PAUSE)
        return {**rig.found, "errors": errors}
