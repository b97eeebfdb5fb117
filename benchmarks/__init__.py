"""Benchmarks: `python -m benchmarks.NAME` from the root; side by side in one run, with ratios."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as jaxprobe.runtime does, before jax loads it
