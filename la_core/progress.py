"""How a run shows itself in a terminal: a callback, like any other."""

from __future__ import annotations

import sys
import time
from typing import Any

from la_core.errors import NotFiniteError
from la_core.run import Callback, Run


class Progress(Callback):
    """A live bar with throughput and time to go, by tqdm; into a file, or without tqdm, one line for each epoch."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._began, self._from = 0.0, 0
        self._last = ""

    def on_start(self, run: Run) -> None:
        """Open the bar."""
        self._began, self._from = time.perf_counter(), len(run.history)
        if not sys.stderr.isatty():
            return
        try:
            from tqdm import tqdm
        except ImportError:
            return
        total = run.settings.epochs * len(run.data)
        done = self._from * len(run.data)
        self._bar = tqdm(
            total=total, initial=done, unit=" samples", unit_scale=True, dynamic_ncols=True, file=sys.stderr
        )

    def on_resume(self, run: Run) -> None:
        """Say from where; then as at the start."""
        print(f"goes on after {len(run.history)} epochs, at step {run.step}", file=sys.stderr, flush=True)
        self.on_start(run)

    def on_step(self, run: Run, loss: float) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.set_description_str(f"{run.phase}, epoch {run.epoch + 1}/{run.settings.epochs}", refresh=False)
            self._bar.set_postfix_str(f"loss {loss:.3f}{self._last}", refresh=False)
            self._bar.update(run.last_batch)

    def on_skip(self, run: Run, error: NotFiniteError) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(run.last_batch)

    def on_epoch(self, run: Run, record: dict[str, Any]) -> None:
        """Show the running measure, and what is wrong with the run."""
        self._last = f", kNN {record['knn']:.1%}" if "knn" in record else self._last
        if self._bar is None:
            done = run.epoch + 1
            passed = time.perf_counter() - self._began
            here = done - self._from  # epochs since the start of this process
            to_go = passed / here * (run.settings.epochs - done)
            print(
                f"{run.phase}, epoch {done}/{run.settings.epochs}: loss {record['loss']:.3f}{self._last}, "
                f"{here * len(run.data) / passed:.0f} samples/s, {to_go:.0f} s to go",
                file=sys.stderr,
                flush=True,
            )
        for warning in record.get("warnings", ()):
            self._say(f"warning: {warning}")

    def _say(self, line: str) -> None:
        """A line of its own, above the bar where there is one."""
        if self._bar is None:
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.write(line, file=sys.stderr)

    def on_end(self, run: Run) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
