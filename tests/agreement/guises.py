"""The libraries in every way that they are used, as data. What cannot run here says so by its name and a reason."""

import logging
import os
import warnings
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import entry_points
from typing import Any

import numpy as np
import pytest
from array_api_strict import ArrayAPIStrictFlags
from variants import DEVICE1, NUMPY, READONLY, STRICT, TORCH, Variant, torch

import la_core
from la_core import protocol

BOTH = (np.float64, np.float32)


def registered():
    return {entry.name for entry in entry_points(group=protocol.GROUP)}


def plainly(call, **settings):
    return partial(call, **settings)


@dataclass(frozen=True)
class Guise:
    """A variant, the mode that its library is in, and how a function of it is called."""

    name: str
    variant: Variant | None
    mode: Callable[[], Any] = nullcontext
    """Context in which the arrays are made, used and read."""
    prepare: Callable[..., Any] = plainly
    """``(call, **sizes and settings) -> function of arrays``: as it is, jitted, or compiled."""
    dtypes: tuple[type, ...] = BOTH
    narrow: bool = False
    """64-bit integers do not exist."""
    costly: bool = False
    """New shapes are compiled: examples keep to one shape."""
    traces: bool = False
    """New settings are compiled, too: examples keep to one of each."""
    whole: bool = False
    """A function is traced as a whole; one that looks at numbers as it goes (``Function.on_host``) is not."""
    library: str = ""
    """Name of the backend that this is, if it is one."""
    missing: str = ""
    """Why it cannot run here."""

    def __str__(self):
        return self.name

    def asarray(self, host, *, copy=True):
        if self.narrow and host.dtype == np.int64:
            host = host.astype(np.int32)
        return self.variant.asarray(host)

    def to_host(self, x):
        return self.variant.to_host(x)

    @property
    def backend(self):
        """The registered backend of the library or, where there is none, its arrays as they are."""
        return la_core.backend(self.library) if self.library in registered() else Plain(self)


@dataclass(frozen=True)
class Plain:
    """A backend for a library that has none: arrays, and the reference kernels."""

    guise: Guise
    name: str = "plain"

    def asarray(self, host, *, copy=True):
        return self.guise.asarray(host)

    def to_host(self, x):
        return self.guise.to_host(x)

    def seed(self, seed):
        pass

    def compile(self, function, consumes=()):
        return function


# array-api-strict ------------------------------------------------------------------------------------------------

LOOSE = partial(ArrayAPIStrictFlags, boolean_indexing=True, data_dependent_shapes=True, enabled_extensions=("linalg",))
STRICTEST = partial(
    ArrayAPIStrictFlags,
    api_version="2024.12",
    boolean_indexing=False,
    data_dependent_shapes=False,
    enabled_extensions=(),
)


# PyTorch ---------------------------------------------------------------------------------------------------------


@contextmanager
def dynamo():
    """A function that is compiled too often is an error here, and not run uncompiled in silence."""
    limits = {"fail_on_recompile_limit_hit": True, "recompile_limit": 64, "accumulated_recompile_limit": 999}
    told = logging.getLogger("torch._dynamo")
    level = told.level
    with torch._dynamo.config.patch(**limits), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler, about itself and about what it cannot follow
        told.setLevel(logging.ERROR)  # the checks at the door look at numbers, which ends a graph: that is known
        try:
            yield
        finally:
            told.setLevel(level)


@cache
def compiled(call, **settings):
    # aot_eager captures and functionalises the whole graph, as every backend of torch.compile does, and generates no
    # code, which takes half a minute for each function and needs a C++ compiler.
    return torch.compile(partial(call, **settings), backend="aot_eager", dynamic=False)


def torch_guises():
    missing = "" if torch else "torch is not installed: pip install 'la-core[torch]'"
    if missing and "CI" in os.environ:
        raise ModuleNotFoundError(missing)
    return (
        Guise("torch", TORCH, library="torch", missing=missing),
        Guise(
            *("torch compiled", TORCH, dynamo, compiled, (np.float64,)),
            costly=True,
            traces=True,
            whole=True,
            missing=missing,
        ),
    )


# JAX -------------------------------------------------------------------------------------------------------------


@cache
def jitted(call, **settings):
    import jax

    return jax.jit(partial(call, **settings))


def x64(on):
    import jax

    return jax.enable_x64(on)


def jax_guises():
    try:
        import jax.numpy as jnp

        found = {"variant": Variant("jax", jnp)}
        if "jax" in registered():
            la_core.backend("jax")  # registers its kernels
    except ModuleNotFoundError as error:
        if "CI" in os.environ:
            raise
        found = {"variant": None, "missing": f"{error.name} is not installed: pip install 'la-core[jax]'"}
    plain = partial(Guise, **found, costly=True, library="jax")
    jit = partial(plain, prepare=jitted, traces=True, whole=True)
    short = {"mode": partial(x64, False), "dtypes": (np.float32,), "narrow": True}
    long = {"mode": partial(x64, True), "dtypes": (np.float64,)}
    return (
        plain("jax", **short),
        jit("jax jitted", **short),
        plain("jax x64", **long),
        jit("jax x64 jitted", **long),
    )


# CuPy ------------------------------------------------------------------------------------------------------------


def cupy_guise():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import cupy

            cupy.zeros(1)
        except ModuleNotFoundError as error:
            return Guise("cupy", None, missing=f"{error.name} is not installed: pip install 'la-core[cupy]'")
        except Exception as error:  # of the driver, of the runtime, of a library that is not there
            return Guise("cupy", None, missing=f"no GPU that CuPy can allocate on: {str(error).splitlines()[0]}")
    if "cupy" in registered():
        la_core.backend("cupy")
    return Guise("cupy", CuPy("cupy", cupy), library="cupy")


class CuPy(Variant):
    def asarray(self, host, *, copy=True):
        return self.xp.asarray(np.array(host))

    def to_host(self, x):
        return self.xp.asnumpy(x)


GUISES = (
    Guise("numpy", NUMPY, library="numpy"),
    Guise("numpy readonly", READONLY),
    Guise("strict", STRICT, LOOSE, library="array_api_strict"),
    Guise("strict strictest", STRICT, STRICTEST, library="array_api_strict"),
    Guise("strict device1", DEVICE1, STRICTEST),
    *torch_guises(),
    *jax_guises(),
    cupy_guise(),
)


def named(name):
    (guise,) = (g for g in GUISES if g.name == name)
    return guise


def needed(guise):
    """Skips by name what cannot run here."""
    if guise.missing:
        pytest.skip(f"{guise}: {guise.missing}")
    return guise
