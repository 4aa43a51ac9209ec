"""What a product in low precision may take from a score: what a search by such products stands on.

Let z be a query, b a row, and z', b' what is left of them in bfloat16 or float16. Then

    |z . b  -  z' . b'|  <=  |z - z'| |b|  +  |z'| |b - b'|

by Cauchy and Schwarz, where |z - z'| is known and |b - b'| is at most a unit roundoff of |b|, and what vanishes.
Products of such numbers are exact in float32. A sum of D of them is off by at most D roundoffs of |z'| |b'| on a CPU,
which rounds, and by twice as many in the tensor cores of a GPU, which cut off; the score in float32 is off by D of
|z| |b|. So a row whose score in float32 reaches a threshold has one in low precision that reaches the threshold lowered
by all that. Those that do are scored again in float32, and no other can be wanted.
"""

from __future__ import annotations

from typing import NamedTuple

from la_core.kernels import Array

ROUNDOFF32 = 2.0**-24
"""Unit roundoff of float32."""
ABOVE = 1.0 + 2.0**-16
"""By what a norm is multiplied that was computed in float32, so that it is not less than the true one."""


class Low(NamedTuple):
    """A kind of numbers."""

    roundoff: float
    """The share of a number that may be lost."""
    vanishing: float
    """And what may be lost where it is small."""
    largest: float
    """A row whose norm exceeds it may have a number that is infinite."""


BFLOAT16 = Low(2.0**-8, 2.0**-126, 2.0**127)
FLOAT16 = Low(2.0**-11, 2.0**-25, 65504.0)


def margin(norm: Array, error: Array, dim: int, kind: Low) -> tuple[Array, Array]:
    """By how much less than in float32 a score may be: the first times the row's norm, and the second.

    Of every query from |z'| and |z - z'|, neither of which is less than it is.
    """
    sums = (4.0 * dim + 4.0) * ROUNDOFF32 * (1.0 + kind.roundoff)  # and what is lost when a threshold is lowered
    lost = dim * kind.vanishing
    return (error + norm * kind.roundoff + (norm + error) * sums + lost) * (1.0 + 2.0**-20), lost * (norm + 1.0)


def vanishing_norm(dim: int) -> float:
    """The norm of a row of which float32 may see nothing, for its squares vanish."""
    return dim * 2.0**-60
