"""Every public function, in every guise, in both precisions: the numbers, the dtypes, the library and the device."""

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from variants import NUMPY

from agreement.functions import FUNCTIONS
from agreement.guises import BOTH, GUISES, jitted, needed
from agreement.harness import agree
from la_core.errors import KindError

PLACES = [
    pytest.param(function, guise, dtype, id=f"{function}-{guise}-{dtype.__name__}")
    for function in FUNCTIONS
    for guise in GUISES
    for dtype in guise.dtypes
    if not (guise.whole and function.on_host)
]
HOSTED = [
    pytest.param(function, guise, id=f"{function}-{guise}")
    for function in FUNCTIONS
    for guise in GUISES
    if function.on_host and guise.prepare is jitted
]


@pytest.mark.parametrize(("function", "guise", "dtype"), PLACES)
def test_agrees_with_numpy(function, guise, dtype):
    needed(guise)

    # No search for a smaller example where each would be compiled anew.
    effort = {"max_examples": 4, "phases": [Phase.explicit, Phase.generate]} if guise.costly else {"max_examples": 15}

    @settings(**effort, suppress_health_check=[HealthCheck.too_slow])
    @given(case=function.examples(guise))
    def law(case):
        agree(function, guise, case.astype(dtype))

    law()


@pytest.mark.parametrize(("function", "guise"), HOSTED)
def test_what_cannot_be_jitted_says_so(function, guise):
    needed(guise)
    case = function.drawn(0, guise).astype(guise.dtypes[0])
    with guise.mode():
        there = {name: guise.asarray(x) for name, x in function.arrays(case).items()}
        with pytest.raises(KindError, match="which JAX is tracing: call it outside"):
            guise.prepare(function.call, **function.settings(case))(**there)


def test_nothing_public_is_forgotten():
    import la_core

    state_in_state_out = {"nearest", "close", "cluster", "update", "unit"}
    objectives = {name for name in la_core.__all__ if name.startswith(("local_agg", "instance_"))}
    measured = {str(function) for function in FUNCTIONS}
    assert state_in_state_out | objectives | {"evaluate.knn"} <= measured
    on_host = {"log_normaliser", "random_rows", "samples", "train", "backend", "errors", "evaluate", "report", "plan"}
    classes = {name for name in la_core.__all__ if isinstance(getattr(la_core, name), type)}
    assert set(la_core.__all__) - on_host - classes <= measured, "a public function has no row in the table"


@pytest.mark.parametrize("function", FUNCTIONS, ids=str)
def test_numpy_is_deterministic_and_the_examples_are_fair(function):
    """Kinds that are drawn do reach the function: none is refused for want of margins."""
    (plain,) = (guise for guise in GUISES if guise.variant is NUMPY)
    for dtype in BOTH:
        for seed in range(10):
            case = function.drawn(seed, plain).astype(dtype)
            assert agree(function, plain, case) == 0.0
            assert all(np.all(np.isfinite(x)) for x in function.arrays(case).values())
