"""Whole commands in new processes: wall time and peak memory, against their budgets.

    python -m benchmarks.startup [FLAGS OF THE JACOBIAN COMMAND]

Cold: an empty compile cache. Warm: the cache that the cold run left. Run it on a quiet machine.
"""

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

JACOBIAN = ("jaxprobe.jacobian", "--layer=1", "--num_texts=5")


def run(arguments: Sequence[str]) -> float:
    """Wall seconds of `python -m ARGUMENTS`; its output is dropped."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Prints one line a command."""
    with tempfile.TemporaryDirectory() as folder:
        extra = [f"--out={folder}/out", f"--compile_cache={folder}/cache", *sys.argv[1:]]
        rows = [
            ("--help", run(["jaxprobe.jacobian", "--help"]), 1),
            ("--layer=1 --num_texts=5, cold", run([*JACOBIAN, *extra]), 30),
            ("--layer=1 --num_texts=5, warm", run([*JACOBIAN, *extra]), 15),
            ("all layers, 30 texts, cold", run(["jaxprobe.jacobian", *extra]), None),
            ("all layers, 30 texts, warm", run(["jaxprobe.jacobian", *extra]), None),
        ]
    for name, wall, budget in rows:
        limit = f"  budget {budget} s, ratio {wall / budget:.2f}" if budget else ""
        print(f"jaxprobe.jacobian {name:32} {wall:7.2f} s{limit}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"peak memory of the largest: {peak:.2f} GiB  budget 2 GB, ratio {peak * 2**30 / 2e9:.2f}")


if __name__ == "__main__":
    main()
