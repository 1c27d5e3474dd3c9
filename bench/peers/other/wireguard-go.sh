# WireGuard in user space, the first one in PATH. Versions before 2023 know no segmentation
# offload.

version() {
    need wireguard-go wg
    # The program's own word: it need not be the package's.
    wireguard-go --version | head -n 1
}

setup() {
    umask 077
    for end in server client; do
        wg genkey >"$end.key"
        wg pubkey <"$end.key" >"$end.pub"
    done
}

# wireguard_up OTHER [OPTION...]: OTHER is the other end.
wireguard_up() {
    other=$(cat "$1.pub")
    shift
    LOG_LEVEL=error wireguard-go "$DEV"
    wg set "$DEV" private-key "$END.key" listen-port 51820 \
        peer "$other" allowed-ips "$TUN_REMOTE/32" "$@"
    tunnel_up 1420
}

server() { wireguard_up client; }
client() { wireguard_up server endpoint "$REMOTE:51820"; }
