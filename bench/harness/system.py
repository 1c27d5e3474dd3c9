"""Programs, signals, and what this machine is."""

import contextlib
import datetime
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

PACKAGES = {
    "ip": "iproute2",
    "iperf3": "iperf3",
    "matplotlib": "python3-matplotlib",
    "modprobe": "kmod",
    "openssl": "openssl",
    "openvpn": "openvpn",
    "ping": "iputils-ping",
    "taskset": "util-linux",
    "tc": "iproute2",
    "tincd": "tinc",
    "unshare": "util-linux",
    "wg": "wireguard-tools",
    "wireguard-go": "wireguard-go",
}
ENDINGS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


class Failure(Exception):
    """Something that ends one test or one peer, or the run if nothing catches it."""


def run(*command, timeout=30, check=True, **options):
    """Runs a program to its end. It is killed, and Failure raised, if it takes too long."""
    command = [str(word) for word in command]
    options = {"stdin": subprocess.DEVNULL, "start_new_session": True, **options}
    try:
        done = subprocess.run(command, text=True, capture_output=True, timeout=timeout, **options)
    except subprocess.TimeoutExpired:
        raise Failure(f"{shlex.join(command)}: not done after {timeout} s") from None
    if check and done.returncode:
        raise Failure(f"{shlex.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done


def end_by_exception():
    """Turns signals that end a process into exceptions, so that everything is cleaned up."""

    def end(number, _frame):
        sys.exit(128 + number)

    for number in ENDINGS:
        signal.signal(number, end)


@contextlib.contextmanager
def uninterrupted():
    """Puts off signals that end this process: a second Ctrl-C does not stop the cleaning up."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def missing(programs):
    """Those of the programs that are not installed."""
    return [program for program in programs if not shutil.which(program)]


def how_to_install(programs):
    """One command that installs the programs, as far as Debian has them; else an empty text."""
    packages = sorted({PACKAGES[program] for program in programs if program in PACKAGES})
    if not packages:
        return ""
    return f"sudo apt-get install -y --no-install-recommends {' '.join(packages)}"


def facts():
    """{what: text} about this run and this machine."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    release = Path("/etc/os-release")
    names = dict(line.split("=", 1) for line in release.read_text().splitlines() if "=" in line) \
        if release.exists() else {}
    return {
        "command": shlex.join([os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "system": names.get("PRETTY_NAME", platform.system()).strip('"'),
        "kernel": f"Linux {platform.release()} {platform.machine()}",
        "cpu": f"{model[1] if model else platform.machine()}, {os.cpu_count()} cores",
    }
