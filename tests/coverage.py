#!/usr/bin/env python3
"""Runs the tests of core and config, and says which lines of these crates they reach.

    tests/coverage.py             figures for each file and crate
    tests/coverage.py --missing   each line that no test reaches as well

Lines of test code do not count: modules named tests or testing and files of tests, which would
count as covered and flatter the figure. Ends with 1 if a crate is below 90 %. Needs cargo-llvm-cov,
and llvm-tools or the LLVM programs of the system: see docs/evidence.md.
"""

import collections
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
REPORT = ROOT / "target" / "coverage.lcov"
CRATES = ("core", "config")
REQUIRED_PERCENT = 90
TEST_FILE = re.compile(r"/tests?/|(/|_)(tests|testing)\.rs$")
TEST_MODULE = re.compile(r"^#\[cfg\(test\)\]\n.*\bmod \w+ \{", re.MULTILINE)


def main(arguments):
    packages = [word for crate in CRATES for word in ("-p", f"lostlove-{crate}")]
    command = ["cargo", "llvm-cov", "test", *packages, "--lcov", "--output-path", str(REPORT)]
    subprocess.run(command, cwd=ROOT, check=True)
    totals = collections.Counter()
    for path, hits in sorted(read_report().items()):
        missing = [line for line, count in hits.items() if count == 0]
        totals[path.parts[0], "all"] += len(hits)
        totals[path.parts[0], "missing"] += len(missing)
        print_figure(path, len(hits), len(missing))
        if "--missing" in arguments:
            print_lines(path, missing)
    percents = [print_figure(c, totals[c, "all"], totals[c, "missing"]) for c in CRATES]
    return 1 if min(percents) < REQUIRED_PERCENT else 0


def read_report():
    """How often each line of each file ran; a line of generic code may be listed several times."""
    files, path, end = collections.defaultdict(dict), None, 0
    for entry in REPORT.read_text().splitlines():
        if entry.startswith("SF:"):
            path = pathlib.Path(entry[3:]).relative_to(ROOT)
            end = last_line(path)
        elif entry.startswith("DA:"):
            line, count = (int(number) for number in entry[3:].split(",")[:2])
            if line <= end:
                files[path][line] = files[path].get(line, 0) + count
    return files


def last_line(path):
    """The last line before a file's tests."""
    if path.parts[0] not in CRATES or TEST_FILE.search(str(path)):
        return 0
    text = (ROOT / path).read_text()
    tests = TEST_MODULE.search(text)
    return text.count("\n", 0, tests.start() if tests else len(text))


def print_figure(name, lines, missing):
    percent = 100 * (lines - missing) / max(lines, 1)
    print(f"{percent:6.2f} %  {lines - missing:5} of {lines:5}  {name}")
    return percent


def print_lines(path, lines):
    text = (ROOT / path).read_text().splitlines()
    for line in lines:
        print(f"{line:10}: {text[line - 1].strip()}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
