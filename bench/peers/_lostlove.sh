# Shared by the LostLove peers, which set SUITE (a cipher suite) and DRIVER (a program suffix or
# nothing). Metrics are off: the harness reads /proc.

version() {
    need "lostlove-server$DRIVER" "lostlove-client$DRIVER" lostlove
    echo "$("lostlove-server$DRIVER" --version), $SUITE"
}

setup() {
    umask 077
    for end in server client; do
        lostlove genkey >"$end.key"
        lostlove pubkey <"$end.key" >"$end.pub"
    done
}

server() {
    cat >server.toml <<END_OF_CONFIG
[server]
bind_address = "$LOCAL"
[network]
tun_name = "$DEV"
tun_address = "$TUN_LOCAL/24"
enable_ipv6 = false
nat = false
[security]
private_key_file = "server.key"
suites = ["$SUITE"]
[monitoring]
enable_metrics = false
[[peers]]
name = "bench"
public_key = "$(cat client.pub)"
address = "$TUN_REMOTE"
END_OF_CONFIG
    "lostlove-server$DRIVER" --config server.toml &
}

client() {
    cat >client.toml <<END_OF_CONFIG
[client]
server = "$REMOTE:8443"
server_public_key = "$(cat server.pub)"
private_key_file = "client.key"
routes = "server"
dns = "none"
[network]
tun_name = "$DEV"
[security]
suites = ["$SUITE"]
END_OF_CONFIG
    "lostlove-client$DRIVER" --config client.toml &
}
