# Sourced by the findings. They need Debian or Ubuntu with iproute2, util-linux and python3.

# cannot WHY: this machine cannot show the finding, which says nothing about it.
cannot() {
    echo "cannot run here: $*" >&2
    exit 77
}

need_tun() {
    [ -w /dev/net/tun ] || cannot "/dev/net/tun is not there or not writable for this user"
}

# sandboxed COMMAND...: in a network and a PID namespace of its own; whatever it starts ends with it.
# As root, or as a user who may make user namespaces.
sandboxed() {
    local spaces=(--net --pid --fork --kill-child --mount --mount-proc)
    [ "$(id -u)" = 0 ] || spaces+=(--user --map-root-user)
    unshare "${spaces[@]}" true || cannot "no network namespace of its own"
    PYTHONDONTWRITEBYTECODE=1 unshare "${spaces[@]}" timeout -k 1 120 "$@"
}
