"""Two network namespaces, and the processes inside them."""

import contextlib
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

from .system import Failure, run, uninterrupted

UNDERLAY = {"server": "192.0.2.1", "client": "192.0.2.2"}
TUNNEL = {"server": "10.77.0.1", "client": "10.77.0.2"}
OTHER = {"server": "client", "client": "server"}
WIRE = "wire"  # the device of the underlay, in both namespaces
ALLOWED = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
STOP_TIMEOUT = 3  # seconds between SIGTERM and SIGKILL


class End:
    """The namespace of one end of the tunnel."""

    def __init__(self, role, cpus):
        self.role = role
        self.cpus = cpus
        self.name = f"llbench{os.getpid()}{role[0]}"
        # Unique on the machine: some daemons name sockets and locks after their device.
        self.device = f"llb{os.getpid()}{role[0]}"
        self.local, self.remote = UNDERLAY[role], UNDERLAY[OTHER[role]]
        self.tun_local, self.tun_remote = TUNNEL[role], TUNNEL[OTHER[role]]

    def command(self, *command):
        """The command line that runs a command inside, on the CPUs of this end."""
        pinned = ("taskset", "-c", self.cpus) if self.cpus else ()
        return ["ip", "netns", "exec", self.name, *pinned, *map(str, command)]

    def run(self, *command, **options):
        return run(*self.command(*command), **options)

    @contextlib.contextmanager
    def background(self, *command, **options):
        """A process that is killed at the end of the block."""
        options = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **options}
        process = subprocess.Popen(self.command(*command), text=True, start_new_session=True,
                                   **options)
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()

    def ip(self, arguments):
        """Runs `ip` on this namespace's network."""
        run("ip", "-n", self.name, *shlex.split(arguments))

    def pids(self):
        """The processes inside."""
        inode = os.stat(f"/run/netns/{self.name}").st_ino
        return [pid for pid in all_pids() if network_of(pid) == inode]

    def stop_all(self):
        """Ends every process inside, and waits until they are gone."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            deadline = time.monotonic() + STOP_TIMEOUT
            while self.pids() and time.monotonic() < deadline:
                time.sleep(0.02)

    def _make(self, congestion):
        run("ip", "netns", "add", self.name)
        self.ip("link set lo up")
        settings = [f"net.ipv4.tcp_congestion_control={congestion}",
                    "net.ipv4.tcp_no_metrics_save=1"]  # a test must not start where another ended
        for setting in settings:
            key, value = setting.split("=")
            path = "/proc/sys/" + key.replace(".", "/")
            run("ip", "netns", "exec", self.name, "sh", "-c", f"echo {value} >{path}")

    def _remove(self):
        if Path(f"/run/netns/{self.name}").exists():
            self.stop_all()
            run("ip", "netns", "del", self.name, check=False)


@contextlib.contextmanager
def two_ends(wire, pins, congestion):
    """The namespaces of server and client, joined by a wire; both are gone afterwards."""
    ends = [End(role, pins.get(role)) for role in ("server", "client")]
    with contextlib.ExitStack() as stack:
        for end in ends:
            stack.callback(_gone, end)
            end._make(congestion)
        stack.enter_context(wire.joined(*ends))
        for end in ends:
            end.ip(f"address add {end.local} peer {end.remote} dev {WIRE}")
        yield ends


def _gone(end):
    with uninterrupted():
        end._remove()


@contextlib.contextmanager
def congestion_control(name):
    """Lets namespaces choose a congestion control, which the machine may not allow by itself."""
    before = ALLOWED.read_text()
    if name in before.split():
        yield
        return
    try:
        # Where it is built into the kernel, there may be no modprobe, and no need for it.
        with contextlib.suppress(FileNotFoundError):
            run("modprobe", f"tcp_{name}", check=False)
        ALLOWED.write_text(f"{before.strip()} {name}")
    except OSError as error:
        raise Failure(f"TCP congestion control {name} is not to be had: {error}") from None
    try:
        yield
    finally:
        ALLOWED.write_text(before)


def all_pids():
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def network_of(pid):
    """The inode of a process's network namespace; none if the process is gone."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return None
