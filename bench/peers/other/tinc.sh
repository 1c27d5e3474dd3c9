# tinc 1.0 over UDP with the ciphers of its defaults.

version() {
    need tincd
    package_version tinc
}

setup() {
    for end in server client; do
        mkdir -p "$end/hosts"
        echo "Name = $end" >"$end/tinc.conf"
        tincd --config "$end" --generate-keys=2048 </dev/null
    done
    echo "ConnectTo = server" >>client/tinc.conf
}

# Writes what needs the addresses, which setup does not know, and starts this end.
tinc_up() {
    echo "Interface = $DEV" >>"$END/tinc.conf"
    { echo "Address = $1"; echo "Subnet = $2/32"; cat server/hosts/server; } >"$END/server.new"
    { echo "Subnet = $3/32"; cat client/hosts/client; } >"$END/client.new"
    mv "$END/server.new" "$END/hosts/server"
    mv "$END/client.new" "$END/hosts/client"
    tincd --config "$END" --no-detach --pidfile "$PWD/$END.pid" &
    wait_device
    tunnel_up 1500
}

server() { tinc_up "$LOCAL" "$TUN_LOCAL" "$TUN_REMOTE"; }
client() { tinc_up "$REMOTE" "$TUN_REMOTE" "$TUN_LOCAL"; }
