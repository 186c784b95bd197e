"""The commands, one per file: the console script runs `main`. Heavy imports are inside it, so that --help is quick."""

import os

# Read by PyTorch's OpenMP when it is loaded: a thread that waits for others sleeps, and takes no time from other processes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
