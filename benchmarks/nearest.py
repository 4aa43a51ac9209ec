"""Exact background search beside the plain product and selection: time as a ratio with its spread, and peak memory.

    python benchmarks/nearest.py                N = 1 000 000, D = 128, B = 64, k = 4096; writes benchmarks/nearest.json

Contenders take turns in one process, after a warm-up, on the same isotropic unit vectors. Peak extra memory is that of
a process of its own, above what it holds once the inputs are made (Linux).
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np


def inputs(n, dim, batch):
    """Isotropic unit vectors: queries (batch, dim) and a bank (n, dim)."""
    rng = np.random.default_rng(0)
    bank = rng.standard_normal((n, dim), dtype=np.float32)
    for start in range(0, n, 65536):  # in place: the inputs leave no peak of their own
        rows = bank[start : start + 65536]
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    z = rng.standard_normal((batch, dim), dtype=np.float32)
    return z / np.linalg.norm(z, axis=1, keepdims=True), bank


def contenders(z, bank, k):
    """By name, calls that give the k best scores of every row."""
    import torch

    import la_core
    from la_core import kernels

    torch.set_num_threads(os.cpu_count())
    for name in ("numpy", "torch"):
        la_core.backend(name)
    tz, tbank = torch.from_numpy(z), torch.from_numpy(bank)
    n = bank.shape[0]

    def numpy_plain():
        scores = z @ bank.T
        chosen = np.argpartition(scores, n - k, axis=1)[:, n - k :]
        return np.take_along_axis(scores, chosen, axis=1)

    return {
        "torch: la_core": lambda: kernels.nearest(tz, tbank, k)[0],
        "torch: matmul + topk": lambda: torch.topk(tz @ tbank.T, k, sorted=False).values,
        "numpy: la_core": lambda: kernels.nearest(z, bank, k)[0],
        "numpy: matmul + argpartition": numpy_plain,
    }


def memory(field):
    """A line of this process's memory figures, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(field))) / 1024


def child(arguments):
    """Print the peak extra memory of one call."""
    z, bank = inputs(arguments.n, arguments.dim, arguments.batch)
    call = contenders(z, bank, arguments.k)[arguments.only]
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = memory("VmRSS")
    call()
    print(memory("VmHWM") - before)


def spread(values):
    """Least, median and greatest."""
    return [round(x, 3) for x in (min(values), statistics.median(values), max(values))]


def main():
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("n", 1_000_000), ("dim", 128), ("batch", 64), ("k", 4096), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        child(arguments)
        return

    z, bank = inputs(arguments.n, arguments.dim, arguments.batch)
    calls = contenders(z, bank, arguments.k)
    values = {name: np.sort(np.asarray(call()), axis=1) for name, call in calls.items()}  # warm-up, and the answer
    for name, found in values.items():
        np.testing.assert_allclose(found, values["torch: la_core"], rtol=0, atol=1e-6, err_msg=name)
    seconds = {name: [] for name in calls}
    for _ in range(arguments.repeats):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - began)
    del z, bank, calls

    results = {}
    for name, times in seconds.items():
        command = [sys.executable, __file__, *sys.argv[1:], "--only", name]
        peak = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rival = next(other for other in seconds if other.split(":")[0] == name.split(":")[0] and other != name)
        took = spread([1e3 * t for t in times])
        ratio = spread([theirs / ours for ours, theirs in zip(times, seconds[rival], strict=True)])
        results[name] = {"ms": took, "times_faster_than_rival": ratio, "peak_extra_MB": round(peak)}
        print(
            f"{name:<30} {took[1]:7.0f} ms ({took[0]:.0f} to {took[2]:.0f})   "
            f"{ratio[1]:.2f}x its rival ({ratio[0]:.2f} to {ratio[2]:.2f})   peak extra {peak:.0f} MB"
        )
    import torch

    about = {
        "n": arguments.n,
        "dim": arguments.dim,
        "batch": arguments.batch,
        "k": arguments.k,
        "repeats": arguments.repeats,
        "threads": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps({"about": about, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
