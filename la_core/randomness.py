"""The one source of chance: a counter-based NumPy generator on the host, keyed by what the numbers are for.

Every draw that the algorithm makes, on every backend and for every world size, comes from here, so a run can be
repeated, resumed at any step, and compared across libraries.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np


def generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """A fresh generator for one purpose at one place of a run.

    The numbers depend on ``(seed, purpose, counters)`` and on nothing else: not on what was drawn before. Counters
    name the place, for example ``(epoch, sample)``.
    """
    place = (zlib.crc32(purpose.encode()), *counters)
    try:  # the words that SeedSequence makes of the two, in a third of its time
        words = struct.pack(f"={4 + len(place)}I", seed, 0, 0, 0, *place)
        made = np.random.SeedSequence(np.frombuffer(words, np.uint32))
    except struct.error:  # longer numbers are several words, and others are refused
        made = np.random.SeedSequence(seed, spawn_key=place)
    return np.random.Generator(np.random.Philox(made))


def derived_seed(seed: int, purpose: str, *counters: int) -> int:
    """A seed of its own for one part of a run, for interfaces that take a seed and not a generator."""
    return int(generator(seed, purpose, *counters).integers(2**31))
