"""How fast search, step and clustering are, beside what people would use instead, at the same exactness.

    PYTHONPATH=benchmarks python -m speed                    all rows at full size: up to 20 minutes on two cores
    PYTHONPATH=benchmarks python -m speed --large            clusterings of the size of ImageNet, once each
    PYTHONPATH=benchmarks python -m speed --only search step some rows
    PYTHONPATH=benchmarks python -m speed --scale 0.05       all at a twentieth of the size, to see that it runs

Writes benchmarks/speed.json, benchmarks/speed.txt and docs/speed.png; rows that were not run stay as they were. With
another scale nothing is written, unless --out says where.

Every contender has a process of its own, the same cores and the same number of threads, and all take turns: a warm-up,
then five runs, ten of search and steps, three where one takes more than ten seconds, two above 25. Answers are
compared. faiss's wheel carries an OpenBLAS that does not know CPUs with AVX-512 made since, and takes kernels for SSE3,
four times as slow: its processes are started with OPENBLAS_CORETYPE=SkylakeX where the CPU has AVX-512 and the variable
is not set.

Needs Linux for the peaks of memory, and up to 10 GB of it. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from speed.report import about, draw, table
from speed.rows import LARGE, ROWS, Row, carry_out
from speed.turns import Plan

HERE = Path(__file__).resolve().parents[1]
FILES = HERE / "speed.json", HERE / "speed.txt", HERE.parent / "docs" / "speed.png"


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        "python -m speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", metavar="ROW", choices=[*ROWS, *LARGE], help="of " + ", ".join(ROWS | LARGE)
    )
    parser.add_argument("--large", action="store_true", help="the rows " + ", ".join(LARGE))
    parser.add_argument("--scale", type=float, default=1.0, help="of N, m and k")
    parser.add_argument("--repeats", type=int, default=5, help="twice as many of search and steps, 3 or 2 of slow ones")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--timeout", type=float, help="seconds of one run: 600, or 7200 for large rows")
    parser.add_argument("--bank", type=Path, metavar="FILE.npy", help="rows of a bank from a trained encoder")
    parser.add_argument("--out", type=Path, help="a folder for the results, instead of benchmarks/ and docs/")
    return parser.parse_args(arguments)


def chosen(options: argparse.Namespace) -> dict[str, Row]:
    """The rows to be run."""
    names = options.only or (LARGE if options.large else ROWS)
    rows = {name: (ROWS | LARGE)[name] for name in names}
    if options.bank:
        rows = {name: row.on(options.bank) for name, row in rows.items()}
    return {name: row.scaled(options.scale) for name, row in rows.items()} if options.scale != 1 else rows


def failed(found: dict[str, Any]) -> bool:
    """Whether a contender of a row failed or was wrong."""
    return bool(found["wrong"]) or any(c["error"] for c in (found.get("contenders") or found["curves"]).values())


def main(arguments: list[str] | None = None) -> int:
    """Run, print and keep. 1 if a contender failed or was wrong."""
    options = parsed(arguments)
    files = [options.out / file.name for file in FILES] if options.out else FILES if options.scale == 1 else None
    kept: dict[str, Any] = {"rows": {}}
    if files:
        files[0].parent.mkdir(parents=True, exist_ok=True)
        kept = json.loads(files[0].read_text()) if files[0].is_file() else kept
    kept["about"] = about(options.threads)
    order, bad = [*ROWS, *LARGE], False
    began = time.perf_counter()
    for name, row in chosen(options).items():
        timeout = options.timeout or (7200 if name in LARGE else 600)
        found = carry_out(row, Plan(options.repeats, min(Plan.slow_repeats, options.repeats), options.threads, timeout))
        found["about"] = kept["about"]
        bad = bad or failed(found)
        kept["rows"][name] = found
        print(table({"about": kept["about"], "rows": {name: found}}).partition("\n\n")[2], flush=True)
        print(f"  {time.perf_counter() - began:.0f} s so far\n", flush=True)
        kept["rows"] = {name: kept["rows"][name] for name in order if name in kept["rows"]}
        if files:
            files[0].write_text(json.dumps(kept, indent=1) + "\n")
            files[1].write_text(table(kept) + "\n")
            draw(kept, files[2])
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
