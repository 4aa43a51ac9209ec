"""Laws of whitening, on every library; those of the networks' part are in test_networks.py."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given
from hypothesis import strategies as st
from planting import mutated
from variants import EXACT, NUMPY, assert_close, every_variant

from la_core import whitening
from la_core.backends.torch import Perceptron, Whiten, initialise
from la_core.errors import RangeError

STEPS = 5
"""As published; a module makes fewer."""


def made(seed, batch, groups, size, spread=4.0):
    """Rows whose groups have variances within a factor ``spread``, somewhere, in any units."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((groups, size, size)))[0]
    x = rng.standard_normal((batch, groups, 1, size))
    x = np.linalg.qr(x.reshape(batch, -1) - x.reshape(batch, -1).mean(0))[0].reshape(batch, groups, 1, size)
    x = x * np.sqrt(batch * rng.uniform(1.0, spread, (groups, 1, size))) @ turn
    return (x.reshape(batch, -1) + rng.standard_normal(groups * size)) * 10.0 ** rng.integers(-1, 3)


def of_batch(x, size, variant=NUMPY, steps=12):
    there = variant.asarray(x)
    return variant.to_host(whitening.whitened(there, *whitening.moments(there, size), steps))


def zca(x, size):
    """By eigendecomposition of each group's covariance."""
    x = x - x.mean(0)
    found = []
    for some in np.split(x, x.shape[1] // size, axis=1):
        values, vectors = np.linalg.eigh(some.T @ some / len(some) + whitening.EPSILON * np.eye(size))
        found.append(some @ (vectors / np.sqrt(values)) @ vectors.T)
    return np.concatenate(found, axis=1)


shapes = given(st.integers(0, 2**32 - 1), st.integers(20, 60), st.integers(1, 3), st.integers(2, 6))


@shapes
@every_variant
def test_it_is_the_symmetric_root(variant, seed, batch, groups, size):
    x = made(seed, batch, groups, size)
    assert_close(of_batch(x, size, variant), zca(x, size), 1e-6, 1.0)


def law_a_group_is_uncorrelated(x, size, steps):
    y = of_batch(x, size, steps=steps)
    covariance = whitening.moments(y, size)[1]
    assert np.abs(y.mean(0)).max() < 1e-9
    assert np.abs(covariance - np.eye(size)).max() < 0.02


@given(st.integers(0, 2**32 - 1), st.integers(2, 4))
def test_a_group_is_uncorrelated_after_the_usual_steps(seed, size):
    law_a_group_is_uncorrelated(made(seed, 60, 3, size, spread=2.0), size, STEPS)


@pytest.mark.parametrize(
    ("before", "after"), [("1.5 * root", "1.4 * root"), ("range(steps)", "range(1)"), ("xp.sqrt(trace)", "trace")]
)
def test_a_planted_bug_is_caught(monkeypatch, before, after):
    monkeypatch.setattr(whitening.inverse_root, "__code__", mutated(whitening.inverse_root, before, after))
    with pytest.raises(AssertionError):
        law_a_group_is_uncorrelated(made(0, 60, 3, 4, spread=2.0), 4, STEPS)


@shapes
def test_units_and_origin_do_not_count(seed, batch, groups, size):
    x = made(seed, batch, groups, size) * 100  # beside which the epsilon is nothing
    assert_close(of_batch(3.0 * x + 7.0, size), of_batch(x, size), 1e-5, 1.0)


def test_a_few_steps_whiten_in_part():
    """What the docstrings promise: a ratio of 100 becomes one of about 18, and never grows with the steps."""
    spectrum = np.diag([100.0, 100.0, 1.0, 1.0])[None]
    ratios = []
    for steps in range(8):
        root = whitening.inverse_root(spectrum, steps)
        left = np.linalg.eigvalsh(root @ spectrum @ root)[0]
        ratios.append(left[-1] / left[0])
    assert ratios[0] == pytest.approx(100)
    assert ratios[whitening.STEPS] == pytest.approx(18, rel=0.05)
    assert ratios == sorted(ratios, reverse=True)


def test_no_variance_is_not_followed():
    """What a group does not span stays where it is, and no number leaves the finite."""
    x = np.random.default_rng(0).standard_normal((40, 1)) @ np.ones((1, 4))
    y = of_batch(x, 4, steps=STEPS)
    assert np.linalg.matrix_rank(y, tol=1e-6) == 1
    assert np.abs(y).max() < 3
    for few in (x[:1], np.ones((5, 4)), np.zeros((5, 4)), 1e15 * x):
        assert np.isfinite(of_batch(few, 2, steps=STEPS)).all()


def test_the_derivative_is_that_of_the_whole():
    x = torch.from_numpy(made(0, 12, 2, 3)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: whitening.whitened(x, *whitening.moments(x, 3)), (x,))


@pytest.mark.parametrize("size", [5, 12, 16])
def test_groups_that_do_not_come_out_even_are_refused(size):
    with pytest.raises(RangeError, match=r"8 coordinates"):
        Perceptron((4, 6, 8), whiten=size)


def test_a_module_whitens_by_its_batch_and_then_by_what_it_has_seen():
    x = torch.from_numpy(made(0, 50, 2, 4)).float()
    module = Whiten(8, 4)
    in_training = module(x)
    assert_close(in_training.numpy(), of_batch(x.double().numpy(), 4, steps=whitening.STEPS), 1e-3, 1.0)
    mean, covariance = whitening.moments(x, 4)
    assert_close(module.running_mean.numpy(), 0.1 * mean.numpy(), 1e-5, 1.0)
    assert_close(module.running_covariance.numpy(), (0.9 * torch.eye(4) + 0.1 * covariance).numpy(), 1e-5, 1.0)
    for _ in range(200):
        module(x)
    module.eval()
    assert_close(module(x).numpy(), in_training.numpy(), 1e-3, 1.0)
    assert_close(module(x[:1]).numpy(), in_training[:1].numpy(), 1e-3, 1.0)


def test_it_stays_wide_under_autocast():
    module = initialise(Perceptron((4, 6, 8), whiten=4), 0)
    with torch.autocast("cpu", torch.bfloat16):
        z = module(torch.randn(32, 4, generator=torch.Generator().manual_seed(0)))
    assert z.dtype is torch.float32
    assert module.head[1].running_covariance.dtype is torch.float32


def test_one_coordinate_at_a_time_is_batch_norm():
    x = made(0, 40, 4, 1)
    norm = torch.nn.BatchNorm1d(4, affine=False).double()(torch.from_numpy(x))
    assert_close(of_batch(x, 1), norm.numpy(), EXACT, 1.0)
