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
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from la_core.errors import RunFolderError
from la_core.settings import Settings


class RunFolder:
    """Writes one run. Files appear whole: each is written beside its place and renamed into it.

    Making it only claims an empty folder; :meth:`start` writes the first files.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            held = next(self.path.iterdir(), None)
        except OSError as error:
            raise RunFolderError(f"the run folder {self.path} cannot be made: {error}") from error
        if held is not None:
            raise RunFolderError(f"the run folder {self.path} is not empty (it holds {held.name}); name another one")
        if not os.access(self.path, os.W_OK):
            raise RunFolderError(f"the run folder {self.path} cannot be written")

    def start(self, settings: Settings) -> None:
        """Settings, empty metrics, and the status of a run that has begun."""
        settings.save(self.path / "settings.json")
        (self.path / "metrics.jsonl").touch()
        self.status("running", epoch=0, epochs=settings.epochs)

    def append(self, record: Mapping[str, Any]) -> None:
        """One more line of metrics."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")

    def status(self, word: str, **facts: Any) -> None:
        """How far the run came."""
        line = json.dumps({"status": word, **facts}) + "\n"
        self._whole("status.json", lambda file: file.write_text(line))

    def arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Arrays by name, in a file that ends in ``.npz``."""
        held: Any = arrays

        def write(file: Path) -> None:
            with file.open("wb") as stream:
                np.savez(stream, **held)

        self._whole(name, write)

    def _whole(self, name: str, write: Callable[[Path], object]) -> None:
        beside = self.path / f".{name}.part"
        write(beside)
        beside.replace(self.path / name)


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
