"""The table can turn red: one disagreement at a time is planted in one library, through its kernels."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace

from agreement.functions import FUNCTIONS
from agreement.guises import named, needed
from agreement.table import disagreements, main, table
from la_core import kernels


def ties_to_the_highest_index(nearest):
    def planted(z, bank, k, budget=kernels.BUDGET):
        xp = array_namespace(bank)
        scores, indices = nearest(z, xp.flip(bank, axis=0), k, budget)
        return xp.flip(scores, axis=1), xp.flip(bank.shape[0] - 1 - indices, axis=1)

    return planted


def accumulated_in_float32(softmax_mean):
    def planted(z, bank, temperature, budget=kernels.BUDGET):
        xp = array_namespace(z)
        results = softmax_mean(xp.astype(z, xp.float32), xp.astype(bank, xp.float32), temperature, budget)
        return tuple(xp.astype(x, z.dtype) for x in results)

    return planted


def clamped(put_rows):
    def planted(x, indices, rows):
        return put_rows(x, array_namespace(indices).clip(indices, 0, x.shape[0] // 2), rows)

    return planted


@dataclass(frozen=True)
class Plant:
    name: str
    kernel: kernels.Kernel
    plant: Any
    functions: tuple[str, ...]
    """The rows that must turn red."""
    dtypes: tuple[type, ...] = field(default=(np.float64,))

    def __str__(self):
        return self.name


EXAMPLES = 15
PLANTS = (
    Plant("a wrong tie rule", kernels.nearest, ties_to_the_highest_index, ("nearest", "local_aggregation_terms")),
    Plant("float32 in the float64 path", kernels.softmax_mean, accumulated_in_float32, ("instance_discrimination",)),
    Plant("an index clamped", kernels.put_rows, clamped, ("update",)),
)
LIBRARIES = {  # the guise that is to turn red, and the names that its arrays go by
    "numpy": ("numpy",),
    "strict device1": ("array_api_strict",),
    "torch": ("torch",),
    "jax x64": ("jaxlib", "jax"),
    "jax x64 jitted": ("jaxlib", "jax"),
    "cupy": ("cupy",),
}


@pytest.mark.parametrize("guise", LIBRARIES)
@pytest.mark.parametrize("plant", PLANTS, ids=str)
def test_a_planted_disagreement_turns_its_cells_red(monkeypatch, capsys, plant, guise):
    from agreement import guises

    # Numbers are compared with NumPy's: where NumPy itself is wrong, all others turn red.
    red = needed(named(guise if guise != "numpy" else "strict"))
    columns = (named("numpy"), red)
    rows = [function for function in FUNCTIONS if function.name in plant.functions]
    assert main(rows, columns, EXAMPLES) == 0
    try:
        for library in LIBRARIES[guise]:
            kernel = plant.kernel
            monkeypatch.setitem(kernel.overrides, library, plant.plant(kernel.overrides.get(library, kernel.reference)))
        guises.jitted.cache_clear()
        cells = table(rows, columns, plant.dtypes, EXAMPLES)
        assert main(rows, columns, EXAMPLES) == 1
    finally:
        guises.jitted.cache_clear()
    assert len(disagreements(cells)) == len(rows), f"not every row of {plant.functions} is red"
    assert all(bool(cell.failures) == (name == red.name) for (_, _, name), cell in cells.items())
    out = capsys.readouterr()
    assert "!" in out.out
    assert out.err.count(f"/ {red.name}: example") >= len(rows)
    assert "DISAGREEMENT" in out.err


def test_a_function_that_fails_is_red(monkeypatch):
    monkeypatch.setitem(kernels.nearest.overrides, "array_api_strict", lambda *args: 1 / 0)
    (cell,) = table([FUNCTIONS[0]], [named("strict")], (np.float64,), 3).values()
    assert cell.failures[0].startswith("example 0: ZeroDivisionError")
    assert str(cell) == "FAILS!"
