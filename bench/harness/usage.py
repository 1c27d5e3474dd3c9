"""CPU time and memory, from /proc."""

import os
import re
import time
from pathlib import Path

from .lab import all_pids, network_of

TICKS = os.sysconf("SC_CLK_TCK")
KERNEL_THREAD = 0x0020_0000  # PF_KTHREAD in the flags of /proc/PID/stat


class CpuMeter:
    """CPU seconds since its creation: of the tunnel, of the machine, and of what is no business
    of the test."""

    def __init__(self, tunnel, ends, helpers=()):
        self.tunnel = tunnel
        self.networks = {os.stat(f"/run/netns/{end.name}").st_ino for end in ends}
        self.helpers = {os.getpid(), *helpers}
        self.began = self._read()

    def spent(self):
        """{"tunnel", "machine", "elsewhere": CPU seconds, "seconds": elapsed}."""
        return {key: value - self.began[key] for key, value in self._read().items()}

    def _read(self):
        first = Path("/proc/stat").read_text().split("\n", 1)[0]
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, first.split()[1:9])
        # With the children that ended and were waited for, so nothing is lost when one ends.
        # Kernel threads count as the test's: above all they carry its packets.
        elsewhere = sum(ticks(pid) for pid in all_pids()
                        if pid not in self.helpers and network_of(pid) not in self.networks)
        return {"tunnel": sum(map(ticks, self.tunnel)) / TICKS,
                "machine": (user + nice + system + irq + softirq) / TICKS,
                "elsewhere": (elsewhere + steal) / TICKS,
                "seconds": time.monotonic()}


def ticks(pid):
    """CPU time of a process and of its children that ended; nothing for kernel threads."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    fields = text.rpartition(")")[2].split()
    if int(fields[6]) & KERNEL_THREAD:
        return 0
    return sum(map(int, fields[11:15]))


def peak_rss_mib(pids):
    """The highest resident memory that the processes reached, added up."""
    kib = 0
    for pid in pids:
        peak = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
        kib += int(peak[1]) if peak else 0
    return kib / 1024
