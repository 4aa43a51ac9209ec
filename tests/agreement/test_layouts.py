"""Arrays as they come: in Fortran's order, every second row of another, turned round; and very long ones."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from variants import NUMPY, TORCH

import la_core
from agreement.functions import FUNCTIONS
from agreement.guises import GUISES
from agreement.harness import agree
from la_core import State, kernels
from la_core.errors import KindError


def every_second(x):
    doubled = np.repeat(x, 2, axis=0)
    doubled[1::2] = -1 if x.dtype.kind in "iu" else np.nan  # never to be read
    return doubled[::2]


LAYOUTS = {
    "fortran": np.asfortranarray,
    "every second row": every_second,
    "turned round": lambda x: np.ascontiguousarray(x[::-1])[::-1],
}
FORMS = [("numpy", layout) for layout in LAYOUTS] + [("torch", "fortran"), ("torch", "every second row")]


class Laid:
    """A variant whose arrays lie otherwise."""

    def __init__(self, variant, layout):
        self._variant, self._layout = variant, layout

    def __getattr__(self, name):
        return getattr(self._variant, name)

    def asarray(self, host, *, copy=True):
        laid = self._layout(np.array(host))
        return torch.from_numpy(laid) if self._variant is TORCH else laid


def laid(library, layout):
    variant = {"numpy": NUMPY, "torch": TORCH}[library]
    plain = next(guise for guise in GUISES if guise.variant is variant and not guise.whole)
    return replace(plain, variant=Laid(variant, layout))


@pytest.mark.parametrize(("library", "layout"), FORMS)
@pytest.mark.parametrize("function", FUNCTIONS, ids=str)
def test_how_arrays_lie_does_not_matter(function, library, layout):
    guise = laid(library, LAYOUTS[layout])

    @settings(max_examples=5, suppress_health_check=[HealthCheck.too_slow])
    @given(case=function.examples(guise))
    def law(case):
        agree(function, guise, case.astype(np.float64))

    law()


def test_a_layout_that_changes_the_numbers_is_caught():
    guise = laid("numpy", lambda x: x[::-1])
    with pytest.raises(AssertionError, match="wrote into z"):
        agree(FUNCTIONS[0], guise, FUNCTIONS[0].drawn(0, guise).astype(np.float64))


def test_big_endian_numbers_are_refused():
    rows = np.eye(4, dtype=">f4")
    with pytest.raises(KindError, match="bank must be float32, float64, float16 or bfloat16; got dtype >f4"):
        la_core.nearest(rows.astype(np.float32), rows, 2)


FAR = 2**31 + 5
"""A row that no 32-bit integer counts to."""


@pytest.mark.parametrize("asarray", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_rows_beyond_32_bits_are_reached(tmp_path, asarray):
    rows = np.memmap(tmp_path / "bank", np.float16, "w+", shape=(2**31 + 16, 2))  # sparse: it takes no disk
    rows[FAR] = (0.6, 0.8)
    bank, far = asarray(rows), asarray(np.array([FAR]))
    np.testing.assert_allclose(kernels.rows_at(bank, far), [[0.6, 0.8]], atol=1e-3)
    z = asarray(np.array([[1.0, 0.0]], np.float32))
    np.testing.assert_allclose(kernels.scores_at(z, bank, far[None, :]), [[0.6]], atol=1e-3)
    la_core.update(State(bank), far, z, mixing=1.0)
    np.testing.assert_allclose(rows[FAR], [1.0, 0.0], atol=1e-3)
    assert not rows[FAR - 2**31].any()
