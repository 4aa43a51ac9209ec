"""Which calls of PyTorch on a CPU wake its other threads, be it for 128 numbers, and what that costs.

    python benchmarks/wake.py

Before ``torch.set_num_threads`` was called, and after. For each call, after a pause in which all threads went to sleep:
how long it took, and how long the other threads of the process were at work during it and 30 ms after, most of which is
waiting for more. Linux alone tells the latter.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

REPEATS, PAUSE = 9, 0.05


def others() -> float:
    """Seconds of CPU that the threads of this process have had, but for the first."""
    tasks = (task for task in Path("/proc/self/task").iterdir() if int(task.name) != os.getpid())
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def main() -> None:
    """Print both tables."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.rand(600, 600).exp()  # which begins the threads
    print(f"{torch.get_num_threads()} threads")
    measure()
    torch.set_num_threads(torch.get_num_threads())
    print("after torch.set_num_threads, to the same number")
    measure()


def measure() -> None:
    """Print one."""
    x = torch.rand(128, 1) + 0.1
    calls: dict[str, Callable[[], object]] = {
        "sqrt": x.sqrt,
        "rsqrt": x.rsqrt,
        "exp": x.exp,
        "log": x.log,
        "product": lambda: x * x,
        "sum": x.sum,
        "norm": lambda: torch.linalg.vector_norm(x, dim=1),
        "where": lambda: torch.where(x > 0, x, 0.0),
    }
    print(f"{'ms':<10}{'took':>18}{'others at work':>18}")
    for name, call in calls.items():
        call()
        took: list[float] = []
        worked: list[float] = []
        for _ in range(REPEATS):
            time.sleep(PAUSE)
            before, began = others(), time.perf_counter()
            call()
            took.append(1e3 * (time.perf_counter() - began))
            time.sleep(0.03)
            worked.append(1e3 * (others() - before))
        print(f"{name:<10}" + "".join(f"{f'{min(t):.2f} to {max(t):.2f}':>18}" for t in (took, worked)))


if __name__ == "__main__":
    main()
