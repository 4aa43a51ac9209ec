"""Initial weights by name: the numbers depend on the seed and the name alone, and have the spread of their rule."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from la_core import initial
from la_core.initial import draws

SHAPES = {
    "conv1.weight": (16, 3, 5, 5),
    "bn1.weight": (16,),
    "bn1.bias": (16,),
    "fc.weight": (8, 400),
    "fc.bias": (8,),
}
DRAWN = {"conv1.weight", "fc.weight", "fc.bias"}


@given(st.integers(0, 2**32 - 1), st.permutations(list(SHAPES)), st.sampled_from(["uniform", "he"]))
def test_numbers_depend_on_seed_and_name_alone(seed, order, rule):
    drawn = draws(SHAPES, seed, rule)
    assert drawn.keys() == DRAWN
    again = draws({name: SHAPES[name] for name in order}, seed, rule)
    fewer = draws({name: SHAPES[name] for name in SHAPES if name.startswith("fc")}, seed, rule)
    for name, x in drawn.items():
        assert (x.shape, x.dtype) == (SHAPES[name], np.float32)
        np.testing.assert_array_equal(x, again[name])
        assert not name.startswith("fc") or np.array_equal(x, fewer[name])
    other = draws(SHAPES, seed + 1, rule)
    assert not np.array_equal(drawn["fc.weight"], other["fc.weight"])


def spread(x, low, high):
    return low <= float(np.std(x)) <= high and abs(float(np.mean(x))) < 0.1 * high


def lawful(drawn):
    """The spread that the rules give: 1 / sqrt(3 fan in), and sqrt(2 / fan out)."""
    uniform, he = drawn("uniform"), drawn("he")
    return (
        spread(uniform["conv1.weight"], 0.95 / np.sqrt(3 * 75), 1.05 / np.sqrt(3 * 75))
        and np.abs(uniform["fc.weight"]).max() <= 1 / np.sqrt(400)
        and np.abs(uniform["fc.bias"]).max() <= 1 / np.sqrt(400)
        and spread(he["conv1.weight"], 0.93 * np.sqrt(2 / 400), 1.07 * np.sqrt(2 / 400))
        and not he["fc.bias"].any()
    )


def test_the_spread_is_that_of_the_rule():
    assert lawful(lambda rule: draws(SHAPES, 0, rule))


def test_a_wrong_spread_is_caught(monkeypatch):
    real = initial.generator

    class Wider:
        def __init__(self, *place):
            self.rng = real(*place)

        def uniform(self, low, high, shape):
            return 1.2 * self.rng.uniform(low, high, shape)

        def standard_normal(self, shape):
            return self.rng.standard_normal(shape)

    monkeypatch.setattr(initial, "generator", Wider)
    assert not lawful(lambda rule: draws(SHAPES, 0, rule))


@pytest.mark.parametrize("rule", ["uniform", "he"])
def test_two_layers_never_share_their_numbers(rule):
    drawn = draws({"a.weight": (4, 4), "b.weight": (4, 4)}, 0, rule)
    assert not np.array_equal(drawn["a.weight"], drawn["b.weight"])
