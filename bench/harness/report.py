"""Rounds to medians, medians to a Markdown table."""

import json
import statistics

from .peer import BASELINE

DISTURBED = 0.1  # share of the machine's CPU that went elsewhere

# metric: (heading, digits behind the point); those that were not measured are left out
FAST = {
    "up_mbps": ("up Mbit/s", 0),
    "down_mbps": ("down Mbit/s", 0),
    "eight_mbps": ("8 streams up Mbit/s", 0),
    "up_tunnel_cpu": ("up, tunnel CPU s/GiB", 2),
    "down_tunnel_cpu": ("down, tunnel CPU s/GiB", 2),
    "up_machine_cpu": ("up, machine CPU s/GiB", 2),
    "idle_ms": ("idle ping ms", 3),
    "idle_extra_ms": ("above the wire's ms", 3),
    "loaded_p50": ("loaded ping p50 ms", 2),
    "loaded_p99": ("p99 ms", 2),
    "small_kpps": ("64 B UDP kpackets/s", 1),
    "small_lost": ("lost %", 1),
    "server_rss_mib": ("peak RSS server MiB", 1),
    "client_rss_mib": ("client MiB", 1),
    "start_s": ("first ping s", 2),
}
LINK = {
    "idle_ms": ("idle ping ms", 1),
    "up_mbps": ("up Mbit/s", 1),
    "up_p50": ("ping p50 ms", 0),
    "up_p99": ("p99 ms", 0),
    "up_lost": ("lost %", 1),
    "down_mbps": ("down Mbit/s", 1),
    "down_p50": ("ping p50 ms", 0),
    "down_p99": ("p99 ms", 0),
    "down_lost": ("lost %", 1),
    "eight_mbps": ("8 streams up Mbit/s", 1),
    "eight_p50": ("ping p50 ms", 0),
    "eight_p99": ("p99 ms", 0),
    "eight_lost": ("lost %", 1),
    "flood_mbps": ("up beside a flood Mbit/s", 2),
    "flood_p50": ("ping p50 ms", 0),
    "flood_p99": ("p99 ms", 0),
    "flood_lost": ("lost %", 1),
    "calls_mbps": ("up beside calls Mbit/s", 2),
    "calls_voice_p99": ("voice p99 ms", 0),
    "calls_voice_lost": ("lost %", 1),
    "calls_video_p99": ("video p99 ms", 0),
    "calls_video_lost": ("lost %", 1),
    "start_s": ("first ping s", 2),
}
COLUMNS = {"fast": FAST, "link": LINK}


def summary(rounds):
    """{peer: {metric: {"median", "min", "max", "disturbed"}}} of [{peer: {metric: number}}]."""
    values = {}
    for results in rounds:
        wire = results.get(BASELINE, {}).get("idle_ms")
        for peer, found in results.items():
            found = dict(found)
            found.pop("errors", None)
            if wire is not None and "idle_ms" in found and peer != BASELINE:
                found["idle_extra_ms"] = found["idle_ms"] - wire
            for metric, value in found.items():
                disturbed = found.get(f"{metric.split('_')[0]}_elsewhere", 0) > DISTURBED
                values.setdefault(peer, {}).setdefault(metric, []).append((value, disturbed))
    return {peer: {metric: _spread(pairs) for metric, pairs in metrics.items()}
            for peer, metrics in values.items()}


def _spread(pairs):
    numbers = [value for value, _ in pairs]
    return {"median": statistics.median(numbers), "min": min(numbers), "max": max(numbers),
            "disturbed": any(disturbed for _, disturbed in pairs)}


def as_json(result):
    """The result for programs: every number of every round."""
    sections = [{"wire": section["wire"].description, "rounds": section["rounds"],
                 "summary": summary(section["rounds"])} for section in result["sections"]]
    return json.dumps({**result, "sections": sections}, indent=1) + "\n"


def markdown(result):
    """The result for people: what was done, the tables, and what to know about them."""
    lines = [f"- {what}: {text}" for what, text in result["about"].items()]
    lines += [f"- {peer}: {version}" for peer, version in result["versions"].items()]
    columns = COLUMNS[result["kind"]]
    for section in result["sections"]:
        table = _table(summary(section["rounds"]), columns)
        lines += ["", f"Wire: {section['wire'].description}", "", *table]
    lines += ["", *(f"- {remark}" for remark in _remarks(result))]
    return "\n".join(lines) + "\n"


def _table(peers, columns):
    present = {metric for metrics in peers.values() for metric in metrics}
    columns = {metric: column for metric, column in columns.items() if metric in present}
    yield "| peer | " + " | ".join(heading for heading, _ in columns.values()) + " |"
    yield "|---" + "|--:" * len(columns) + "|"
    for peer, metrics in peers.items():
        cells = [_cell(metrics.get(metric), digits) for metric, (_, digits) in columns.items()]
        yield f"| {peer} | " + " | ".join(cells) + " |"


def _cell(value, digits):
    if value is None:
        return "–"
    low, middle, high = (f"{value[which]:.{digits}f}" for which in ("min", "median", "max"))
    mark = "\\*" if value["disturbed"] else ""
    return f"{middle}{mark}" if low == high else f"{middle}{mark} ({low}–{high})"


def _remarks(result):
    yield "median (lowest–highest) of the rounds"
    yield (f"\\*: in a round, more than {DISTURBED:.0%} of the machine's CPU went to other "
           "programs or to the hypervisor")
    for peer, reason in result["skipped"].items():
        yield f"{peer}: skipped, {reason}"
    for section in result["sections"]:
        for number, results in enumerate(section["rounds"], 1):
            for peer, found in results.items():
                for test, error in found["errors"].items():
                    yield (f"{peer}, {section['wire'].description}, round {number}, {test} failed: "
                           f"{' / '.join(error.splitlines())}")
