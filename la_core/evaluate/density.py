"""How crowded the sphere is around each sample: near it, and in its wider surroundings."""

from __future__ import annotations

from typing import NamedTuple

from la_core import check, kernels
from la_core.errors import RangeError
from la_core.evaluate.search import search, unit_rows
from la_core.kernels import BUDGET, Array
from la_core.spaces import device


class Densities(NamedTuple):
    """Local and background density of each sample, cosines in [-1, 1]; local is never below background."""

    local: Array
    """(N,) mean cosine to the ``k_local`` nearest."""
    background: Array
    """(N,) mean cosine to the ``k_background`` nearest."""


def densities(
    embeddings: Array,
    *,
    k_local: int = 30,
    k_background: int = 4096,
    own: bool = True,
    indices: Array | None = None,
    budget: int = BUDGET,
    as_it_is: bool = False,
) -> Densities:
    """Mean cosine of each sample to its nearest few and to its nearest many.

    Zhuang et al. (2019) compare a local and a background density of embeddings: Local Aggregation should raise the
    first and lower the second. No code of theirs is published; **this definition is ours**.

    Parameters
    ----------
    embeddings
        (N, D) float32 or float64, N >= 2; made unit length here.
    k_local
        1 to ``k_background``, and fewer than N.
    k_background
        Clamped to the samples there are: N - 1, or N without ``own``.
    own
        Leave each sample itself out, which would count with cosine 1.
    indices
        (M,) samples to look at, against all of the embeddings; by default each. The cost is M N D.
    budget
        Bytes of temporary memory beside the unit-length copy of the embeddings.
    as_it_is
        The embeddings are unit rows already, as those of a bank, and may be stored in half: no copy is made.

    Returns
    -------
    Densities
        (M,) or (N,) each.

    Raises
    ------
    ShapeError, KindError, RangeError, NotFiniteError
    """
    extra = {} if indices is None else {"indices": indices}
    xp = check.together(embeddings=embeddings, **extra)
    check.concrete("densities", embeddings=embeddings, **extra)
    bank = unit_rows(embeddings, as_it_is)
    n = embeddings.shape[0]
    if indices is None:
        indices = xp.arange(n, device=device(embeddings))
    check.indices("indices", indices, (None,), n)
    check.count("budget", budget)
    others = n - bool(own)
    if not others:
        raise RangeError("embeddings must have at least 2 rows, since each is left out of its own density; got 1")
    k_background = min(check.count("k_background", k_background), others)
    k_local = check.count("k_local", k_local, k_background, "as the background has no more rows")
    lines = kernels.wide(kernels.rows_at(bank, indices))
    parts = []
    for _, cosines, _ in search(lines, bank, k_background, indices if own else None, 64 * (k_background + 1), budget):
        falling = xp.clip(kernels.falling(cosines), min=-1.0, max=1.0)
        parts.append((xp.mean(falling[:, :k_local], axis=1), xp.mean(falling, axis=1)))
    return Densities(*(xp.concat(column) for column in zip(*parts, strict=True)))
