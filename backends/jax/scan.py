"""Search of a large bank on a CPU, compiled by XLA.

One pass over the bank, in blocks of rows. What scores above the threshold of a query goes into the table of its
candidates. The threshold starts as a guess: the score of a certain rank in a sample of the rows, low enough that more
than k rows reach it, most likely.

Why the answer is exact. A row is refused for one of two reasons. By the guess: then at least k rows that scored
higher are in the table at the end, or else the query has another pass, with no guess. By a threshold that was raised
when a table without room for a whole block was cut down to the k best: then k earlier rows score at least as much,
and a later row of equal score loses the tie.

XLA cannot collect what a mask selects, and is slow to sort. Here 32 marks are the bits of a word, and the running
count of the bits tells where the i-th mark is. Scores are compared as integers (:func:`_key`), which NaN does not
escape.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from la_core.kernels import itemsize

Pair: TypeAlias = tuple[Array, Array]

LEAST, PART = 2**16, 8
"""Rows of a bank, and how many times as many as are wanted, from which on this is faster on a CPU."""
FEW, WANTED = 2**12, 2**15
"""Fewer rows do, where all queries together want so many: a selection by sorting takes longer for each."""
SAMPLE, SHARE = 16_384, 8
"""Rows of the sample, but no more than one in so many."""
SCORES, QUERIES, ROWS = 2**18, 256, 1024
"""Of a block: how many scores, about; most queries; fewest rows, and 8 times as many are the most."""
SLOTS = 2048
"""Marks that are looked up at a time."""
WORD = 32
"""Bits of a word."""

dot: Any = partial(jnp.matmul, precision=lax.Precision.HIGHEST)
"""A product in full precision."""


class _Table(NamedTuple):
    """Candidates of every query, by rising row."""

    keys: Array  # (B, width)
    rows: Array  # (B, width)
    filled: Array  # (B,)
    threshold: Array  # (B,), a key that the next must exceed


_Progress: TypeAlias = tuple[_Table, Array]
"""And the row that is next."""


def pays(batch: int, n: int, k: int) -> bool:
    """Whether this is worth it: a bank that is large, or much wanted in all, but a small part of it for a query."""
    return n >= PART * k and (n >= LEAST or (n >= FEW and batch * k >= WANTED))


def scanned(z: Array, bank: Array, k: int, budget: int) -> Pair:
    """As many queries at a time as the budget allows."""
    n, dim = bank.shape
    size = itemsize(z)
    sampled = -(-min(SAMPLE, n // SHARE) // ROWS) * ROWS
    together = min(z.shape[0], QUERIES)
    rows = max(ROWS, min(8 * ROWS, SCORES // together))

    def per_query(rows: int) -> int:
        return 3 * _width(k, rows) * (size + 4) + 2 * (sampled + rows) * size

    while rows > ROWS and per_query(rows) * together + rows * dim * size > budget:
        rows //= 2
    rows = min(rows, n) // WORD * WORD
    parts = -(-z.shape[0] // max(1, min(together, (budget - rows * dim * size) // per_query(rows))))
    each = -(-z.shape[0] // parts)
    padded = jnp.pad(z, [(0, parts * each - z.shape[0]), (0, 0)], mode="edge")
    found = lax.map(lambda some: _scan(some, bank, k, rows, sampled), padded.reshape(parts, each, dim))
    scores, indices = (x.reshape(parts * each, k)[: z.shape[0]] for x in found)
    return scores, indices


def _scan(z: Array, bank: Array, k: int, size: int, sampled: int) -> Pair:
    """The search for some queries, in blocks of ``size`` rows: one pass, unless a guess was too high."""
    n, width = bank.shape[0], _width(k, size)
    guess = _guess(z, bank, k, sampled)
    lowest = np.iinfo(guess.dtype).min  # no score has this key

    def room(at: _Progress) -> Array:
        return (at[1] < n) & (jnp.max(at[0].filled) <= width - size)

    def add(at: _Progress) -> _Progress:
        table, first = at
        start = jnp.minimum(first, n - size)  # the last block overlaps the one before
        keys = _key(dot(z, lax.dynamic_slice_in_dim(bank, start, size).T))
        new = start + jnp.arange(size, dtype=jnp.int32) >= first
        return _extend(table, keys, (keys > table.threshold[:, None]) & new, start), first + size

    def fill(at: _Progress) -> _Progress:
        table, first = lax.while_loop(room, add, at)
        return _tighten(table, k), first

    def search(last: _Progress) -> _Progress:
        table, _ = lax.while_loop(lambda at: at[1] < n, fill, (empty._replace(threshold=last[1]), jnp.int32(0)))
        return table, jnp.where(table.filled < k, lowest, last[1])

    keys = jnp.full((z.shape[0], width), lowest, guess.dtype)
    empty = _Table(keys, jnp.zeros(keys.shape, jnp.int32), jnp.zeros(z.shape[0], jnp.int32), guess)
    table, _ = lax.while_loop(lambda last: jnp.any(last[0].filled < k), search, (empty, guess))
    return _score(table.keys[:, :k], z.dtype), table.rows[:, :k]


def _width(k: int, size: int) -> int:
    """Of a table: most of what passes a guess, and one block of which every row does."""
    return -(-(2 * k + size) // WORD) * WORD


def _guess(z: Array, bank: Array, k: int, sampled: int) -> Array:
    """Just below the key of a rank in the sample that exceeds the expected number of the k best by six sigma: (B,)."""
    n = bank.shape[0]
    expected = k * sampled / n
    rank = min(sampled, math.ceil(expected + 6 * math.sqrt(expected)))
    rows = jnp.asarray(np.arange(sampled) * n // sampled, jnp.int32).reshape(-1, ROWS)
    scores = lax.map(lambda some: dot(z, bank[some].T), rows)  # some at a time: the rows of a block, gathered
    best, _ = lax.top_k(ranked(jnp.moveaxis(scores, 0, 1).reshape(z.shape[0], sampled)), rank)
    return jnp.min(_key(best), axis=1) - 1  # ``best[:, -1]`` would be rewritten to a sort, 40 times as slow


def _tighten(table: _Table, k: int) -> _Table:
    """Keep the k best of every query, the least of which is the new threshold; a table of fewer keeps all.

    The k-th largest key is found bit by bit: it is the largest number that k keys reach.
    """
    keys = table.keys
    info = np.iinfo(keys.dtype)

    def reached(key: Array) -> Array:
        return jnp.sum(keys >= key, axis=1, keepdims=True, dtype=jnp.int32) >= k

    def bit(i: Array, least: Array) -> Array:
        higher = least | (jnp.ones((), keys.dtype) << (info.bits - 2 - i).astype(keys.dtype))
        return jnp.where(reached(higher), higher, least)

    zero = jnp.zeros_like(keys[:, :1])
    least = lax.fori_loop(0, info.bits - 1, bit, jnp.where(reached(zero), zero, info.min))
    equal = keys == least
    spare = k - jnp.sum(keys > least, axis=1, keepdims=True, dtype=jnp.int32)
    words = _words((keys > least) | (equal & (jnp.cumsum(equal, axis=1, dtype=jnp.int32) <= spare)))
    found = _locate(words, jnp.cumsum(_bits(words)), jnp.int32(0), keys.shape[0] * k)
    return _Table(
        jnp.full_like(keys, info.min).at[:, :k].set(keys.reshape(-1)[found].reshape(-1, k)),
        table.rows.at[:, :k].set(table.rows.reshape(-1)[found].reshape(-1, k)),
        jnp.minimum(table.filled, k),
        jnp.maximum(table.threshold, least[:, 0]),
    )


def _extend(table: _Table, keys: Array, marks: Array, first: Array) -> _Table:
    """Add the marked columns of a block to the table; there must be room."""
    queries, width = table.keys.shape
    size = keys.shape[1]
    words = _words(marks)
    ends = jnp.cumsum(_bits(words))
    to = ends[size // WORD - 1 :: size // WORD]  # up to the last of each query
    filled = table.filled + jnp.diff(to, prepend=0)
    offset = jnp.arange(queries, dtype=jnp.int32) * width + filled - to

    def more(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        done, there, rows = state
        found = _locate(words, ends, done, SLOTS)
        slots = done + jnp.arange(SLOTS, dtype=jnp.int32)
        place = jnp.where(slots < to[-1], slots + offset[found // size], queries * width)
        there = there.at[place].set(keys.reshape(-1)[found], mode="drop")
        return done + SLOTS, there, rows.at[place].set(first + found % size, mode="drop")

    state = jnp.int32(0), table.keys.reshape(-1), table.rows.reshape(-1)
    _, there, rows = lax.while_loop(lambda state: state[0] < to[-1], more, state)
    return _Table(there.reshape(queries, width), rows.reshape(queries, width), filled, table.threshold)


def _key(scores: Array) -> Array:
    """Integers in the order of the scores, NaN highest."""
    bits = 8 * itemsize(scores)
    return _folded(lax.bitcast_convert_type(ranked(scores), f"int{bits}"))


def _score(keys: Array, dtype: Any) -> Array:
    """The inverse of :func:`_key`."""
    return lax.bitcast_convert_type(_folded(keys), dtype)


def _folded(bits: Array) -> Array:
    """All bits but the sign turned over where it is set: of a negative float the larger bits are the smaller number."""
    info = np.iinfo(bits.dtype)
    return bits ^ ((bits >> (info.bits - 1)) & info.max)


def _words(marks: Array) -> Array:
    """Marks (B, n), 32 to a word: (B n / 32,) uint32."""
    bits = marks.reshape(-1, WORD).astype(jnp.uint32) << jnp.arange(WORD, dtype=jnp.uint32)
    return jnp.sum(bits, axis=1, dtype=jnp.uint32)


def _bits(words: Array) -> Array:
    """How many are set."""
    return lax.population_count(words).astype(jnp.int32)


def _locate(words: Array, ends: Array, first: Array, count: int) -> Array:
    """Where the marks number ``first``, ``first + 1``, ... are: (count,); anywhere, where there are fewer.

    ``ends`` are the marks up to the end of each word.
    """
    starts = jnp.maximum(ends - _bits(words) - first, 0)
    index = jnp.arange(words.shape[0], dtype=jnp.int32)
    at = lax.cummax(jnp.zeros(count, jnp.int32).at[starts].max(index, mode="drop"))  # the last to start at or before
    word = words[at]
    before = jnp.arange(count, dtype=jnp.int32) - (ends[at] - _bits(word) - first)  # marks of this word
    place = at * WORD
    for half in (16, 8, 4, 2, 1):
        low = _bits(word & jnp.uint32(2**half - 1))
        above = before >= low
        before = jnp.where(above, before - low, before)
        word = jnp.where(above, word >> half, word)
        place = jnp.where(above, place + half, place)
    return place


def ranked(x: Array) -> Array:
    """-0 equals 0 here, and NaN ranks highest whatever its sign."""
    return jnp.where(jnp.isnan(x), jnp.nan, jnp.where(x == 0, 0.0, x)).astype(x.dtype)
