"""``python -m la_core report RUN_FOLDER`` and ``python -m la_core plan N``: what needs no program of one's own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from la_core import check
from la_core.errors import LaCoreError
from la_core.planner import Rates, measured, plan
from la_core.protocol import backend
from la_core.report import report
from la_core.settings import Settings


def _add_plan(commands: Any) -> None:
    plans = commands.add_parser(
        "plan", help="memory and time of a run of any size, on one device and on many, with the arithmetic"
    )
    plans.add_argument("n", metavar="N", type=_count, help="samples: 1281167, or 1e9")
    plans.add_argument("--dim", type=int, default=128, help="width of the embedding (128)")
    plans.add_argument("--devices", type=int, nargs="+", metavar="P", help="numbers to show (1 2 4 8)")
    plans.add_argument(
        "--bank-dtype",
        choices=("same", "float16", "bfloat16"),
        default="same",
        help="store the bank in half the memory",
    )
    plans.add_argument("--clusters", type=_count, metavar="M", help="of each clustering; by default one for 40 samples")
    plans.add_argument("--clusterings", type=int, default=Settings.n_clusterings, metavar="H", help="(3)")
    plans.add_argument("--background", type=_count, metavar="K", help="neighbours; by default up to 4096")
    plans.add_argument("--batch", type=int, default=Settings.batch_size, metavar="B", help="(128)")
    plans.add_argument("--rate", type=float, help="operations a second of a device; by default measured on this one")
    plans.add_argument("--link", type=float, help="bytes a second between two devices; by default not counted")
    plans.add_argument("--backend", default="numpy", help="that is measured, without --rate (numpy)")
    plans.set_defaults(call=_plan)


def _plan(options: argparse.Namespace) -> None:
    settings = Settings(
        bank_dtype=options.bank_dtype,
        n_clusters=options.clusters,
        n_clusterings=options.clusterings,
        n_background=options.background,
        batch_size=options.batch,
    )
    rates = (
        Rates.of(check.number("--rate", options.rate, 0.0, open_low=True))
        if options.rate is not None
        else measured(backend(options.backend), check.count("--dim", options.dim), options.batch)
    )
    if options.link is not None:
        rates = replace(rates, link=check.number("--link", options.link, 0.0, open_low=True))
    devices = options.devices or [p for p in (1, 2, 4, 8) if p <= options.n]
    print(plan(options.n, options.dim, settings=settings, devices=devices, rates=rates))


def _count(word: str) -> int:
    """A whole number, which may be written as 1e9."""
    with suppress(ValueError, OverflowError):
        number = float(word)
        if number == int(number):
            return int(number)
    raise argparse.ArgumentTypeError(f"must be a whole number, such as 1281167 or 1e9; got {word!r}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit status: 2 for what cannot be done as asked."""
    parser = argparse.ArgumentParser(prog="python -m la_core", description="A page for a run, and a plan for one.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    page = commands.add_parser("report", help="write a run as one HTML page that needs no network")
    page.add_argument("run_folder", metavar="RUN_FOLDER", help="folder that a run has left")
    page.add_argument("--out", metavar="FILE", help="the page; by default report.html in the run folder")
    page.set_defaults(call=lambda options: print(report(options.run_folder, options.out)))
    _add_plan(commands)
    options = parser.parse_args(argv)
    try:
        options.call(options)
    except LaCoreError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
