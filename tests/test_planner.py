"""The planner's memory beside what NumPy holds at three sizes, and its arithmetic by hand. Its time: a script's."""

import tracemalloc
from dataclasses import replace

import pytest

import la_core
from la_core import kernels, planner
from la_core.__main__ import main
from la_core.bank import stored
from la_core.dryrun import Cost
from la_core.errors import LaCoreError, RangeError, SettingsError
from la_core.planner import Rates, plan
from la_core.settings import Settings

SIZES = ((5_000, 16, 50), (20_000, 32, 100), (40_000, 64, 1100), (20_000, 16, 2400))
"""N, D, m: without a scan, with a scan, with tiles, and with tiles that are hardly filled."""
BUDGET = 8 * 2**20
NUMPY = la_core.backend("numpy")


def peak(call):
    """Bytes that a call holds at most above what was there, and its answer."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        answer = call()
        return tracemalloc.get_traced_memory()[1] - before, answer
    finally:
        tracemalloc.stop()


def law_memory_is_as_planned(n, dim, m, dtype):
    settings = Settings(n_clusters=m, n_clusterings=2, budget=BUDGET, bank_dtype=dtype, n_iter=2)
    planned = {
        line.name: line.amount for line in plan(n, dim, settings=settings, devices=(1,), rates=1e9).shares[0].memory
    }
    bank = stored(la_core.random_rows(n, dim, seed=0), NUMPY, dtype)
    assert planned["bank"] == bank.nbytes
    options = {"n_clusters": m, "n_clusterings": 2, "seed": 0, "n_iter": 2}
    held, clustering = peak(lambda: la_core.cluster(bank, **options))
    assert planned["labels"] == clustering.labels.nbytes
    blocks = 8 * kernels.CACHE * (3 if m > 1000 else 1)
    assert 0.3 * (planned["clustering"] - blocks) <= held <= planned["clustering"] + planned["labels"]
    z = la_core.random_rows(128, dim, seed=1)
    held, _ = peak(lambda: kernels.nearest(z, bank, min(n, 4096, max(64, n // 64)), BUDGET))
    assert held <= planned["search"]
    held, _ = peak(lambda: kernels.softmax_mean(z, bank, 0.07, BUDGET))
    assert held <= planned["search"]


@pytest.mark.parametrize("dtype", ["same", "float16"])
@pytest.mark.parametrize(("n", "dim", "m"), SIZES)
def test_memory_is_as_planned(n, dim, m, dtype, monkeypatch):
    monkeypatch.setattr(kernels.read_in_blocks, "__defaults__", (BUDGET,))
    monkeypatch.setattr(kernels, "BUDGET", BUDGET)
    law_memory_is_as_planned(n, dim, m, dtype)


def test_a_plan_that_forgets_is_caught(monkeypatch):
    monkeypatch.setattr(planner, "PER_ROW", 0)
    monkeypatch.setattr(planner, "bank_word", lambda settings: 2)
    with pytest.raises(AssertionError):
        law_memory_is_as_planned(*SIZES[1], "same")


def test_a_billion_rows_by_hand():
    settings = Settings(bank_dtype="float16", n_clusters=1_000_000, n_clusterings=3, n_background=4096)
    one, eight = plan(10**9, 128, settings=settings, devices=(1, 8), rates=Rates.of(1e15, link=1e11)).shares
    bank, labels = (line.amount for line in one.memory[:2])
    assert (bank, labels) == (10**9 * 128 * 2, 3 * 10**9 * 4)
    assert [line.amount for line in eight.memory[:2]] == [10**9 // 8 * 128 * 2, labels]
    step = {line.name: line.amount for line in one.seconds}["step of aggregation"]
    assert step == pytest.approx((2 * 128 * 10**9 * 128 + 2 * 128 * 4096 * 128) / 1e15)
    shared = {line.name: line.amount for line in eight.seconds}["step of aggregation"]
    gathered, summed = 7 * 64 + 8 + 16 * 128 * 4 + 128 * 4096 * 12, 128 * 128 * (4 + 2)
    received = 7 * gathered + 2 * 7 / 8 * summed
    assert shared == pytest.approx(step / 8 + received / 1e11)
    clustering = {line.name: line.amount for line in one.seconds}["clustering, at most"]
    assert clustering == pytest.approx(2 * 10**9 * 3 * 10**6 * 128 * 21 / 1e15)


def test_an_encoder_counts_where_it_is_known():
    cost = Cost(macs=10**9, parameters=10**7, activations=10**6, dim=64)
    known, unknown = (plan(10**6, 64, cost=c, devices=(2,), rates=1e12).shares[0] for c in (cost, None))
    assert known.bytes - unknown.bytes == pytest.approx(3 * 4 * 10**7 + 128 / 2 * 10**6, rel=1e-3)
    assert known.seconds[1].amount - unknown.seconds[1].amount == pytest.approx(6 * 128 * 10**9 / 2 / 1e12, rel=1e-3)


def test_rows_that_do_not_divide():
    shares = plan(10, 4, settings=Settings(n_clusters=2), devices=(1, 4), rates=1e9).shares
    assert [share.memory[0].amount for share in shares] == [10 * 4 * 4, 3 * 4 * 4]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"n": 0}, RangeError),
        ({"dim": 0}, RangeError),
        ({"devices": (0,)}, RangeError),
        ({"devices": (101,)}, RangeError),
        ({"rates": 0.0}, RangeError),
        ({"settings": Settings(n_background=101)}, SettingsError),
    ],
)
def test_what_cannot_be_planned_is_refused(options, error):
    assert issubclass(error, LaCoreError)
    with pytest.raises(error):
        plan(**{"n": 100, "dim": 4, "rates": 1e9} | options)


def test_rates_are_measured_on_the_machine():
    rates = planner.measured(dim=8, batch=4, n=2048)
    assert min(rates.search, rates.softmax, rates.assign) > 1e6
    assert rates.source == "measured here on numpy"
    assert replace(rates, link=1e9).link == 1e9


def test_the_command_shows_the_arithmetic(capsys):
    assert (
        main(["plan", "1e9", "--bank-dtype", "float16", "--clusters", "1e6", "--devices", "8", "--rate", "1e15"]) == 0
    )
    said = capsys.readouterr().out
    assert "125000000 of 1000000000 rows x 128 x 2 bytes" in said
    assert "7812500 steps x 4.1 ms + clustering" in said
    assert main(["plan", "4", "--rate", "1e9"]) == 0  # on as many devices as there are samples for
    capsys.readouterr()
    assert main(["plan", "100", "--devices", "101", "--rate", "1e9"]) == 2
    assert "devices must be between 1 and 100" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["inf", "nan", "1.5", "many"])
def test_a_number_of_samples_that_is_none_is_refused_in_words(word, capsys):
    with pytest.raises(SystemExit):
        main(["plan", word])
    assert f"must be a whole number, such as 1281167 or 1e9; got {word!r}" in capsys.readouterr().err


def test_it_measures_where_no_rate_is_given(capsys):
    assert main(["plan", "1000", "--dim", "8", "--batch", "2", "--devices", "1"]) == 0
    assert "measured here on numpy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (3e-7, "0.3 us"),
        (2e-3, "2 ms"),
        (1.5, "1.5 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7200, "2 h"),
        (2e5, "2.31 days"),
    ],
)
def test_times_are_said_in_their_units(seconds, said):
    assert planner._time(seconds) == said
