"""One VPN, as its shell file describes it (bench/README.md has the contract)."""

import os
import signal
import subprocess
import time
from pathlib import Path

from .lab import WIRE
from .system import Failure

PEERS = Path(__file__).resolve().parent.parent / "peers"
BASELINE = "none"
NOT_INSTALLED = 77
START_TIMEOUT = 20  # seconds for each function of a peer's file, and for the first ping
SCRIPT = 'set -eu; . "$PEERS/_lib.sh"; . "$1"; $2'


class NotInstalled(Failure):
    """A program of this peer is missing; the message names it."""


def files():
    """{name: file} of all peers, ours first."""
    found = [*sorted(PEERS.glob("[!_]*.sh")), *sorted(PEERS.glob("other/[!_]*.sh"))]
    return {path.stem: path for path in found}


class Peer:
    """A peer in a directory that both its ends share."""

    def __init__(self, name, directory):
        self.path = files()[name]
        self.directory = directory
        self.log = Path(directory, "log")

    def version(self):
        self._run("version")
        return self._last_words(1)

    def start(self, server, client):
        """Starts both ends, and returns the seconds from the client's start to its first ping."""
        self._run("setup")
        self._run("server", server)
        time.sleep(1)  # Daemons do not say when they listen.
        began = time.monotonic()
        starting = self._spawn("client", client)
        try:
            elapsed = self._first_reply(client, starting, began)
            self._finish(starting)
        finally:
            self._end(starting)
        return elapsed

    def _first_reply(self, client, starting, began):
        # One every 10 ms until the first reply; at once an error while there is no route.
        ping = ("ping", "-nq", "-i", "0.01", "-c", "1", "-w", "1", client.tun_remote)
        while client.run(*ping, check=False).returncode:
            if starting.poll():
                self._finish(starting)
            if time.monotonic() - began > START_TIMEOUT:
                raise Failure(f"no ping came through: {self._last_words(8)}")
        return time.monotonic() - began

    def _run(self, function, end=None):
        process = self._spawn(function, end)
        try:
            self._finish(process)
        finally:
            self._end(process)

    def _spawn(self, function, end=None):
        command = ["sh", "-c", SCRIPT, "peer", str(self.path), function]
        environment = {**os.environ, "PEERS": str(PEERS)}
        if end:
            command = end.command(*command)
            environment.update(END=end.role, DEV=end.device, WIRE=WIRE, LOCAL=end.local,
                               REMOTE=end.remote, TUN_LOCAL=end.tun_local,
                               TUN_REMOTE=end.tun_remote)
        with self.log.open("a") as log:
            return subprocess.Popen(command, cwd=self.directory, env=environment, stdout=log,
                                    stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)

    def _finish(self, process):
        try:
            code = process.wait(START_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise Failure(f"not up after {START_TIMEOUT} s: {self._last_words(8)}") from None
        if code == NOT_INSTALLED:
            raise NotInstalled(self._last_words(1))
        if code:
            raise Failure(f"exit code {code}: {self._last_words(8)}")

    @staticmethod
    def _end(process):
        """Ends the shell and what it runs if it has not ended; daemons are the namespace's."""
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _last_words(self, lines):
        text = self.log.read_text(errors="replace").strip()
        return "\n".join(text.splitlines()[-lines:])
