"""``python -m la_core report RUN_FOLDER``: what can be done with a run folder from the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from la_core.errors import LaCoreError
from la_core.report import report


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit status: 2 for what cannot be done as asked."""
    parser = argparse.ArgumentParser(prog="python -m la_core", description="What to do with a run folder.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    page = commands.add_parser("report", help="write a run as one HTML page that needs no network")
    page.add_argument("run_folder", metavar="RUN_FOLDER", help="folder that a run has left")
    page.add_argument("--out", metavar="FILE", help="the page; by default report.html in the run folder")
    page.set_defaults(call=lambda options: print(report(options.run_folder, options.out)))
    options = parser.parse_args(argv)
    try:
        options.call(options)
    except LaCoreError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
