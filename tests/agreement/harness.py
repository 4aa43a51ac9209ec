"""One function in one guise on one example, against NumPy in the same precision (equivalence tier 2)."""

import numpy as np
from array_api_compat import array_namespace, device
from variants import ACROSS, NUMPY

from agreement.functions import BANK, BOOL, INTEGRAL, Z
from la_core.kernels import library


class DisagreementError(AssertionError):
    """A number that is not the same."""

    def __init__(self, message, deviation):
        super().__init__(message)
        self.deviation = deviation


def reference(function, case):
    """What NumPy says."""
    host = {name: NUMPY.asarray(x) for name, x in function.arrays(case).items()}
    return function.call(**host, **function.settings(case))


def agree(function, guise, case):
    """Asserts that ``guise`` gives what NumPy gives, and returns the worst relative deviation."""
    wanted = reference(function, case)
    host = function.arrays(case)
    with guise.mode():
        there = {name: guise.asarray(x) for name, x in host.items()}
        origin = whereabouts(next(iter(there.values())))  # before the call, which may consume its arguments
        results = guise.prepare(function.call, **function.settings(case))(**there)
        assert len(results) == len(function.outputs) == len(wanted)
        for x, output in zip(results, function.outputs, strict=True):
            assert whereabouts(x) == origin, f"{function}: {output.name} is {whereabouts(x)}, its arguments {origin}"
        untouched = {name: guise.to_host(x) for name, x in there.items() if name not in function.consumes}
        got = [guise.to_host(x) for x in results]
    for name, x in untouched.items():
        assert np.array_equal(x, host[name]), f"{function} wrote into {name}"
    function.law(case, {output.name: x for output, x in zip(function.outputs, got, strict=True)})
    worst = [same(x, y, o, function, case) for x, y, o in zip(got, wanted, function.outputs, strict=True)]
    return max(worst)


def whereabouts(x):
    """Library, namespace and device."""
    return library(x), array_namespace(x), device(x)


def same(got, want, output, function, case):
    """The dtype or its kind, the shape, and the numbers; returns their worst relative deviation."""
    name = f"{function}: {output.name}"
    if output.kind in (BANK, Z):
        dtype = (case.bank if output.kind == BANK else case.z).dtype
        assert got.dtype == dtype, f"{name} is {got.dtype}, expected {dtype}"
    else:
        assert output.kind in (INTEGRAL, BOOL)
        assert np.isdtype(got.dtype, output.kind), f"{name} is {got.dtype}, expected {output.kind}"
    assert got.shape == want.shape, f"{name} has shape {got.shape}, expected {want.shape}"
    if not output.when(case):
        return 0.0
    if output.kind in (INTEGRAL, BOOL):
        if not np.array_equal(got, want):
            raise DisagreementError(
                f"{name}: {np.sum(got != want)} of {got.size} differ\n{got}\nexpected\n{want}", np.inf
            )
        return 0.0
    if not (np.all(np.isfinite(got)) and np.all(np.isfinite(want))):
        raise DisagreementError(f"{name} is not finite\n{got}\nexpected\n{want}", np.inf)
    got, want = got.astype(np.float64), want.astype(np.float64)
    size = np.maximum(np.abs(want), output.scale(case))
    error = np.abs(got - want) / np.maximum(size, np.finfo(np.float64).tiny)
    worst = float(np.max(error))
    allowed = ACROSS[case.dtype]
    if worst > allowed:
        raise DisagreementError(f"{name}: off by {worst:.1e}, allowed {allowed:.0e}\n{got}\nexpected\n{want}", worst)
    return worst
