# LostLove on mio with its default suite, HSE.
SUITE=hse DRIVER=
. "$(dirname "$1")/_lostlove.sh"
