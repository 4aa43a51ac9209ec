"""Several devices of one process: a bank whose rows lie on them, and work that they share, by ``jax.shard_map``.

There is one program and one state; arrays lie whole on every device (*replicated*) or in equal parts along the axis
``"rows"`` of a mesh. A device answers for its part by the functions of :mod:`la_core.shards`, with the collectives of
the mesh in place of those between processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from la_core import kernels
from la_core.backends.jax.scan import dot
from la_core.bank import State
from la_core.comm import ALONE
from la_core.objectives import Terms
from la_core.shards import Dealt, Shard

_spec: Any = PartitionSpec  # untyped, as are these
_sum: Any = lax.psum
_constrained: Any = lax.with_sharding_constraint

AXIS = "rows"
DEALT, WHOLE = _spec(AXIS), _spec()


class AxisComm:
    """The devices of a mesh, as one of them sees the others inside a ``shard_map``."""

    def __init__(self, size: int) -> None:
        self.size = size

    @property
    def rank(self) -> Any:
        """Of this device; traced."""
        return lax.axis_index(AXIS)

    def all_sum(self, x: Array) -> Array:
        """The sum over the devices."""
        total: Array = _sum(x, AXIS)
        return total

    def all_gather(self, x: Array) -> Array:
        """What each device gives, by rank."""
        every: Array = lax.all_gather(x, AXIS)
        return every


class Part(Shard):
    """The rows of a bank that one device holds, seen inside a ``shard_map``.

    All devices hold as many. Where N does not divide, the ``pads`` last rows of the last device are no rows of the bank
    but its last row again: what it weighs in a softmax can then be taken out again without a loss of precision.
    """

    def __init__(self, rows: Array, n: int, size: int) -> None:
        super().__init__(rows, n, AxisComm(size))
        self.pads = size * rows.shape[0] - n

    def nearest(self, z: Array, k: int, budget: int) -> tuple[Array, Array]:
        """The k nearest and as many more as may be no rows of the bank; these get the score -inf."""
        scores, places = kernels.nearest(z, self.rows, min(k + self.pads, self.rows.shape[0]), budget)
        return jnp.where(places + self.start < self.shape[0], scores, -jnp.inf), places

    def softmax_mean(self, z: Array, temperature: float, budget: int) -> tuple[Array, Array]:
        """Over the rows held; the share of those that are none of the bank's is taken out."""
        lse, mean = kernels.softmax_mean(z, self.rows, temperature, budget)
        if not self.pads:
            return lse, mean
        row = kernels.wide(self.rows[-1:, :])
        excess = self.pads * jnp.exp(dot(z, row.T) / temperature - lse[:, None])  # at most pads / (pads + 1)
        left = jnp.where(self._last, 1.0 - excess, 1.0)
        return lse + jnp.log(left[:, 0]), jnp.where(self._last, mean - excess * row, mean) / left

    def put(self, indices: Array, rows: Array) -> Part:
        """In place; an index of another device lies beyond the rows, and is dropped."""
        mine, places = self.places(indices)
        written = self.rows.at[jnp.where(mine, places, self.rows.shape[0])].set(rows, mode="drop")
        if self.pads:
            tail = written[-self.pads :, :]
            again = jnp.where(self._last, written[-self.pads - 1, :], tail)
            written = written.at[-self.pads :].set(again)
        return Part(written, self.shape[0], self.comm.size)

    @property
    def _last(self) -> Any:
        return self.comm.rank == self.comm.size - 1


@jax.tree_util.register_pytree_node_class
class MeshBank(Dealt):
    """A bank whose rows are dealt out to the devices of this process.

    Parameters
    ----------
    rows
        (P c, D) with ``c = ceil(N / P)``, in equal parts on the P devices; those after the N-th repeat it.
    n
        Rows of the bank.
    mesh
        Of one axis.
    """

    comm = ALONE

    def __init__(self, rows: Array, n: int, mesh: Mesh) -> None:
        self.rows, self.n, self.mesh = rows, n, mesh

    @property
    def device(self) -> Any:
        """All of them: what is asked and answered is whole on each."""
        return NamedSharding(self.mesh, WHOLE)

    def tree_flatten(self) -> tuple[tuple[Array], tuple[int, Mesh]]:
        """To JAX this is one array."""
        return (self.rows,), (self.n, self.mesh)

    @classmethod
    def tree_unflatten(cls, rest: tuple[int, Mesh], rows: tuple[Array]) -> MeshBank:
        """As it was."""
        return cls(rows[0], *rest)

    def of(self, rows: Array) -> MeshBank:
        """A bank of other rows in the same places."""
        return MeshBank(rows, self.n, self.mesh)

    def ask(self, answer: Callable[..., Any], *args: Any) -> Any:
        """Every device is asked, and told the arrays of ``args``."""
        return self._run(answer, WHOLE, *args)

    def put(self, indices: Array, rows: Array) -> MeshBank:
        """By each device; in its memory inside a jit that gives the bank away."""
        return self.of(self._run(_put, DEALT, self, indices, rows))

    def sums(self, function: Callable[[Array], tuple[Array, ...]]) -> tuple[Array, ...]:
        """Of what each device has, less what the rows that are there twice add."""
        found: tuple[Array, ...] = self._run(_sums, WHOLE, self, function)
        extra = self.rows[self.n :, :]
        return tuple(x - y for x, y in zip(found, function(extra), strict=True)) if len(extra) else found

    def assigned(self, centroids: Array) -> tuple[Array, Array]:
        """(P c,) each, left on the devices; a row that is none of the bank's has no cluster, and square 0."""
        labels, squares = self._run(_assigned, DEALT, self, centroids)
        return labels, squares

    def segment_mean(self, segments: Array, n: int) -> tuple[Array, Array]:
        """From the segments that :meth:`assigned` gives, or those of the N rows."""
        segments = jnp.pad(segments, (0, self.rows.shape[0] - segments.shape[0]), constant_values=n)
        means, counts = self._run(_segment_mean, WHOLE, self, segments, n, dealt=segments)
        return means, counts

    def joined(self, x: Array) -> Array:
        """Told to all devices."""
        told: Array = jax.device_put(x, self.device)
        return told[: self.n]

    def whole(self, to_host: Callable[[Array], Any], budget: int) -> Any:
        """Part by part."""
        return to_host(self.rows)[: self.n]

    def _run(self, function: Callable[..., Any], out: PartitionSpec, *args: Any, dealt: Array | None = None) -> Any:
        """``function(*args)`` on every device, with its :class:`Part` for this bank and its entries of ``dealt``."""
        kinds = tuple(
            _BANK if x is self else (_ENTRIES if x is dealt else _ARRAY) if isinstance(x, jax.Array) else x
            for x in args
        )
        arrays = [x.rows if x is self else x for x in args if x is self or isinstance(x, jax.Array)]
        return _on_each(function, self.mesh, self.n, out, kinds)(*arrays)


_BANK, _ENTRIES, _ARRAY = object(), object(), object()
"""What an argument is, if it is not a plain value."""


@cache
def _on_each(function: Callable[..., Any], mesh: Mesh, n: int, out: PartitionSpec, kinds: tuple[Any, ...]) -> Any:
    """A function of a bank, compiled once for its plain arguments: of the rows of the bank and the arrays."""

    def on_one(*arrays: Array) -> Any:
        left = iter(arrays)
        args = [next(left) if kind in (_BANK, _ENTRIES, _ARRAY) else kind for kind in kinds]
        return function(*(Part(x, n, mesh.size) if kind is _BANK else x for x, kind in zip(args, kinds, strict=True)))

    specs = {_BANK: DEALT, _ENTRIES: DEALT, _ARRAY: WHOLE}
    given = tuple(specs[kind] for kind in kinds if kind in specs)
    # What the kernels carry through their loops is not annotated, so JAX cannot check what differs between devices.
    return jax.jit(jax.shard_map(on_one, mesh=mesh, in_specs=given, out_specs=out, check_vma=False))


def _put(bank: Part, indices: Array, rows: Array) -> Any:
    return bank.put(indices, rows).rows


def _sums(bank: Part, function: Callable[[Array], tuple[Array, ...]]) -> tuple[Array, ...]:
    return bank.sums(function)


def _assigned(bank: Part, centroids: Array) -> tuple[Array, Array]:
    labels, squares = bank.assigned(centroids)
    real = bank.start + jnp.arange(labels.shape[0]) < bank.shape[0]
    return jnp.where(real, labels, centroids.shape[0]), jnp.where(real, squares, 0.0)


def _segment_mean(bank: Part, segments: Array, n: int) -> tuple[Array, Array]:
    return bank.segment_mean(segments, n)


class Devices:
    """Several devices, and how a run is divided among them.

    Parameters
    ----------
    devices
        At least two.
    """

    def __init__(self, devices: Sequence[jax.Device]) -> None:
        self.size = len(devices)
        self.mesh = Mesh(np.array(devices), (AXIS,))
        self.all = NamedSharding(self.mesh, WHOLE)
        """Where an array lies whole on every device."""
        self.by_rows = NamedSharding(self.mesh, DEALT)
        self._deal = jax.jit(_filled, static_argnums=1, out_shardings=self.by_rows)

    def bank(self, rows: np.ndarray, stored: Callable[[np.ndarray], Array]) -> MeshBank:
        """Rows of the host (N, D), filled up and dealt out: ``stored`` puts them where :attr:`by_rows` says."""
        lacking = -len(rows) % self.size
        filled = np.concatenate([rows, np.repeat(rows[-1:], lacking, axis=0)]) if lacking else rows
        return MeshBank(stored(filled), len(rows), self.mesh)

    def deal(self, bank: Array) -> MeshBank:
        """A bank that every device has whole, dealt out."""
        return MeshBank(self._deal(bank, -bank.shape[0] % self.size), bank.shape[0], self.mesh)

    def divide(self, objective: Callable[..., Terms]) -> Callable[..., Terms]:
        """An objective of a whole batch and a bank that every device has: each works on its part of the rows.

        A batch that does not divide is filled up with its last row, whose terms are then left out.
        """

        def divided(z: Array, state: State, indices: Array, *rest: Array | None) -> Terms:
            n, b = z.shape[0], -(-z.shape[0] // self.size)
            rows = [None if x is None else _filled(x, self.size * b - n) for x in (z, indices, *rest)]

            def on_one(state: State, z: Array, indices: Array, *rest: Array | None) -> Terms:
                terms = objective(z, state, indices, *rest)
                return terms._replace(cotangent=terms.cotangent * (b / n))  # of the mean over the batch

            specs = (WHOLE, *(DEALT for _ in rows))
            run: Any = jax.shard_map(on_one, mesh=self.mesh, in_specs=specs, out_specs=DEALT, check_vma=False)
            terms = run(state, *rows)
            return Terms(*(None if x is None else _constrained(x[:n], self.all) for x in terms))

        return divided


def _filled(x: Array, count: int) -> Array:
    """With the last row so many times more."""
    return jnp.pad(x, [(0, count)] + [(0, 0)] * (x.ndim - 1), mode="edge") if count else x
