"""The few figures for a first look: a short Markdown table, and the same as a picture."""

import dataclasses
import io
import json
import sys
import tempfile
import textwrap
from unittest import mock

from .peer import BASELINE
from .system import Failure, how_to_install

OURS = "lostlove"
FONT = "DejaVu Sans"  # comes with matplotlib, so every machine sets the same picture
PAPER, INK, PALE_INK, RULE = "#ffffff", "#1f2933", "#5f6b7a", "#d5dae1"
COLOURS = {True: ("#0b6e69", "#7cc3bc"), False: ("#69727f", "#c0c6cf")}  # ours, others'
ROW, HEAD, LINE = 0.475, 0.5, 0.15  # inches: a peer's two bars, a panel's titles, the note's lines


class NoPicture(Failure):
    """There is nothing to draw, or to draw with; the message says what would change that."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """Two metrics that are read together: one column of the table, one panel of the picture."""

    title: str
    unit: str
    names: tuple  # what the two are, for the reader
    metrics: tuple
    digits: int
    better: str


DIGEST = {
    "fast": (
        Figure("one TCP stream", "Mbit/s", ("up", "down"), ("up_mbps", "down_mbps"), 0, "more"),
        Figure("CPU of both ends", "s/GiB", ("up", "down"),
               ("up_tunnel_cpu", "down_tunnel_cpu"), 2, "less"),
        Figure("ping under load", "ms", ("median", "p99"), ("loaded_p50", "loaded_p99"), 1,
               "less"),
        Figure("peak memory", "MiB", ("server", "client"),
               ("server_rss_mib", "client_rss_mib"), 1, "less"),
    ),
    "link": (
        Figure("one TCP stream", "Mbit/s", ("up", "down"), ("up_mbps", "down_mbps"), 1, "more"),
        Figure("ping beside it, median", "ms", ("up", "down"), ("up_p50", "down_p50"), 0,
               "less"),
        Figure("ping beside it, p99", "ms", ("up", "down"), ("up_p99", "down_p99"), 0,
               "less"),
    ),
}


def load(path):
    """The result in a JSON file that bench/run wrote."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Failure(f"cannot read {path}: {error}") from None
    try:
        table(result)
        _footnote(result)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Failure(f"{path} is not a result of bench/run: {type(error).__name__}, {error}") \
            from None
    return result


def table(result):
    """The Markdown table of each wire, as one text."""
    figures = _measured(result)
    heads = [f"{figure.title}, {figure.unit}<br>{' / '.join(figure.names)}" for figure in figures]
    lines = []
    for section in result["sections"]:
        lines += ["", f"Wire: {section['wire']}", "", f"| | {' | '.join(heads)} |",
                  "|---" + "|--:" * len(heads) + "|"]
        for peer, metrics in _rows(result, section):
            cells = [" / ".join(_number(metrics.get(metric), figure.digits).replace("*", r"\*")
                                for metric in figure.metrics) for figure in figures]
            lines.append(f"| {', '.join(_label(result, peer))} | {' | '.join(cells)} |")
    return "\n".join(lines[1:]) + "\n"


def svg(result):
    """The picture, as the text of an SVG file: the same bytes for the same result."""
    with tempfile.TemporaryDirectory(prefix="lostlove-bench-") as directory, \
            mock.patch.dict("os.environ", MPLCONFIGDIR=directory):
        try:
            import matplotlib
        except ImportError:
            raise NoPicture(f"no picture: {sys.executable} has no matplotlib; to install it for "
                            f"/usr/bin/python3: {how_to_install(['matplotlib'])}") from None
        matplotlib.use("svg")
        matplotlib.rcdefaults()
        style = {"svg.fonttype": "none", "svg.hashsalt": OURS, "font.family": FONT,
                 "font.size": 9, "text.color": INK, "axes.labelcolor": INK}
        with matplotlib.rc_context(style):
            return _draw(result)


def _draw(result):
    from matplotlib.figure import Figure as Canvas

    figures, sections = _measured(result), result["sections"]
    if not figures:
        raise NoPicture("no picture: none of its figures was measured")
    heights = [ROW * len(list(_rows(result, section))) for section in sections]
    head = HEAD + LINE * (len(sections) > 1)
    note = textwrap.wrap(_footnote(result), 185)
    below = LINE * (len(note) + 1.4)
    height = sum(heights) + head * len(sections) + below
    canvas = Canvas(figsize=(10, height), facecolor=PAPER)
    grid = canvas.add_gridspec(
        len(sections), len(figures), height_ratios=heights, left=0.155, right=0.985, wspace=0.12,
        top=1 - head / height, bottom=below / height,
        hspace=head * len(sections) / sum(heights))
    for row, section in enumerate(sections):
        for column, figure in enumerate(figures):
            axes = canvas.add_subplot(grid[row, column])
            _panel(axes, figure, list(_rows(result, section)))
            if column == 0:
                _labels(axes, result, section)
    for number, line in enumerate(reversed(note)):
        canvas.text(0.012, LINE * (number + 0.6) / height, line, fontsize=7.5, color=PALE_INK)
    text = io.StringIO()
    canvas.savefig(text, format="svg", facecolor=PAPER, metadata={"Date": None, "Creator": None})
    drawn = text.getvalue().replace(f"'{FONT}'", f"'{FONT}', Verdana, sans-serif")
    return "\n".join(line.rstrip() for line in drawn.splitlines()) + "\n"


def _panel(axes, figure, rows):
    """Two bars for each peer, with the range of the rounds and the median in figures."""
    longest = max((metrics[metric]["max"] for _, metrics in rows for metric in figure.metrics
                   if metric in metrics), default=0) or 1
    for number, (peer, metrics) in enumerate(rows):
        colours = COLOURS[peer.startswith(OURS)]
        for place, (metric, colour) in enumerate(zip(figure.metrics, colours)):
            y, value = number + (place - 0.5) * 0.4, metrics.get(metric)
            end = value["max"] if value else 0
            if value:
                axes.barh(y, value["median"], 0.36, color=colour)
                axes.plot((value["min"], end), (y, y), color=INK, linewidth=0.8)
            axes.text(end + 0.025 * longest, y, _number(value, figure.digits), fontsize=7.5,
                      va="center_baseline")
    axes.set(xlim=(0, longest * 1.3), ylim=(len(rows) - 0.45, -0.55), yticks=[], xticks=[],
             facecolor=PAPER)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.spines["left"].set_color(RULE)
    axes.annotate(f"{figure.title}, {figure.unit}", (0, 1), (0, 17), fontweight="bold",
                  xycoords="axes fraction", textcoords="offset points")
    axes.annotate(f"dark {figure.names[0]}, light {figure.names[1]}; {figure.better} is better",
                  (0, 1), (0, 5), xycoords="axes fraction", textcoords="offset points",
                  fontsize=7, color=PALE_INK)


def _labels(axes, result, section):
    """The peers' names and versions, and above them what wire it is, where there are several."""
    beside = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "ha": "right"}
    for number, (peer, _) in enumerate(_rows(result, section)):
        name, version = _label(result, peer)
        axes.annotate(name, (0, number), (-8, 1), va="bottom", **beside,
                      fontweight="bold" if peer.startswith(OURS) else "normal")
        axes.annotate(version, (0, number), (-8, -1), va="top", fontsize=7.5, color=PALE_INK,
                      **beside)
    if len(result["sections"]) > 1:
        axes.annotate(section["wire"], (0, 1), (-103, 32), xycoords="axes fraction",
                      textcoords="offset points", color=PALE_INK)


def _measured(result):
    """The figures that somebody has."""
    metrics = {metric for section in result["sections"] for _, found in _rows(result, section)
               for metric in found}
    return [figure for figure in DIGEST[result["kind"]] if metrics.intersection(figure.metrics)]


def _rows(result, section):
    """(peer, metrics) of those to show: the bare fast wire, which dwarfs all others, only alone."""
    peers = section["summary"]
    for peer, metrics in peers.items():
        if peer != BASELINE or result["kind"] == "link" or len(peers) == 1:
            yield peer, metrics


def _label(result, peer):
    version = result["versions"][peer]
    return peer, version if peer == BASELINE else version.split(" ", 1)[-1]


def _number(value, digits):
    if value is None:
        return "–"
    return f"{value['median']:.{digits}f}" + ("*" if value["disturbed"] else "")


def _footnote(result):
    about = result["about"]
    wire = f"{result['sections'][0]['wire']}; " if len(result["sections"]) == 1 else ""
    disturbed = any(value["disturbed"] for section in result["sections"]
                    for _, metrics in _rows(result, section) for value in metrics.values())
    return (f"{wire}{about['cpu']}; {about['kernel']}; {about['date'].split('T')[0]}; TCP with "
            f"{about['TCP congestion control']}; pinning: {about['pinning']}. "
            f"Medians of the rounds ({about['rounds']}); thin lines: lowest to highest."
            + (" *: other programs took part of the CPU." if disturbed else ""))
