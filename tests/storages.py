"""Disks for checkpoints to be tried on: one in memory that can fail, stop, or lose its power at any operation."""

import copy
import errno
import itertools
import random
from dataclasses import dataclass, field
from pathlib import Path

from la_core.storage import Storage

ROOT = Path("/run")
"""A run folder that is there, durably."""


class Stop(BaseException):
    """The process is gone: nothing that it would do after this is done."""


@dataclass
class File:
    content: bytearray = field(default_factory=bytearray)
    durable: bytes = b""

    def could_be(self):
        """What a disk that has lost its power may hold: what was synced, or any part of what was not."""
        whole = bytes(self.content)
        if whole == self.durable:
            return [whole]
        return [self.durable, whole, whole[: len(whole) // 2], bytes(len(whole))]


@dataclass
class Folder:
    names: dict = field(default_factory=dict)
    durable: dict = field(default_factory=dict)
    pending: list = field(default_factory=list)
    """Changes of names that were not synced: (name that goes or None, name that comes or None, its node)."""

    def could_be(self):
        """What names it may hold: each change that was not synced may have reached the disk, or not."""
        count = len(self.pending)
        chosen = itertools.product((False, True), repeat=count) if count <= 6 else _some(count)
        for bits in chosen:
            names = dict(self.durable)
            for (gone, come, node), there in zip(self.pending, bits, strict=True):
                if there:
                    names.pop(gone, None)
                    if come is not None:
                        names[come] = node
            yield names


def _some(count):
    rng = random.Random(0)
    yield (False,) * count
    yield (True,) * count
    for _ in range(30):
        yield tuple(rng.random() < 0.5 for _ in range(count))


class Disk(Storage):
    """A file system in memory, with what it holds and what it would still hold if the power went.

    ``at``, if given, is called with the number and the name of each operation that changes something, before it.
    """

    def __init__(self, at=None):
        self.root, self.at, self.count, self.log, self._open = Folder(), at, 0, [], {}

    def _before(self, what):
        self.count += 1
        self.log.append(what)
        if self.at is not None:
            self.at(self.count, what)

    def _find(self, path):
        node = self.root
        for part in path.relative_to(ROOT).parts:
            if not isinstance(node, Folder) or part not in node.names:
                raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
            node = node.names[part]
        return node

    def _change(self, folder, gone, come, node):
        folder.names.pop(gone, None)
        if come is not None:
            folder.names[come] = node
        folder.pending.append((gone, come, node))

    def make_folder(self, path):
        self._before("make_folder")
        self._change(self._find(path.parent), None, path.name, Folder())

    def create(self, path):
        self._before("create")
        folder, file = self._find(path.parent), File()
        if path.name in folder.names:
            raise FileExistsError(errno.EEXIST, "it is there", str(path))
        self._change(folder, None, path.name, file)
        number = 1 + max(self._open, default=2)
        self._open[number] = file
        return number

    def write(self, file, data):
        half = len(data) // 2
        self._open[file].content += data[:half]
        self._before("write")
        self._open[file].content += data[half:]

    def sync(self, file):
        self._before("sync")
        self._open[file].durable = bytes(self._open[file].content)

    def close(self, file):
        del self._open[file]

    def sync_folder(self, path):
        self._before("sync_folder")
        folder = self._find(path) if path != ROOT.parent else Folder()
        folder.durable, folder.pending = dict(folder.names), []

    def rename(self, old, new):
        self._before("rename")
        folder, node = self._find(old.parent), self._find(old)
        if isinstance(node, File) and old != new:
            folder.names.pop(new.name, None)
        self._change(folder, old.name, new.name, node)

    def remove(self, path):
        self._before("remove")
        self._change(self._find(path.parent), path.name, None, None)

    def remove_folder(self, path):
        self._before("remove_folder")
        if self._find(path).names:
            raise OSError(errno.ENOTEMPTY, "not empty", str(path))
        self._change(self._find(path.parent), path.name, None, None)

    def names(self, path):
        return sorted(self._find(path).names) if self.is_folder(path) else []

    def is_folder(self, path):
        try:
            return isinstance(self._find(path), Folder)
        except FileNotFoundError:
            return False

    def read(self, path, most):
        node = self._find(path)
        if not isinstance(node, File) or len(node.content) > most:
            raise OSError(errno.EFBIG, "too large, or a folder", str(path))
        return bytearray(node.content)

    def after_power_loss(self, most=300):
        """Disks as one may find them after the power went now: all of them, or ``most`` of very many.

        The first has lost all that was not synced; the last nothing, as after the end of the process alone.
        """
        rng = random.Random(self.count)
        yield self._settled(lambda node, options: options[0])
        for _ in range(most):
            yield self._settled(lambda node, options: rng.choice(options))
        yield self._settled(
            lambda node, options: options[-1] if isinstance(node, Folder) else options[1 % len(options)]
        )

    def _settled(self, choose):
        found = Disk()
        seen = {}

        def settle(node):
            if id(node) not in seen:
                if isinstance(node, File):
                    content = choose(node, node.could_be())
                    seen[id(node)] = File(bytearray(content), content)
                else:
                    names = choose(node, list(node.could_be()))
                    folder = seen[id(node)] = Folder()
                    folder.names = {name: settle(child) for name, child in names.items()}
                    folder.durable = dict(folder.names)
            return seen[id(node)]

        found.root = settle(self.root)
        return found

    def copy(self, at=None):
        """Another disk that holds, and would keep, the same."""
        other = copy.deepcopy(self)
        other.at, other.count, other.log = at, 0, []
        return other


def stop_at(n):
    """The process ends before its n-th operation."""

    def at(count, what):
        if count == n:
            raise Stop

    return at


def fail_at(n, code):
    """The n-th operation fails, and so do all after it that would need room, as on a full disk."""

    def at(count, what):
        if count == n or (count > n and code == errno.ENOSPC and what in ("create", "write", "make_folder")):
            raise OSError(code, "planned")

    return at
