# Helpers for the peers' files; sourced before each of them.

# need PROGRAM...: skips this peer if one is missing, and names those on one line.
need() {
    missing=
    for program in "$@"; do
        command -v "$program" >/dev/null || missing="$missing $program"
    done
    [ -z "$missing" ] || { echo "${missing# }"; exit 77; }
}

# The version of a Debian package.
package_version() {
    dpkg-query --show --showformat '${Package} ${Version}' "$1" 2>/dev/null ||
        echo "$1, not from a package"
}

# Waits until the daemon has made $DEV.
wait_device() {
    for _ in $(seq 200); do
        [ -e "/sys/class/net/$DEV" ] && return
        sleep 0.02
    done
    echo "there is no $DEV"
    return 1
}

# tunnel_up MTU: gives $DEV its addresses and starts it.
tunnel_up() {
    ip address add "$TUN_LOCAL" peer "$TUN_REMOTE" dev "$DEV"
    ip link set "$DEV" up mtu "$1"
}

# A peer without keys and files has nothing to prepare.
setup() { :; }
