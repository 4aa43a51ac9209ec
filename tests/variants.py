"""The array libraries under test, as data. Where PyTorch is missing its variant is, too: red in CI, see conftest.py."""

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import array_api_strict
import numpy as np
import pytest

import la_core

torch: Any = import_module("torch") if find_spec("torch") else None

for name in ("numpy", "torch") if torch else ("numpy",):
    la_core.backend(name)  # registers its kernels

array_api_strict.set_array_api_strict_flags(boolean_indexing=False, data_dependent_shapes=False, enabled_extensions=())

ACROSS = {np.dtype(np.float64): 1e-12, np.dtype(np.float32): 5e-6}
"""Equivalence tier 2: one step on two libraries, or against an independent reference."""


@dataclass(frozen=True)
class Variant:
    """A library in one particular guise."""

    name: str
    xp: Any
    device: Any = None
    readonly: bool = False

    def __str__(self):
        return self.name

    def asarray(self, host, *, copy=True):
        """A copy of a host array in this guise, of the same dtype."""
        x = self.xp.asarray(np.array(host), device=self.device)
        if self.readonly:
            x.flags.writeable = False
        return x

    def to_host(self, x):
        if torch and self.xp is torch:
            return x.detach().numpy()
        if self.xp is array_api_strict:
            x = x.to_device(array_api_strict.Device("CPU_DEVICE"))
        return np.array(x)


NUMPY = Variant("numpy", np)
READONLY = Variant("numpy:readonly", np, readonly=True)
STRICT = Variant("strict", array_api_strict)
DEVICE1 = Variant("strict:device1", array_api_strict, array_api_strict.Device("device1"))
TORCH = Variant("torch", torch)

VARIANTS = (NUMPY, READONLY, STRICT, DEVICE1, *([TORCH] if torch else []))
EXACT = 1e-12
"""float64 against an independent float64 formula."""

every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)


def assert_same(got, want):
    """Two host arrays: same dtype, same shape, same bits of every number."""
    assert got.dtype == want.dtype, f"dtype {got.dtype}, expected {want.dtype}"
    np.testing.assert_array_equal(got, want, strict=True)


def assert_close(got, want, tolerance, scale=0.0):
    """``|got - want| <= tolerance * max(|want|, scale)``, entry by entry; ``scale`` is the size of what cancelled."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, f"shape {got.shape}, expected {want.shape}"
    error = np.abs(got - want) / np.maximum(np.maximum(np.abs(want), scale), np.finfo(np.float64).tiny)
    assert np.all(error <= tolerance), f"off by {np.max(error):.3g}, allowed {tolerance:.3g}\n{got}\nexpected\n{want}"
