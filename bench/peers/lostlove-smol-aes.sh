# LostLove on smol with AES-256-GCM alone.
SUITE=aes-256-gcm DRIVER=-smol
. "$(dirname "$1")/_lostlove.sh"
