"""`python -m loop.daemon`: the same as `loopd`."""

from loop.daemon.loopd import main

main()
