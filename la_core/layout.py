"""How the bank of a run lies with its processes or devices, and how they share the work on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from la_core import kernels
from la_core.bank import State, stored
from la_core.comm import Team, part, share
from la_core.errors import SettingsError
from la_core.kernels import Array
from la_core.objectives import Terms
from la_core.settings import Settings
from la_core.shards import Dealt, Shard, enough
from la_core.spaces import array_namespace

Objective: TypeAlias = Callable[..., Terms]
QUERIES = 4096
"""Rows of a sharded bank that are asked about at a time."""
LAYOUTS = ("replicated", "sharded")


class Layout:
    """How the bank of a run lies with its processes, and how they share the work on it.

    Sharded, all of them ask for the same and work on the rows that they hold. Replicated, each takes a part of what is
    asked, and all are told. Alone there is nothing to share, but among the devices of a backend that has several
    (``backend.devices``): they share alike, and the process has the whole.

    Raises
    ------
    SettingsError
        No such layout, or too few rows to be sharded.
    KindError
        The library of the backend lacks the dtype of the bank.
    """

    def __init__(self, name: str, n: int, team: Team, settings: Settings) -> None:
        if name not in LAYOUTS:
            raise SettingsError(f"bank_layout must be one of {', '.join(map(repr, LAYOUTS))}; got {name!r}")
        self._devices: Any = getattr(team.backend, "devices", None)
        holders: Any = self._devices or team.comm
        self.sharded = name == "sharded" and holders.size > 1
        if self.sharded and not enough(n, holders):
            them = "processes: start fewer" if self._devices is None else "devices: take fewer"
            raise SettingsError(f"{n} rows of a bank cannot be sharded over {holders.size} {them}")
        self._n, self._team, self._dtype = n, team, settings.bank_dtype
        self._stored(np.zeros((1, 1), settings.dtype))
        self.own = np.arange(n)[team.own(n)]
        """Rows that this process makes at the start."""

    def made(self, rows: np.ndarray) -> Array:
        """The bank of what each process has made of its :attr:`own` rows."""
        team = self._team
        if self.sharded and self._devices is None:
            return Shard(self._stored(rows), self._n, team.comm)
        return self._here(team.joined_on_host(rows, self._n))

    def told(self, bank: np.ndarray | None) -> Array:
        """The bank that the first process has (N, D), a shard at a time."""
        team = self._team
        if team.alone and bank is not None:
            return self._here(bank)
        dtype, width = team.told(f"{bank.dtype.str} {bank.shape[1]}".encode() if bank is not None else None).split()
        parts = []
        for rank in range(team.comm.size):
            c = share(self._n, team.comm)
            rows = None if bank is None else np.ascontiguousarray(bank[rank * c : (rank + 1) * c]).tobytes()
            told = team.told(rows)
            if not self.sharded or rank == team.comm.rank:
                parts.append(np.frombuffer(told, dtype.decode()).reshape(-1, int(width)))
        held = self._stored(np.concatenate(parts))
        return Shard(held, self._n, team.comm) if self.sharded else held

    def dealt(self, objective: Objective, *rest: Array | None) -> Objective:
        """An objective of a whole batch, of which each process has taken its part of the rows of a replicated bank.

        ``rest`` are further arguments of the objective, with a row for each of the batch, or None.
        """
        team = self._team
        if self._devices is not None and not self.sharded:
            divided = self._devices.divide(objective)
            return lambda z, state, indices: divided(z, state, indices, *rest)
        if self.sharded or team.alone:
            return lambda z, state, indices: objective(z, state, indices, *rest)

        def dealt(z: Array, state: State, indices: Array) -> Terms:
            xp, n = array_namespace(z), z.shape[0]
            mine = team.own(n)
            some = [None if x is None else x[mine, ...] for x in rest]
            terms = objective(z[mine, :], state, indices[mine], *some)
            cotangent = terms.cotangent * ((mine.stop - mine.start) / n)  # of the mean over the batch
            counts = [] if terms.n_close is None else [terms.n_close[:, None]]
            columns = [xp.astype(x, terms.loss.dtype) for x in (terms.loss[:, None], cotangent, *counts)]
            every = team.joined(xp.concat(columns, axis=1), n)
            return Terms(
                every[:, 0],
                xp.astype(every[:, 1 : 1 + z.shape[1]], z.dtype, copy=False),
                xp.astype(every[:, -1], xp.int32) if counts else None,
            )

        return dealt

    def for_clustering(self, bank: Array) -> Array:
        """A replicated bank as one of which each process has its part of the work."""
        comm = self._team.comm
        if self._devices is not None and not self.sharded and enough(self._n, self._devices):
            return self._devices.deal(bank)
        if self.sharded or self._team.alone or not enough(self._n, comm):
            return bank
        return Shard(bank[part(self._n, comm), :], self._n, comm)

    def over_queries(self, answer: Callable[..., Array], bank: Array, queries: Array, own: Array | None) -> Array:
        """``answer(bank, queries=queries, own=own)`` with a row for each query.

        A bank may ask for its own rows, ``own``: some at a time, where they are not at hand as they are computed with.
        """
        team, n, sharded = self._team, queries.shape[0], isinstance(queries, Dealt)
        mine = slice(0, n) if self.sharded else team.own(n)
        searched = bank if self._devices is None else self.for_clustering(bank)

        def answered(some: slice) -> Array:
            places = None if own is None else own[some]
            asked = kernels.rows_at(queries, places) if sharded else queries[some, :]
            return answer(searched, queries=kernels.wide(asked), own=places)

        size = QUERIES if sharded or kernels.apart(queries) else n
        found = [
            answered(slice(mine.start + some.start, mine.start + some.stop))
            for some in kernels.blocks(mine.stop - mine.start, size)
        ]
        every = array_namespace(queries).concat(found)
        return every if self.sharded else team.joined(every, n)

    def _here(self, rows: np.ndarray) -> Array:
        """All rows of the bank, in this process."""
        backend: Any = self._team.backend
        return backend.dealt(rows, self._dtype) if self.sharded else self._stored(rows)

    def _stored(self, rows: np.ndarray) -> Array:
        return stored(rows, self._team.backend, self._dtype)
