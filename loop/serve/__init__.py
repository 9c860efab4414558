"""The report as a live page: read-only, on this machine unless a token guards it. `loopctl serve` starts it."""
