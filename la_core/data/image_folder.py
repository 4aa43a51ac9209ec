"""A folder of images, as folders are: nested, mixed, with other things in it and some files broken."""

from __future__ import annotations

import os
import sys
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from la_core.data import images
from la_core.data.pool import Pool
from la_core.errors import DataError, SettingsError

SUFFIXES = frozenset((
    ".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".heic", ".heif", ".ico", ".j2c", ".j2k", ".jfif", ".jp2",
    ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".mpo", ".pbm", ".pcx", ".pfm", ".pgm", ".png", ".pnm", ".ppm",
    ".sgi", ".tga", ".tif", ".tiff", ".webp",
))  # fmt: skip
"""Names of image files, whatever this Pillow was built with: the index of an image is the same everywhere."""

_CHECKED_AT_ONCE = 64

T = TypeVar("T")


class ImageFolder:
    """The images under a folder, at any depth, in order of their path. Decoded one by one, when they are asked for.

    The order is that of the code points of the path in Unicode's form NFC, part by part: the same on every platform.
    Left out in silence: names that begin with a dot, everything in folders that do, and files without a suffix of
    :data:`SUFFIXES`.

    Parameters
    ----------
    root
        The folder.
    mode
        ``"RGB"``: every image has three channels, a gray one three equal ones; ``"L"``: every image is gray.
    on_error
        What to do about files that should be images and are not: broken ones, links out of the folder, pipes.
        ``"raise"``: stop at what the listing shows, here, and at a broken image when it is read.
        ``"skip"``: decode every file once, here, and number the good ones. The others are in ``broken``, and named in
        a warning. No number changes later: a file that breaks after that is an error.
    workers
        Processes that decode for ``on_error="skip"``.
    max_pixels
        An image of more pixels, width times height, is refused by its header, before it takes memory.
    follow_links
        Follow links wherever they lead. By default they may not leave the folder.
    progress
        A live bar on stderr while every file is decoded.

    Attributes
    ----------
    broken
        What was left out, each file with the reason, by ``on_error="skip"``.
    classes
        (N,) number of the first-level subfolder of each image, if every image lies in one and there are at least two.
    class_names
        Those subfolders, by their number.

    Raises
    ------
    DataError
        No such folder, no image in it, or by ``on_error="raise"`` a file that cannot be used: names it.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        mode: str = "RGB",
        on_error: str = "raise",
        workers: int = 0,
        max_pixels: int = images.MAX_PIXELS,
        follow_links: bool = False,
        progress: bool = True,
    ) -> None:
        images.pillow()
        for name, value, allowed in (("mode", mode, images.MODES), ("on_error", on_error, ("raise", "skip"))):
            if value not in allowed:
                raise SettingsError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}")
        if isinstance(max_pixels, bool) or not isinstance(max_pixels, int) or max_pixels < 1:
            raise SettingsError(f"max_pixels must be an integer of at least 1; got {max_pixels!r}")
        self.root = Path(root).absolute()  # a worker may have been started elsewhere
        self.mode, self.max_pixels = mode, max_pixels
        if not self.root.is_dir():
            raise DataError(f"{root} is not a folder")
        self._inside = None if follow_links else self.root.resolve()
        self._names, refused = _listing(self.root, follow_links)
        self.broken: list[tuple[Path, str]] = []
        if refused and on_error == "raise":
            name, reason = refused[0]
            more = f", and {len(refused) - 1} more cannot either" if len(refused) > 1 else ""
            raise DataError(f"{self.root / name} cannot be used: {reason}{more}; on_error='skip' leaves such files out")
        if not self._names and not refused:
            raise DataError(f"there is no image under {root} (looked for .png, .jpg and what else Pillow reads)")
        if on_error == "skip":
            faults = self._faults(workers, progress)
            refused += [(name, reason) for _, name, reason in faults]
            self.broken = [(self.root / name, why) for name, why in sorted(refused, key=lambda r: _order(r[0]))]
            bad = {index for index, _, _ in faults}
            self._names = [name for index, name in enumerate(self._names) if index not in bad]
            self._tell(len(self._names) + len(self.broken))
        folders = [name.split("/")[0] if "/" in name else None for name in self._names]
        names = sorted({f for f in folders if f is not None}, key=_order)
        self.class_names = names if None not in folders and len(names) > 1 else []
        number = {name: i for i, name in enumerate(self.class_names)}
        self.classes = np.array([number[f] for f in folders if f is not None]) if number else None

    @property
    def names(self) -> list[str]:
        """The path of each image below the folder, with / between its parts."""
        return list(self._names)

    @property
    def files(self) -> list[Path]:
        """The file of each image."""
        return [self.root / name for name in self._names]

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> np.ndarray:
        """The image as (H, W, 3) or, with mode "L", (H, W) uint8: see :mod:`la_core.data.images`.

        Raises
        ------
        DataError
            The file cannot be decoded: names it.
        """
        try:
            return self._read(self._names[index])
        except DataError as error:
            raise DataError(f"the image {self.root / self._names[index]} cannot be read: {error}") from error

    def check(self, *, workers: int = 0, progress: bool = True) -> list[tuple[Path, str]]:
        """Decode every image once, and give those that cannot be, each with the reason. Nothing is renumbered."""
        return [(self.root / name, reason) for _, name, reason in self._faults(workers, progress)]

    def _read(self, name: str) -> np.ndarray:
        with images.open_regular(self.root / name, self._inside) as file:
            return images.read(file, self.mode, self.max_pixels)

    def _faults(self, workers: int, progress: bool) -> list[tuple[int, str, str]]:
        """Index, name and reason of every image that cannot be decoded."""
        blocks = [range(i, min(i + _CHECKED_AT_ONCE, len(self))) for i in range(0, len(self), _CHECKED_AT_ONCE)]
        found: list[tuple[int, str, str]] = []
        with Pool(workers, self) as pool:
            for faults in _shown(pool.map(_faults_of, blocks), len(blocks), progress):
                found += [(i, self._names[i], reason) for i, reason in faults]
        return found

    def _tell(self, n_files: int) -> None:
        if not self._names:
            file, reason = self.broken[0]
            raise DataError(f"none of the {n_files} images under {self.root} can be used; {file}: {reason}")
        if self.broken:
            shown = "; ".join(f"{file.relative_to(self.root)}: {reason}" for file, reason in self.broken[:10])
            more = f"; and {len(self.broken) - 10} more, in ImageFolder.broken" if len(self.broken) > 10 else ""
            warnings.warn(
                f"left out {len(self.broken)} of {n_files} files under {self.root}: {shown}{more}", stacklevel=3
            )


def _faults_of(folder: ImageFolder, block: Sequence[int]) -> list[tuple[int, str]]:
    found = []
    for index in block:
        try:
            folder._read(folder._names[index])
        except DataError as error:
            found.append((index, str(error)))
    return found


def _order(name: str) -> tuple[tuple[str, ...], str]:
    """Some file systems decompose the letters of a name. The name itself parts two that differ in nothing else."""
    return tuple(unicodedata.normalize("NFC", name).split("/")), name


def _listing(root: Path, follow_links: bool) -> tuple[list[str], list[tuple[str, str]]]:
    """Names of the images under ``root``, in order, and of what cannot be used, each with the reason.

    Names are relative, with / between their parts. Nothing is opened.
    """
    found: list[str] = []
    refused: list[tuple[str, str]] = []
    top = root.resolve()

    def walk(folder: Path, prefix: str, above: frozenset[Path]) -> None:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            refused.append((prefix.rstrip("/"), f"the folder cannot be listed: {error.strerror}"))
            return
        for entry in entries:
            name, is_image = prefix + entry.name, Path(entry.name).suffix.lower() in SUFFIXES
            if entry.name.startswith("."):
                continue
            path = Path(entry.path)
            is_link = entry.is_symlink()
            is_folder = path.is_dir() if is_link else entry.is_dir(follow_symlinks=False)  # the latter asks no disk
            if not (is_folder or is_image):
                continue
            # Not Path.resolve: up to Python 3.12 it raises where links go round in circles.
            target = Path(os.path.realpath(path)) if is_link or is_folder else path
            if is_link and not follow_links and not target.is_relative_to(top):
                refused.append((name, "it is a link out of the folder (follow_links=True follows it)"))
            elif is_link and is_folder and target in above:
                refused.append((name, "it is a link to a folder that it lies in"))
            elif is_folder:
                walk(path, f"{name}/", above | {target})
            elif path.is_file() if is_link else entry.is_file(follow_symlinks=False):
                found.append(name)
            else:
                nowhere = is_link and not path.exists()
                refused.append((name, "it is a link that leads nowhere" if nowhere else "it is not a regular file"))

    walk(root, "", frozenset({top}))
    return sorted(found, key=_order), refused


def _shown(blocks: Iterable[T], total: int, wanted: bool) -> Iterable[T]:
    """Blocks of files as they are checked, with a bar where there is a terminal and tqdm."""
    if not (wanted and sys.stderr.isatty()):
        return blocks
    try:
        from tqdm import tqdm
    except ImportError:
        return blocks
    bar: Iterable[T] = tqdm(blocks, "checking", total, unit=" images", unit_scale=_CHECKED_AT_ONCE, dynamic_ncols=True)
    return bar
