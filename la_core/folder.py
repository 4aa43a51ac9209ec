"""The folder of a run: readable at any moment, also after Ctrl-C.

settings.json     every setting, automatic values resolved
metrics.jsonl     one line for each epoch
embeddings.npz    bank (N, D) and labels (H, N)
encoder.npz       the encoder's weights by name
status.json       how far the run came: running, finished, interrupted or failed
curves.png        drawn by la_core.report
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from la_core.errors import RunFolderError
from la_core.settings import Settings


class RunFolder:
    """Writes one run. Files appear whole: each is written beside its place and renamed into it."""

    def __init__(self, path: str | Path, settings: Settings) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if any(self.path.iterdir()):
                raise RunFolderError(f"the run folder {self.path} is not empty; name another one")
            settings.save(self.path / "settings.json")
            self.metrics = (self.path / "metrics.jsonl").open("a")
        except OSError as error:
            raise RunFolderError(f"the run folder {self.path} cannot be written: {error}") from error

    def append(self, record: Mapping[str, Any]) -> None:
        """One more line of metrics, on disk when this returns."""
        self.metrics.write(json.dumps(record) + "\n")
        self.metrics.flush()

    def status(self, word: str, **facts: Any) -> None:
        """How far the run came."""
        self._whole("status.json", lambda file: file.write_text(json.dumps({"status": word, **facts}) + "\n"))

    def arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Arrays under a file name that ends in ``.npz``."""

        def write(file: Path) -> None:
            with file.open("wb") as stream:
                np.savez(stream, **arrays)  # type: ignore[arg-type]

        self._whole(name, write)

    def _whole(self, name: str, write: Any) -> None:
        beside = self.path / f".{name}.part"
        write(beside)
        beside.replace(self.path / name)

    def close(self) -> None:
        """No more metrics."""
        self.metrics.close()


def read_metrics(path: str | Path) -> Iterator[dict[str, Any]]:
    """The records of a run folder, one for each epoch. A last line that was cut off is left out."""
    file = Path(path) / "metrics.jsonl"
    if not file.is_file():
        raise RunFolderError(f"{path} is no run folder: it has no metrics.jsonl")
    for line in file.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return
