#!/usr/bin/env bash
# A masqueraded connection goes on without the rule that masquerades it, as long as a nat chain and any rule that
# asks for connection tracking remain; an empty nat chain alone does not keep it.
#
# One would guess: a connection's translation is decided with its first packet and kept in its entry of
# connection tracking, so taking the rule away leaves running connections alone. Or: without any rule that
# masquerades nothing is translated any more.
#
# What happens: both, by what else is there. Translation is done as long as there is a chain of type nat, whatever
# is in it; but nothing is tracked once no rule asks for it (with ct, masquerade, snat ..), a nat chain does not ask,
# and an untracked packet has no translation to be found. So with an empty nat chain alone the router takes answers
# for its own and resets the connection; with that and one rule `ct state new` in any chain it goes on.
#
# Version: seen on Linux 6.18.44, 1 December 2026, with nftables 1.0.6.
#
# For a VPN: who replaces a server's table in two steps resets its clients' downloads, even if another nat
# chain is there, unless some rule elsewhere asks for connection tracking meanwhile.
set -euo pipefail

# cannot WHY: this machine cannot show the finding, which says nothing about it.
cannot() {
    echo "cannot run here: $*" >&2
    exit 77
}

PATH=$PATH:/usr/sbin:/sbin
command -v nft >/dev/null || cannot "nft is not installed"
spaces=(--net --pid --fork --kill-child --mount --mount-proc)
[ "$(id -u)" = 0 ] || spaces+=(--user --map-root-user)
unshare "${spaces[@]}" true || cannot "no network namespace of its own"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# A download through a masquerading router, of which the rule is taken away in its midst.
cat >"$folder/download.py" <<'PYTHON'
import os, socket, subprocess, sys, time

ROUTER, CLIENT, SERVER = ("192.0.2.1", "10.8.0.1"), "10.8.0.2", "192.0.2.2"
REST = {
    "nothing": "",
    "an empty nat chain": "chain n { type nat hook postrouting priority 100; };",
    "a rule with ct": "chain f { type filter hook forward priority 0; ct state new accept; };",
}
REST["both"] = REST["an empty nat chain"] + REST["a rule with ct"]


def run(line):
    subprocess.run(line, shell=True, check=True)


def inside(pid, code):
    line = ["nsenter", "-t", str(pid), "-n", sys.executable, "-c", code]
    return subprocess.Popen(line, stdout=subprocess.PIPE, text=True)


def host(link, address, router):
    holder = subprocess.Popen(["unshare", "--net", "sleep", "60"])
    while os.readlink(f"/proc/{holder.pid}/ns/net") == os.readlink("/proc/self/ns/net"):
        time.sleep(0.01)
    run(f"ip link add {link} type veth peer name e netns {holder.pid}")
    run(f"ip addr add {router}/24 dev {link}; ip link set {link} up")
    run(f"nsenter -t {holder.pid} -n sh -c 'ip addr add {address}/24 dev e; ip link set e up'")
    return holder.pid


run("ip link set lo up; echo 1 >/proc/sys/net/ipv4/ip_forward")
server, client = host("s", SERVER, ROUTER[0]), host("c", CLIENT, ROUTER[1])
run(f"nsenter -t {client} -n ip route add default via {ROUTER[1]}")
rest = REST[sys.argv[1]]
run(f"nft 'table ip rest {{ {rest} }}'")
run("nft 'table ip t { chain c { type nat hook postrouting priority 100; oifname s masquerade; }; }'")
sender = inside(server, f'''
import socket, time
with socket.create_server(("{SERVER}", 9000)) as listener:
    connection, peer = listener.accept()
assert peer[0] == "{ROUTER[0]}", peer
try:
    for _ in range(1500):
        connection.send(b"x" * 1000)
        time.sleep(0.001)
    print("goes on")
except ConnectionError:
    print("is reset")
''')
time.sleep(0.5)
reader = inside(client, f'''
import socket
with socket.create_connection(("{SERVER}", 9000)) as connection:
    connection.settimeout(3)
    try:
        while connection.recv(65536):
            pass
    except OSError:
        pass
''')
time.sleep(0.5)
run("nft delete table ip t")
print(sender.communicate(timeout=30)[0].strip())
reader.kill()
PYTHON
uname -sr
nft --version
failed=
while IFS='|' read -r rest expected; do
    seen=$(unshare "${spaces[@]}" timeout -k 1 60 python3 "$folder/download.py" "$rest") || cannot "namespaces, veth or NAT"
    echo "left with $rest, the download $seen"
    [ "$seen" = "$expected" ] || failed+="; with $rest it $seen"
done <<'CASES'
nothing|is reset
an empty nat chain|is reset
a rule with ct|is reset
both|goes on
CASES
if [ -n "$failed" ]; then
    echo "other than described$failed" >&2
    exit 1
fi
echo "as described: translation lasts as long as a nat chain and a rule that asks for tracking"
