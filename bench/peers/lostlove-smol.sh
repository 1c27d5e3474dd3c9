# LostLove on smol with its default suite, HSE.
SUITE=hse DRIVER=-smol
. "$(dirname "$1")/_lostlove.sh"
