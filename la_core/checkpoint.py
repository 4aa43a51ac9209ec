"""Checkpoints of a run: what was acknowledged is there after any crash, and what is read back is what was written.

    checkpoints/epoch-00003-step-000012/     after 3 whole epochs and 12 steps of the fourth
        state.safetensors       bank, labels, and what else the run remembers (:mod:`la_core.resume`)
        encoder.safetensors     the encoder's weights by name
        torch.safetensors       the same by PyTorch's names, where those differ and the encoder knows them
        training.safetensors    optimizer moments and generators, of this kind of encoder alone
        metrics.jsonl           the history so far
        manifest.json           format, place, settings, fingerprint of the data, size and SHA-256 of each file above
        COMMITTED               the SHA-256 of manifest.json

Written under another name, synced file by file and then as a folder, renamed, and the rename synced: only then is it
acknowledged, and only then do older ones of the same run go. Nothing is ever written into one that is there, nothing is
unpickled, and nothing is imported by name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from la_core.errors import CheckpointError, DataError
from la_core.storage import Storage
from la_core.tensors import decode, encode, strict_json

FORMAT = 1
KEEP = 2
"""Checkpoints of a run that stay: the newest, and one in case it is damaged."""
PARTS = ("state", "encoder", "torch", "training")
"""Groups of arrays, each a safetensors file."""
MANIFEST, MARKER, METRICS = "manifest.json", "COMMITTED", "metrics.jsonl"
MOST_MANIFEST = 4 * 2**20
"""Bytes of a manifest."""
MOST_METRICS = 2**30
"""Bytes of a history."""
MOST_BYTES = 2**42
"""Bytes of a file of arrays. What a manifest says must be the size of the file, so no more is taken than that."""

_NAME = re.compile(r"epoch-(\d{5,12})-step-(\d{6,12})")
_PASSING = re.compile(rf"\.{_NAME.pattern}\.(part|old)")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_FILES = (*(f"{part}.safetensors" for part in PARTS), METRICS)


class Place(NamedTuple):
    """Where a run stands, in the order of the run."""

    epoch: int
    """Whole epochs that are behind it."""
    number: int
    """Steps of the next one that are."""

    @property
    def name(self) -> str:
        """Of the folder of a checkpoint made there."""
        return f"epoch-{self.epoch:05}-step-{self.number:06}"

    @classmethod
    def named(cls, name: str) -> Place | None:
        """The place that a name tells, if it is such a name."""
        found = _NAME.fullmatch(name)
        place = cls(int(found[1]), int(found[2])) if found else None
        return place if place and place.name == name else None

    def __str__(self) -> str:
        return f"epoch {self.epoch + 1}, step {self.number}"


@dataclass(frozen=True)
class Checkpoint:
    """A run as it stood between two steps, on the host."""

    place: Place
    facts: dict[str, Any]
    """What the manifest tells of the run, plain JSON: see :mod:`la_core.resume`."""
    arrays: dict[str, dict[str, np.ndarray]]
    """By group of :data:`PARTS`, then by name."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One record for each whole epoch."""


class Checkpoints:
    """The checkpoints in a folder.

    Parameters
    ----------
    folder
        Made at the first :meth:`save`, in a folder that is there.
    storage
        The disk.
    """

    def __init__(self, folder: Path, storage: Storage | None = None) -> None:
        self.folder, self._storage = folder, storage or Storage()
        self.run = os.urandom(8).hex()
        """Of the run: only checkpoints that bear it are ever deleted."""
        self._good: list[Place] = []
        self._settled = False

    def places(self) -> list[Place]:
        """Where checkpoints were made, oldest first, damaged ones among them."""
        try:
            names = self._storage.names(self.folder)
        except OSError as error:
            raise CheckpointError(f"{self.folder} cannot be read: {error}") from error
        return sorted(place for name in names if (place := Place.named(name)))

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None where there is none at all. Says which newer ones are damaged.

        Raises
        ------
        CheckpointError
            There are some, and none is whole: what is wrong with the newest. One of a newer format.
        """
        faults: list[CheckpointError] = []
        for place in reversed(self.places()):
            try:
                found = self.load(place)
            except _NewerFormatError:
                raise
            except CheckpointError as error:
                faults.append(error)
                continue
            for fault in faults:
                warnings.warn(f"{fault}; going back to {place.name}", stacklevel=2)
            self._good, self.run = [place], found.facts["run"]
            return found
        if faults:
            raise CheckpointError(f"no checkpoint in {self.folder} can be used: {faults[0]}")
        return None

    def load(self, place: Place) -> Checkpoint:
        """One checkpoint, every byte of it held against its digest.

        Raises
        ------
        CheckpointError
            It is not there, not whole, not what was written, or of another format: names the file.
        """
        path = self.folder / place.name
        manifest = self._manifest(path)
        if manifest["place"] != list(place):
            raise CheckpointError(f"{path} is not the checkpoint of {place}: it was renamed")
        contents = {name: self._content(path / name, *facts) for name, facts in manifest["files"].items()}
        if METRICS not in contents or "state.safetensors" not in contents:
            raise CheckpointError(f"{path} lacks state.safetensors or {METRICS}")
        arrays = {}
        for name, content in contents.items():
            if name != METRICS:
                try:
                    arrays[name.removesuffix(".safetensors")] = decode(content)
                except DataError as error:
                    raise CheckpointError(f"{path / name} is damaged: {error}") from None
        return Checkpoint(place, manifest["facts"], arrays, _history(path / METRICS, contents[METRICS]))

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint and return when no crash can take it away; then delete all but the :data:`KEEP` newest.

        Where the same one is there already, nothing happens; where it is there and damaged, it is put aside.

        Raises
        ------
        CheckpointError
            It could not be written: the ones before it are as they were.
        """
        path, disk = self.folder / checkpoint.place.name, self._storage
        files = _files(checkpoint)
        size = sum(piece.nbytes for pieces in files.values() for piece in pieces)
        staged = self.folder / f".{path.name}.part"
        try:
            self._settle()
            self._sweep()
            if path.name in disk.names(self.folder):
                try:
                    self.load(checkpoint.place)
                except CheckpointError:
                    self._put_aside(path)
                else:
                    disk.sync_folder(self.folder)  # who wrote it may have been killed before this
                    return path
            disk.make_folder(staged)
            digests = {name: self._write(staged / name, pieces) for name, pieces in files.items()}
            manifest = {
                "format": FORMAT,
                "place": list(checkpoint.place),
                "facts": {**checkpoint.facts, "run": self.run},
                "files": {name: list(facts) for name, facts in digests.items()},
            }
            text = (json.dumps(manifest, indent=1, allow_nan=False) + "\n").encode()
            if len(text) > MOST_MANIFEST:
                raise CheckpointError(f"the manifest of {path} would have {len(text)} bytes, above {MOST_MANIFEST}")
            _, digest = self._write(staged / MANIFEST, [memoryview(text)])
            self._write(staged / MARKER, [memoryview(f"{digest}\n".encode())])
            disk.sync_folder(staged)
            disk.rename(staged, path)
            disk.sync_folder(self.folder)
        except OSError as error:
            with suppress(OSError):
                self._delete(staged)
            raise CheckpointError(
                f"the checkpoint {path} ({size} bytes) cannot be written: {error}; those before it are as they were"
            ) from error
        self._good = [*(place for place in self._good if place != checkpoint.place), checkpoint.place][-KEEP:]
        try:
            self._rotate()
        except OSError as error:
            warnings.warn(f"old checkpoints in {self.folder} cannot be deleted: {error}", stacklevel=2)
        return path

    def _settle(self) -> None:
        """Have the folder there, and its name on the disk; once, even if it is there, for its maker may be dead."""
        if not self._settled:
            if not self._storage.is_folder(self.folder):
                self._storage.make_folder(self.folder)
            self._storage.sync_folder(self.folder.parent)
            self._settled = True

    def _write(self, path: Path, pieces: list[memoryview]) -> tuple[int, str]:
        """Size and digest of a new file, which is on the disk when this returns; its name is not yet."""
        disk, digest = self._storage, hashlib.sha256()
        file = disk.create(path)
        try:
            for piece in pieces:
                disk.write(file, piece)
                digest.update(piece)
            disk.sync(file)
        finally:
            disk.close(file)
        return sum(piece.nbytes for piece in pieces), digest.hexdigest()

    def _rotate(self) -> None:
        """Delete what is older than the newest good ones, if this run wrote it and nobody else put a file into it."""
        for place in self.places():
            path = self.folder / place.name
            if place < self._good[0] and len(self._good) == KEEP and self._is_own(path):
                old = path.with_name(f".{path.name}.old")
                self._storage.rename(path, old)
                self._delete(old)

    def _is_own(self, path: Path) -> bool:
        try:
            manifest = self._manifest(path)
        except CheckpointError:
            return False
        there = set(self._storage.names(path))
        return bool(manifest["facts"]["run"] == self.run) and there == {*manifest["files"], MANIFEST, MARKER}

    def _sweep(self) -> None:
        """Delete what a crash has left half written or half deleted."""
        for name in self._storage.names(self.folder):
            if _PASSING.fullmatch(name):
                self._delete(self.folder / name)

    def _delete(self, path: Path) -> None:
        """The files of a checkpoint, and the folder if nothing else is in it."""
        names = self._storage.names(path)
        ours = [name for name in names if name in {*_FILES, MANIFEST, MARKER}]
        for name in ours:
            self._storage.remove(path / name)
        if ours == names and self._storage.is_folder(path):
            self._storage.remove_folder(path)

    def _put_aside(self, path: Path) -> None:
        there = self._storage.names(self.folder)
        number = next(n for n in range(1, len(there) + 2) if f"{path.name}.damaged-{n}" not in there)
        self._storage.rename(path, path.with_name(f"{path.name}.damaged-{number}"))

    def _manifest(self, path: Path) -> dict[str, Any]:
        """What the manifest of a checkpoint says, if it is the one that was committed and every field is as it must be.

        Raises
        ------
        CheckpointError
        """
        if not self._storage.is_folder(path):
            raise CheckpointError(f"there is no checkpoint {path}")
        marker = bytes(self._bytes(path / MARKER, 65))
        text = bytes(self._bytes(path / MANIFEST, MOST_MANIFEST))
        digest = hashlib.sha256(text).hexdigest()
        if marker != f"{digest}\n".encode():
            raise CheckpointError(f"{path / MANIFEST} is damaged: its SHA-256 is {digest}, not what {MARKER} says")
        try:
            manifest = strict_json(text)
        except DataError as error:
            raise CheckpointError(f"{path / MANIFEST} is damaged: {error}") from None
        if isinstance(manifest, dict) and type(manifest.get("format")) is int and manifest["format"] > FORMAT:
            raise _NewerFormatError(
                f"{path} has format {manifest['format']}, and this version of la-core reads up to {FORMAT}: renew it"
            )
        wrong = _wrong(manifest)
        if wrong:
            raise CheckpointError(f"{path / MANIFEST} is damaged: {wrong}")
        return dict(manifest)

    def _content(self, file: Path, size: int, digest: str) -> bytearray:
        content = self._bytes(file, MOST_METRICS if file.name == METRICS else MOST_BYTES, size)
        found = hashlib.sha256(content).hexdigest()
        if found != digest:
            raise CheckpointError(f"{file} is damaged: its SHA-256 is {found}, not {digest}")
        return content

    def _bytes(self, file: Path, most: int, size: int | None = None) -> bytearray:
        if size is not None and size > most:
            raise CheckpointError(f"{file} would have {size} bytes, more than {most}")
        try:
            content = self._storage.read(file, most if size is None else size)
        except FileNotFoundError:
            raise CheckpointError(f"{file} is missing") from None
        except (OSError, MemoryError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}") from None
        if size is not None and len(content) != size:
            raise CheckpointError(f"{file} is damaged: it has {len(content)} bytes, not {size}")
        return content


class _NewerFormatError(CheckpointError):
    """Never passed over for an older checkpoint: the work that it holds would be lost."""


def _files(checkpoint: Checkpoint) -> dict[str, list[memoryview]]:
    lines = "".join(json.dumps(record, default=_number) + "\n" for record in checkpoint.history).encode()
    files = {f"{part}.safetensors": encode(arrays) for part, arrays in checkpoint.arrays.items()}
    return files | {METRICS: [memoryview(lines)]}


def _number(x: Any) -> Any:
    """What a callback has put into a record."""
    return x.tolist() if hasattr(x, "tolist") else str(x)


def _history(file: Path, content: bytearray) -> list[dict[str, Any]]:
    try:
        history = [json.loads(line) for line in content.decode().splitlines()]
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged: {str(error)[:200]}") from None
    if not all(isinstance(record, dict) for record in history):
        raise CheckpointError(f"{file} is damaged: a line of it is no record")
    return history


def _wrong(manifest: Any) -> str:
    """What a manifest of this format cannot say, or nothing."""
    if not isinstance(manifest, dict) or set(manifest) != {"format", "place", "facts", "files"}:
        return "it must have format, place, facts and files"
    if type(manifest["format"]) is not int or manifest["format"] != FORMAT:
        return "it has no such format"
    if not (_counts(manifest["place"]) and len(manifest["place"]) == 2):
        return "its place is none"
    facts, files = manifest["facts"], manifest["files"]
    if not isinstance(facts, dict) or not isinstance(facts.get("run"), str):
        return "it belongs to no run"
    if not isinstance(files, dict) or not all(name in _FILES for name in files):
        return "it names files that are none of a checkpoint"
    return "".join(_wrong_files(files))


def _wrong_files(files: Mapping[str, Any]) -> Iterator[str]:
    for name, entry in files.items():
        fits = isinstance(entry, list) and len(entry) == 2 and _counts(entry[:1]) and isinstance(entry[1], str)
        if not fits or not _DIGEST.fullmatch(entry[1]):
            yield f"{name} has no size and digest; "


def _counts(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(n) is int and 0 <= n < 2**48 for n in numbers)
