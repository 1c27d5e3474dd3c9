"""What joins the two namespaces."""

import contextlib
import subprocess

from .lab import WIRE
from .system import Failure, missing, run

QUEUE_KIB = 512  # what waits for the emulated link at most, each way; about two round trips


class Veth:
    """A pair of Ethernet devices: as fast as the machine."""

    description = "veth, MTU 1500, no emulation"
    pids = ()

    @contextlib.contextmanager
    def joined(self, server, client):
        server.ip(f"link add {WIRE} mtu 1500 type veth peer name {WIRE} mtu 1500 "
                  f"netns {client.name}")
        for end in (server, client):
            end.ip(f"link set {WIRE} up")
        yield


class Emulated:
    """A slow link with delay, and perhaps loss."""

    emulator = ""

    def __init__(self, options, loss):
        self.rate, self.delay, self.loss = options.rate, options.rtt / 2, loss

    @property
    def description(self):
        return (f"{self.rate} Mbit/s, {2 * self.delay:g} ms round trip, {self.loss:g} % loss each "
                f"way, queues of {QUEUE_KIB} KiB, by {self.emulator}")


class Netem(Emulated):
    """A pair of Ethernet devices with the kernel's emulation at both."""

    emulator = "netem and tbf"
    pids = ()

    @contextlib.contextmanager
    def joined(self, server, client):
        with Veth().joined(server, client):
            for end in (server, client):
                # Packets, not super-packets, are to be lost and counted.
                end.ip(f"link set {WIRE} gso_max_segs 1")
                for arguments in self._qdiscs():
                    run("tc", "-n", end.name, "qdisc", "add", "dev", WIRE, *arguments.split())
            yield

    def _qdiscs(self):
        loss = f"loss {self.loss}%" if self.loss else ""
        yield f"root handle 1: netem limit 100000 delay {self.delay}ms {loss}"
        yield f"parent 1:1 handle 2: tbf rate {self.rate}mbit burst 16kb limit {QUEUE_KIB}kb"


class Relay(Emulated):
    """Two TUN devices and a program between them."""

    emulator = "lostlove-link"

    def __init__(self, options, loss):
        super().__init__(options, loss)
        self.cpus = options.pin.get("link")
        self.pids = ()

    @contextlib.contextmanager
    def joined(self, server, client):
        pinned = ["taskset", "-c", self.cpus] if self.cpus else []
        command = ["lostlove-link", *(f"/run/netns/{end.name}" for end in (server, client)),
                   f"--device={WIRE}", f"--rate-mbit={self.rate}", f"--delay-us={self._delay_us}",
                   f"--loss-percent={self.loss}", f"--queue-kib={QUEUE_KIB}"]
        with subprocess.Popen(pinned + command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              text=True, start_new_session=True) as relay:
            self.pids = (relay.pid,)
            try:
                if relay.stdout.readline() != "ready\n":
                    raise Failure("lostlove-link did not start")
                for end in (server, client):
                    # The queue is the relay's; this one only has to bridge its pauses.
                    end.ip(f"link set {WIRE} up mtu 1500 txqueuelen 5000")
                yield
            finally:
                relay.kill()

    @property
    def _delay_us(self):
        return round(self.delay * 1000)


def emulated(options):
    """One link for each loss that was asked for, by netem where the kernel has it."""
    use_netem = options.emulator != "relay" and has_netem()
    if options.emulator == "netem" and not use_netem:
        raise Failure("this kernel has no netem; Ubuntu has it in linux-modules-extra-$(uname -r)")
    if not use_netem and missing(["lostlove-link"]):
        raise Failure("lostlove-link, which stands in for netem, is not built: "
                      "cargo build --release")
    kind = Netem if use_netem else Relay
    return [kind(options, loss) for loss in options.loss]


def has_netem():
    """Whether the kernel has netem and tbf; tried in a namespace that ends with the command."""
    attempt = ("tc qdisc add dev lo root handle 1: netem delay 1ms && "
               "tc qdisc add dev lo parent 1:1 handle 2: tbf rate 1mbit burst 16kb limit 64kb")
    return run("unshare", "--net", "sh", "-c", attempt, check=False).returncode == 0
