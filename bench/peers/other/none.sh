# No VPN: the tunnel's addresses are on the wire itself. What this machine and this wire can do.

version() { echo "no VPN"; }
server() { ip address add "$TUN_LOCAL" peer "$TUN_REMOTE" dev "$WIRE"; }
client() { server; }
