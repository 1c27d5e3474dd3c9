#!/usr/bin/env bash
# A `list table` at the end of a file for `nft -f` shows the chains that the file has made, and none of their
# rules.
#
# One would guess: the commands of a file come one after the other, so the list shows the table as the file
# leaves it; or, as a file is one transaction, as it was before.
#
# What happens: it shows neither. The chains of the file are there, with hook and policy, and are empty, though all
# rules are in force a moment later; of a table that the file replaces, the former rules are not there either. It
# ends with 0.
#
# Version: seen with nftables 1.0.6 on Linux 6.18.44, 1 December 2026.
#
# For a VPN: who wants to remember how its table is listed, to see later whether somebody has changed it, saves no
# second `nft` this way. What it would remember is a table without rules.
set -euo pipefail

# cannot WHY: this machine cannot show the finding, which says nothing about it.
cannot() {
    echo "cannot run here: $*" >&2
    exit 77
}

nft=$(PATH=$PATH:/usr/sbin:/sbin command -v nft) || cannot "nft is not installed"
spaces=(--net)
[ "$(id -u)" = 0 ] || spaces+=(--user --map-root-user)
unshare "${spaces[@]}" true || cannot "no network namespace of its own"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/file" <<'NFT'
table inet t
delete table inet t
table inet t {
    chain c {
        type filter hook output priority filter; policy accept;
        ip daddr 192.0.2.1 drop
    }
}
list table inet t
NFT
sed 's/192.0.2.1/192.0.2.2/' "$folder/file" >"$folder/other"

unshare "${spaces[@]}" bash -euc '
    "$1" -f "$2/file" >"$2/new"
    "$1" list table inet t >"$2/after"
    "$1" -f "$2/other" >"$2/replaced"
' bash "$nft" "$folder" || cannot "nftables in a namespace of its own"

"$nft" --version
echo "listed by the file that makes the table:"
cat "$folder/new"
echo "listed by another program after it:"
cat "$folder/after"
echo "listed by a file that replaces it:"
cat "$folder/replaced"

fail() {
    echo "other than described: $*" >&2
    exit 1
}
grep -q 'ip daddr 192.0.2.1 drop' "$folder/after" || fail "the rule is not in force after the file"
for listing in new replaced; do
    grep -q 'hook output' "$folder/$listing" || fail "the file does not list its chain ($listing)"
    if grep -q 'ip daddr' "$folder/$listing"; then
        fail "the file lists a rule ($listing)"
    fi
done
echo "as described: a file lists its chains without their rules"
