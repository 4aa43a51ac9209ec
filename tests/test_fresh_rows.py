"""Laws of two views with fresh rows, in one step and in a whole run."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from agreement.guises import named, needed
from agreement.trajectory import SETTINGS, train
from hypothesis import given
from strategies import cases
from variants import ACROSS, NUMPY, assert_close, assert_same, every_variant

import la_core
from la_core import objectives
from la_core.errors import NotFiniteError, RangeError, ShapeError
from la_core.objectives import Terms, fresh_rows, local_aggregation_terms, with_instances

OBJECTIVES = {
    "local aggregation": lambda case: partial(local_aggregation_terms, **case.settings),
    "instance discrimination": lambda case: (
        lambda z, state, indices: Terms(
            *la_core.instance_discrimination_and_cotangent(z, state.bank, indices, temperature=case.temperature)
        )
    ),
}
every_objective = pytest.mark.parametrize("name", OBJECTIVES)


def two_views(case):
    """A case whose first half of ``z`` is one view of its samples and the second half the other; no index twice."""
    rows = len(case.z) // 2
    rng = np.random.default_rng(rows)
    return replace(case, indices=rng.permutation(len(case.bank))[:rows], z=case.z[: 2 * rows])


def evaluate(variant, case, name):
    there = case.on(variant)
    terms, state = fresh_rows(OBJECTIVES[name](case), there.z, there.state, there.indices)
    return tuple(None if x is None else variant.to_host(x) for x in terms), variant.to_host(state.bank)


def by_hand(case, name):
    """Each view against a bank that somebody wrote the other view into."""
    rows = len(case.indices)
    parts = []
    for mine, other in ((case.z[:rows], case.z[rows:]), (case.z[rows:], case.z[:rows])):
        bank = case.bank.copy()
        bank[case.indices] = other / np.linalg.norm(other, axis=1, keepdims=True)
        parts.append(OBJECTIVES[name](case)(mine, la_core.State(bank, case.labels), case.indices))
    one, two = parts
    return np.concatenate([one.loss, two.loss]), np.concatenate([one.cotangent, two.cotangent]) / 2


def law_each_view_reads_the_other(variant, case, name):
    (loss, cotangent, _), _ = evaluate(variant, case, name)
    want, pull = by_hand(case, name)
    length = np.linalg.norm(case.z, axis=1, keepdims=True)
    scale = 1 / case.temperature + 1
    assert_close(loss, want, ACROSS[case.dtype], scale)
    assert_close(cotangent, pull, ACROSS[case.dtype], scale / (case.temperature * len(case.z) * length))


batches = cases(kind="generic", batch=6, n=33)


@every_variant
@every_objective
@given(case=batches)
def test_each_view_reads_the_other(variant, name, case):
    law_each_view_reads_the_other(variant, two_views(case), name)


@every_variant
@every_objective
@given(case=batches)
def test_the_bank_is_left_as_it_was(variant, name, case):
    case = two_views(case)
    assert_same(evaluate(variant, case, name)[1], case.bank)


@every_variant
@given(case=batches)
def test_swapping_the_views_swaps_the_answers(variant, case):
    case = two_views(case)
    swapped = replace(case, z=np.roll(case.z, 3, axis=0))
    (loss, cotangent, n_close), _ = evaluate(variant, case, "local aggregation")
    (other, across, n_other), _ = evaluate(variant, swapped, "local aggregation")
    for ours, theirs in ((loss, other), (cotangent, across), (n_close, n_other)):
        assert_same(ours, np.roll(theirs, 3, axis=0))


def test_a_view_of_zeros_leaves_its_sample_the_old_row():
    case = two_views(cases_example())
    case.z[3] = 0.0  # the second view of the first sample
    (loss, _, _), _ = evaluate(NUMPY, case, "local aggregation")
    stale = OBJECTIVES["local aggregation"](case)(
        case.z[:1], la_core.State(bank_with(case, slice(1, None)), case.labels), case.indices[:1]
    )
    assert loss[0] == pytest.approx(stale.loss[0], rel=1e-12)


def cases_example():
    from strategies import make_case

    return make_case(3, batch=6)


def bank_with(case, some):
    """The bank with the second views of some samples written into it."""
    bank, other = case.bank.copy(), case.z[3:]
    bank[case.indices[some]] = other[some] / np.linalg.norm(other[some], axis=1, keepdims=True)
    return bank


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda c: replace(c, z=c.z[:5]), ShapeError, "two views of each of 3 samples"),
        (lambda c: replace(c, z=np.where(np.arange(6)[:, None] == 4, np.nan, c.z)), NotFiniteError, "row 4"),
        (lambda c: replace(c, indices=c.indices + 33), RangeError, "33 rows"),
    ],
)
def test_bad_input_leaves_the_bank_alone(change, error, words):
    case = change(two_views(cases_example()))
    kept = case.bank.copy()
    with pytest.raises(error, match=words):
        fresh_rows(OBJECTIVES["local aggregation"](case), case.z, case.state, case.indices)
    assert_same(case.bank, kept)


def test_stale_rows_are_caught(monkeypatch):
    case = two_views(cases_example())
    law_each_view_reads_the_other(NUMPY, case, "local aggregation")
    monkeypatch.setattr(objectives, "mixed", lambda state, *args: state)
    with pytest.raises(AssertionError):
        law_each_view_reads_the_other(NUMPY, case, "local aggregation")


@pytest.mark.parametrize("guise", ["torch", "jax x64"])
@pytest.mark.parametrize("warmup", ["exact", "nce"])
def test_a_run_with_two_views_is_the_same_everywhere(guise, warmup):
    settings = replace(SETTINGS, views=2, epochs=6, warmup_epochs=3, recluster_every=1, warmup=warmup, n_noise=20)
    want, got = train(named("numpy"), settings=settings), train(needed(named(guise)), settings=settings)
    np.testing.assert_array_equal(got["labels"], want["labels"])
    assert_close(got["losses"], want["losses"], 1e-10, 1.0)
    assert_close(got["bank"], want["bank"], 1e-10, 1.0)
    one = train(named("numpy"), settings=replace(settings, views=1))
    assert not np.allclose(one["losses"], want["losses"])


@every_variant
@given(case=batches)
def test_instances_are_a_share_of_the_loss(variant, case):
    """With all of it, the softmax over the other views of the batch; with none, the objective; between, the mean."""
    case = two_views(case)
    there = case.on(variant)

    def terms(weight):
        objective = OBJECTIVES["local aggregation"](case)
        objective = objective if weight is None else with_instances(objective, weight, 0.3)
        found, _ = fresh_rows(objective, there.z, there.state, there.indices)
        return [variant.to_host(x).astype(np.float64) for x in found]

    (bare, pull, n_close), none, half, whole = map(terms, (None, 0.0, 0.5, 1.0))
    scale = 1 / min(case.temperature, 0.3) + 1
    pull_scale = scale / (case.temperature * len(case.z) * np.linalg.norm(case.z, axis=1, keepdims=True))
    assert_close(none[0], bare, ACROSS[case.dtype], scale)
    assert_close(none[1], pull, ACROSS[case.dtype], pull_scale)
    assert_close(half[0], (bare + whole[0]) / 2, ACROSS[case.dtype], scale)
    assert_close(half[1], (pull + whole[1]) / 2, ACROSS[case.dtype], pull_scale)
    assert_same(half[2], n_close)

    v = case.z / np.linalg.norm(case.z, axis=1, keepdims=True)
    rows = len(case.indices)
    for mine, other, loss in ((v[:rows], v[rows:], whole[0][:rows]), (v[rows:], v[:rows], whole[0][rows:])):
        s = mine @ other.T / 0.3
        assert_close(loss, np.log(np.exp(s).sum(axis=1)) - np.diag(s), ACROSS[case.dtype], scale)


@pytest.mark.parametrize(("weight", "temperature"), [(-0.1, 0.1), (1.1, 0.1), (0.5, 0.0), (float("nan"), 0.1)])
def test_shares_that_are_none_are_refused(weight, temperature):
    with pytest.raises(RangeError):
        with_instances(local_aggregation_terms, weight, temperature)


@pytest.mark.parametrize("view", [0, 1])
def test_an_objective_that_refuses_leaves_the_bank_alone(view):
    case = two_views(cases_example())
    kept, seen = case.bank.copy(), []

    def refuses(z, state, indices):
        seen.append(z)
        if len(seen) > view:
            raise RangeError("no")
        return OBJECTIVES["local aggregation"](case)(z, state, indices)

    with pytest.raises(RangeError, match="no"):
        fresh_rows(refuses, case.z, case.state, case.indices)
    assert len(seen) == view + 1
    assert_same(case.bank, kept)
