"""coldpress makes language models small and starts them cold in seconds where there is no GPU."""

import os

__version__ = "0.1.0"

# Here because it counts only before the first library with OpenMP is loaded. libgomp's default, to spin
# for a millisecond at every barrier, is 5 to 50 times slower as soon as another process wants the CPU;
# 1000 turns are its own choice where threads outnumber CPUs.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
