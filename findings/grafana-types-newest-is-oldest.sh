#!/usr/bin/env bash
# What pip takes for the newest grafana-foundation-sdk is the one for the oldest Grafana, also with ">=11".
#
# One would guess: `pip install 'grafana-foundation-sdk>=11'`, as for any package with versions such as 10.1.0
# and 11.6.0, installs types of Grafana 11.
#
# What happens: each version has an epoch (PEP 440, "1769699998!10.1.0"), a Unix time, and an
# epoch counts before all else. A release is made for one Grafana after the other, the oldest last, so that 10.1.0
# is the highest of all, and any is higher than 11 without an epoch: ">=11" is satisfied by 10.1.0.
#
# Version: grafana-foundation-sdk 1769699998!10.1.0 and 1769699379!11.6.0 on PyPI, seen 30 November 2026 with
# pip 23.2.1 of Python 3.11.
#
# For a VPN: a dashboard that is checked with Grafana's own types is checked with those of 2023, and comes back
# without what is newer. Pin the whole version, epoch included.
set -euo pipefail

# cannot WHY: this machine cannot show the finding, which says nothing about it.
cannot() {
    echo "cannot run here: $*" >&2
    exit 77
}

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" 2>/dev/null || cannot "no python3-venv"
pip=("$folder/venv/bin/pip" --disable-pip-version-check --quiet)
# installed SPECIFIER: the version that pip chooses.
installed() {
    "${pip[@]}" install --no-deps --only-binary :all: --target "$folder/$2" "grafana-foundation-sdk$1" ||
        cannot "pip cannot install grafana-foundation-sdk$1"
    ls "$folder/$2" | sed -n 's/^grafana_foundation_sdk-\(.*\)\.dist-info$/\1/p'
}
at_least=$(installed '>=11' any)
oldest=$(installed '>=11,==1769699998!10.1.0' oldest)
pinned=$(installed '==1769699379!11.6.0' pinned)
echo "'>=11' installs $at_least"
echo "'>=11,==1769699998!10.1.0' installs $oldest"
echo "'==1769699379!11.6.0' installs $pinned"
case "$at_least $oldest $pinned" in
*!10.1.0\ 1769699998!10.1.0\ 1769699379!11.6.0) ;;
*)
    echo "CHANGED: expected 10.1.0 of any epoch, then the two as they are pinned"
    exit 1
    ;;
esac
echo "as described: the newest is the oldest, and at least 11 is 10.1.0"
