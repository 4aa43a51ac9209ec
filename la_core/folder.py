"""The folder of a run: readable at any moment, also after Ctrl-C.

settings.json     every setting, automatic values resolved
metrics.jsonl     one line for each epoch
bank.npy          the bank while the run is at work, where the settings keep it in a file
embeddings.npz    bank (N, D) and labels (H, N)
encoder.npz       the encoder's weights by name
status.json       how far the run came: running, finished, interrupted, terminated or failed
checkpoints/      the run between two steps, to go on from: see la_core.checkpoint
run.lock          there while a run is at work
curves.png        drawn by la_core.report
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from la_core import lock
from la_core.checkpoint import Checkpoint, Checkpoints
from la_core.errors import CheckpointError, RunFolderError
from la_core.settings import Settings
from la_core.storage import Storage

CHECKPOINTS = "checkpoints"
BANK = "bank.npy"


class RunFolder:
    """Writes one run. Files appear whole: each is written beside its place and renamed into it.

    Making it only claims the folder, for this run alone until :meth:`close`; :meth:`start` writes the first files.

    Parameters
    ----------
    path
        A new or an empty folder, or by ``resume`` one that holds checkpoints.
    resume
        ``"never"``: the folder must be empty. ``"auto"``: go on from its newest checkpoint, or begin if it is empty.
        ``"must"``: go on.

    Attributes
    ----------
    checkpoints
        Those of the folder.
    found
        The one to go on from, or None.

    Raises
    ------
    RunFolderError
        It cannot be made or written, holds something else, or another run is at work in it.
    CheckpointError
        None of its checkpoints can be used, or by ``"must"`` there is none.
    """

    def __init__(self, path: str | Path, resume: str = "never") -> None:
        self.path = Path(path)
        if resume == "must" and not self.path.is_dir():
            raise CheckpointError(f"{self.path} holds no checkpoint to go on from: there is no such folder")
        try:
            new = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            for folder in new:
                Storage().sync_folder(folder.parent)
        except OSError as error:
            raise RunFolderError(f"the run folder {self.path} cannot be made: {error}") from error
        for what, mode in (("written", os.W_OK), ("read", os.R_OK | os.X_OK)):
            if not os.access(self.path, mode):
                raise RunFolderError(f"the run folder {self.path} cannot be {what}")
        if resume == "never":
            self._refuse_what_it_holds("name another one, or go on with its run by resume='auto' (--resume)")
        self._lock = lock.Lock(self.path)
        self.checkpoints = Checkpoints(self.path / CHECKPOINTS)
        try:
            self.found = self._found(resume)
        except BaseException:
            self.close()
            raise

    def _found(self, resume: str) -> Checkpoint | None:
        found = None if resume == "never" else self.checkpoints.latest()
        if found is None and resume == "must":
            raise CheckpointError(f"{self.path} holds no checkpoint to go on from")
        if found is None:
            self._refuse_what_it_holds("and no checkpoint: name another one")
        return found

    def _refuse_what_it_holds(self, advice: str) -> None:
        """Anything but what a run leaves that was killed before its first checkpoint."""
        ours = self.path / CHECKPOINTS
        held = [file for file in self.path.iterdir() if file.name not in (lock.NAME, BANK) and file != ours]
        held += [file for file in ours.iterdir() if not file.name.startswith(".")] if ours.is_dir() else []
        if held:
            raise RunFolderError(f"the run folder {self.path} is not empty (it holds {min(held).name}); {advice}")

    def start(self, settings: Settings, history: list[dict[str, Any]] | None = None) -> None:
        """Settings, the metrics so far and no line more, and the status of a run that has begun."""
        lines = "".join(json.dumps(record) + "\n" for record in history or [])
        whole(self.path / "settings.json", settings.save)
        whole(self.path / "metrics.jsonl", lambda file: file.write_text(lines))
        self.status("running", epoch=len(history or []), epochs=settings.epochs)

    def bank(self, shape: tuple[int, int], dtype: str) -> np.ndarray:
        """A bank of zeros in a new file, mapped into memory. It is no checkpoint, for it changes as the run goes."""
        try:
            (self.path / BANK).unlink(missing_ok=True)
            return np.lib.format.open_memmap(self.path / BANK, "w+", np.dtype(dtype), shape)
        except OSError as error:
            raise RunFolderError(f"the bank {self.path / BANK} {shape} {dtype} cannot be made: {error}") from error

    def close(self) -> None:
        """Give the folder free for another run."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def append(self, record: Mapping[str, Any]) -> None:
        """One more line of metrics."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")

    def status(self, word: str, **facts: Any) -> None:
        """How far the run came."""
        line = json.dumps({"status": word, **facts}) + "\n"
        whole(self.path / "status.json", lambda file: file.write_text(line))

    def arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Arrays by name, in a file that ends in ``.npz``."""
        held: Any = arrays

        def write(file: Path) -> None:
            with file.open("wb") as stream:
                np.savez(stream, **held)

        whole(self.path / name, write)


def whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its place, and put it there when it is whole."""
    beside = path.with_name(f".{path.name}.part")
    try:
        write(beside)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def read_metrics(path: str | Path) -> Iterator[dict[str, Any]]:
    """The records of a run folder, one for each epoch. A last line that was cut off is left out."""
    file = Path(path) / "metrics.jsonl"
    if not file.is_file():
        raise RunFolderError(f"{path} is no run folder: it has no metrics.jsonl")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RunFolderError(f"{file} cannot be read as metrics: {error}") from error
    for line in lines:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return
