#!/usr/bin/env python3
"""Reads the dashboard with Grafana's own types and writes it again: nothing may change.

    python3 -m venv venv
    venv/bin/pip install 'grafana-foundation-sdk==1769699379!11.6.0'
    venv/bin/python deploy/grafana/round_trip.py

What it says is how Grafana's types differ from the file; --write puts the file right.
"""

import argparse
import difflib
import json
import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

FILE = Path(__file__).with_name("lostlove.json")


def through_the_types(value):
    return json.loads(JSONEncoder().encode(Dashboard.from_json(value)))


def main():
    options = argparse.ArgumentParser(description="Check lostlove.json with Grafana's types.")
    options.add_argument("--write", action="store_true", help="write it as they do")
    write = options.parse_args().write
    register_default_plugins()
    text = FILE.read_text(encoding="utf-8")
    known = through_the_types(json.loads(text))
    normal = json.dumps(known, indent=2, ensure_ascii=False) + "\n"
    if write:
        FILE.write_text(normal, encoding="utf-8")
    elif json.loads(text) != known:
        pair = (text.splitlines(), normal.splitlines())
        print("\n".join(difflib.unified_diff(*pair, FILE.name, "Grafana's types", lineterm="")))
        sys.exit(1)
    print(f"{FILE.name}: {len(known['panels'])} panels, as Grafana's types have it")


if __name__ == "__main__":
    main()
