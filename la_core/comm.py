"""Processes that make one run together, and what they say to each other.

Everything is said by two collectives, a sum and a gathering, which a backend supplies (:class:`Comm`). N rows of
anything are dealt out alike: process r has the rows ``[r c, (r + 1) c)`` with ``c = ceil(N / size)``, so the last may
have fewer, or none. Rows that were dealt out and gathered again are in their order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from la_core.errors import BackendError, DistributedError
from la_core.kernels import Array, blocks
from la_core.protocol import Backend
from la_core.spaces import array_namespace
from la_core.tensors import decode, encode

PIECE = 16 * 2**20
"""Bytes that are told at a time."""
WORDS = 4096
"""Bytes of the facts that processes do not agree on which an error can quote."""
FINGERPRINT = 64
"""Bytes by which a process tells the others what it is about to give."""


class Comm(Protocol):
    """The processes of a run, of which this is one. Every process makes the same calls in the same order.

    Raises
    ------
    DistributedError
        From each method, where another process has died, does not answer in time, or gives what does not fit
        (:func:`fingerprint`).
    """

    @property
    def rank(self) -> int:
        """Of this process, from 0."""
        ...

    @property
    def size(self) -> int:
        """Processes in all."""
        ...

    def all_sum(self, x: Array) -> Array:
        """The sum of what all processes give, on each the same bits. Shape and dtype are the same everywhere."""
        ...

    def all_gather(self, x: Array) -> Array:
        """What each process gives, by rank: ``(...) -> (size, ...)``. Shape and dtype are the same everywhere."""
        ...


class Alone:
    """One process."""

    rank, size = 0, 1

    def all_sum(self, x: Array) -> Array:
        """``x``"""
        return x

    def all_gather(self, x: Array) -> Array:
        """``x[None]``"""
        return x[None, ...]


ALONE = Alone()


def fingerprint(what: str, x: Array) -> bytes:
    """What a process is about to give, in words, for the others to see before the data.

    Libraries of collectives do not compare shapes: what does not fit ends a process, or is taken for its sum.
    """
    said = f"{what} of {str(x.dtype).rpartition('.')[2]} {tuple(x.shape)}"
    return said.encode()[:FINGERPRINT].ljust(FINGERPRINT)


def compare(fingerprints: np.ndarray) -> None:
    """Whether all processes are about to give the same, by their fingerprints (size, 64).

    Raises
    ------
    DistributedError
        Names the first process that gives something else, and what.
    """
    odd = np.flatnonzero((fingerprints != fingerprints[0]).any(axis=1))
    if odd.size:
        usual, other = (bytes(fingerprints[rank]).decode(errors="replace").strip() for rank in (0, odd[0]))
        raise DistributedError(
            f"the processes of a run must agree. Process 0 gives {usual}; process {odd[0]} of {len(fingerprints)} "
            f"gives {other}"
        )


def share(n: int, comm: Comm) -> int:
    """Most rows of n that a process has: c."""
    return -(-n // comm.size)


def first(n: int, comm: Comm) -> int:
    """The first row of n that a process has, if it has one."""
    return comm.rank * share(n, comm)


def part(n: int, comm: Comm) -> slice:
    """Which of n rows this process has."""
    c = share(n, comm)
    return slice(min(n, first(n, comm)), min(n, first(n, comm) + c))


def joined(x: Array, n: int, comm: Comm) -> Array:
    """All n rows, from those of each process: ``(rows of part(n), ...) -> (n, ...)``."""
    if comm.size == 1:
        return x
    xp, c = array_namespace(x), share(n, comm)
    lacking = xp.zeros((c - x.shape[0], *x.shape[1:]), dtype=x.dtype, device=x.device)
    every = comm.all_gather(xp.concat([x, lacking], axis=0))
    return xp.reshape(every, (-1, *x.shape[1:]))[:n, ...]


class Team:
    """The processes of a run, as the run sees them. Alone, all of this costs nothing.

    Parameters
    ----------
    backend
        Its ``comm``; without one the process is alone.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.comm: Comm = getattr(backend, "comm", ALONE)
        self.alone, self.first = self.comm.size == 1, self.comm.rank == 0

    def enter(self, encoder: Any, facts: Mapping[str, Any]) -> None:
        """Begin together: the processes have the same facts and encoder, and take over the weights of the first.

        Raises
        ------
        BackendError
            The encoder cannot add up its gradients over several processes.
        DistributedError
            They do not agree.
        """
        if self.alone:
            return
        if not hasattr(encoder, "sum_gradients"):
            raise BackendError(
                f"a {type(encoder).__name__} has no sum_gradients, so it cannot be trained by {self.comm.size} "
                "processes together: start one, or use an encoder that has it"
            )
        weights = encoder.weights()
        shapes = {name: [list(x.shape), str(x.dtype)] for name, x in weights.items()}
        self.agree("a run", {**facts, "processes": self.comm.size})
        self.agree("an encoder", {"class": type(encoder).__name__, **shapes})
        encoder.load(decode(bytearray(self.told(b"".join(encode(weights))))))

    def sum_gradients(self, encoder: Any) -> None:
        """Add up the gradients of all processes."""
        if not self.alone:
            encoder.sum_gradients(self.comm.all_sum)

    def own(self, n: int) -> slice:
        """The rows of n that this process works on: its own, or the last one where it has none."""
        mine = part(n, self.comm)
        return mine if mine.start < mine.stop else slice(n - 1, n)

    def joined(self, x: Array, n: int, views: int = 1) -> Array:
        """All rows (views n, ...) from those of :meth:`own` (views b, ...), view by view."""
        if self.alone:
            return x
        xp, count = array_namespace(x), part(n, self.comm)
        each, mine = x.shape[0] // views, count.stop - count.start
        beside = xp.stack([x[v * each : v * each + mine, ...] for v in range(views)], axis=1)
        every = joined(beside, n, self.comm)
        return xp.concat([every[:, v, ...] for v in range(views)], axis=0)

    def joined_on_host(self, x: np.ndarray, n: int) -> np.ndarray:
        """:meth:`joined` of NumPy arrays."""
        return x if self.alone else self.backend.to_host(self.joined(self.backend.asarray(x), n))

    def mine(self, x: Array, n: int, views: int = 1) -> Array:
        """Of a cotangent of all rows (views n, D) that of :meth:`own`: 0 for a row that another process has."""
        if self.alone:
            return x
        xp, some = array_namespace(x), part(n, self.comm)
        if some.start == some.stop:
            return xp.zeros((views, *x.shape[1:]), dtype=x.dtype, device=x.device)
        return xp.concat([x[v * n + some.start : v * n + some.stop, ...] for v in range(views)], axis=0)

    def agree(self, what: str, facts: Mapping[str, Any], asked: bool = False) -> bool:
        """Compare plain facts, before anything is sent that relies on them. Whether any process was asked to end.

        Raises
        ------
        DistributedError
            On every process, if one has other facts than the first: names it, and what differs.
        """
        if self.alone:
            return asked
        said = json.dumps(facts, sort_keys=True, default=str)
        digest = int.from_bytes(hashlib.sha256(f"{what} {said}".encode()).digest()[:4], "little") // 2
        every = self._gathered(np.array([digest, asked], np.int32))
        odd = np.flatnonzero(every[:, 0] != every[0, 0])
        if odd.size:
            text = f"{what}: {said}".encode()[:WORDS]
            texts = self._gathered(np.frombuffer(text.ljust(WORDS), np.uint8))
            theirs = [bytes(texts[rank]).decode(errors="replace").strip() for rank in (0, int(odd[0]))]
            raise DistributedError(
                f"the processes of a run must agree. Process 0 has {_differing(*theirs)}; process {odd[0]} of "
                f"{self.comm.size} has {_differing(*theirs[::-1])}"
            )
        return bool(every[:, 1].any())

    def told(self, data: bytes | None) -> bytes:
        """What the first process has to tell; the others give None."""
        if self.alone:
            assert data is not None
            return data
        ours = data if self.first and data is not None else b""
        length = int(self._summed(np.array([len(ours) >> 24, len(ours) & 0xFFFFFF], np.int32)) @ [2**24, 1])
        pieces = []
        for some in blocks(length, PIECE) if length else ():
            piece = np.zeros(some.stop - some.start, np.uint8)
            piece[: len(ours[some])] = np.frombuffer(ours[some], np.uint8)
            pieces.append(self._summed(piece).tobytes())
        return b"".join(pieces)

    def _gathered(self, x: np.ndarray) -> np.ndarray:
        return self.backend.to_host(self.comm.all_gather(self.backend.asarray(x)))

    def _summed(self, x: np.ndarray) -> np.ndarray:
        return self.backend.to_host(self.comm.all_sum(self.backend.asarray(x)))


def digest(x: np.ndarray) -> str:
    """Of the numbers of an array."""
    return hashlib.sha256(np.ascontiguousarray(x).data).hexdigest()


def _differing(mine: str, theirs: str) -> str:
    """Of two lists of facts in JSON, what of the first the second lacks; the start of the first where it was cut."""
    (what, _, ours), (other, _, others) = mine.partition(": "), theirs.partition(": ")
    try:
        facts, compared = json.loads(ours), json.loads(others)
    except json.JSONDecodeError:
        return mine[:200]
    odd = {name: x for name, x in facts.items() if what != other or compared.get(name, ...) != x}
    return f"({what}) " + ", ".join(f"{name} {json.dumps(x)[:200]}" for name, x in odd.items())
