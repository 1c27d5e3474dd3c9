# LostLove on mio with AES-256-GCM alone.
SUITE=aes-256-gcm DRIVER=
. "$(dirname "$1")/_lostlove.sh"
