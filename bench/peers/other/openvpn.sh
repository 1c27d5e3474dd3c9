# OpenVPN over TCP with AES-256-GCM, in user space (without the kernel module DCO).

version() {
    need openvpn openssl
    package_version openvpn
}

setup() {
    for end in server client; do
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
            -subj "/CN=$end" -keyout "$end.key" -out "$end.crt"
        openssl x509 -in "$end.crt" -noout -fingerprint -sha256 | cut -d= -f2 >"$end.print"
    done
}

# openvpn_up OTHER OPTION...: OTHER is the other end, whose certificate alone is accepted.
openvpn_up() {
    print=$(cat "$1.print")
    shift
    openvpn --dev "$DEV" --dev-type tun --ifconfig "$TUN_LOCAL" "$TUN_REMOTE" --disable-dco \
        --cert "$END.crt" --key "$END.key" --peer-fingerprint "$print" \
        --data-ciphers AES-256-GCM --socket-flags TCP_NODELAY --keepalive 10 60 "$@" &
}

server() { openvpn_up client --tls-server --dh none --proto tcp-server --local "$LOCAL"; }
client() { openvpn_up server --tls-client --proto tcp-client --remote "$REMOTE" --nobind; }
