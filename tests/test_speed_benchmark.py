"""What benchmarks/speed stands on: every contender gives the answer of the others, and one that does not is seen."""

import importlib
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from speed import __main__ as command
from speed import contenders, data, report, rows, turns
from speed.contenders import Contender, Work
from speed.data import Problem
from speed.rows import Goal, Row
from speed.turns import Plan, Result

SMALL = Problem(n=1500, dim=32, batch=8, k=40, m=12, clusterings=2, iterations=5, bank="hierarchical")
TASKS = {
    "search": contenders.SEARCH,
    "step": contenders.STEP,
    "cluster": contenders.CLUSTER,
    "cluster-warm": contenders.WARM,
}
needs_proc = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are Linux's")


def answer(contender, problem, x):
    work = contender.prepare(problem, {name: array.copy() for name, array in x.items()})
    return work.answer(work.run(0))


def without(package):
    """Skip, and say so, where a package is missing."""
    importlib.import_module(package) if package in sys.modules else pytest.importorskip(package)


@pytest.mark.parametrize("bank", ["isotropic", "hierarchical"])
@pytest.mark.parametrize(
    ("task", "contender"), [pytest.param(t, c, id=f"{t}: {c.name}") for t, some in TASKS.items() for c in some]
)
def test_every_contender_gives_the_answer_of_the_first(task, contender, bank):
    without("torch")
    without(contender.package)
    problem = replace(SMALL, bank=bank, drift=0.5 if task == "cluster-warm" else 0.0)
    x = data.inputs(problem)
    first = TASKS[task][0]
    found = {c.name: Result(answers=[answer(c, problem, x)]) for c in (first, contender)}
    assert rows.disagreements(found) == []
    parts = set() if contender.prepare is contenders.blocked_product else set(found[first.name].answers[0])
    assert set(found[contender.name].answers[0]) == parts


def test_the_first_answers_are_right():
    without("torch")
    x = data.inputs(SMALL)
    scores = answer(contenders.SEARCH[0], SMALL, x)["scores"]
    exact = np.sort(x["z"].astype(np.float64) @ x["bank"].T.astype(np.float64), axis=1)[:, -SMALL.k :]
    np.testing.assert_allclose(scores, exact, rtol=0, atol=1e-6)
    rowwise = data.unit(x["bank"][x["indices"]] + data.unit(x["z"]))
    np.testing.assert_allclose(answer(contenders.STEP[0], SMALL, x)["rows"], rowwise, rtol=0, atol=1e-6)


def test_inertia_is_the_sum_of_squares_about_the_means():
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((60, 20)).astype(np.float32), rng.choice([0, 2, 5], 60)
    want = sum(np.sum((x[labels == c] - x[labels == c].astype(np.float64).mean(axis=0)) ** 2) for c in (0, 2, 5))
    assert contenders.inertia(x, labels) == pytest.approx(want, rel=1e-12)


# The published arithmetic --------------------------------------------------------------------------------------------


def published(labels):
    import torch
    from published import Published

    x = data.inputs(SMALL)
    bank = torch.tensor(data.unit(x["bank"].astype(np.float64)))
    return Published(bank, torch.tensor(labels), SMALL.k, 0.07), torch.tensor(x["z"], dtype=torch.float64), x["indices"]


def test_the_published_loss_is_the_share_of_the_close_mass():
    without("torch")
    labels = data.inputs(SMALL)["labels"].astype(np.int64)
    objective, z, indices = published(labels)
    scores = data.unit(z.numpy()) @ objective.bank.numpy().T
    want = []
    for row, i in zip(scores, indices, strict=True):
        background = np.argsort(row)[-SMALL.k :]
        close = [j for j in background if any(labels[h, j] == labels[h, i] for h in range(len(labels)))]
        want.append(-np.log(np.exp(row[close] / 0.07).sum() / np.exp(row[background] / 0.07).sum() + 1e-7))
    np.testing.assert_allclose(objective.loss(z, indices).numpy(), want, rtol=1e-12)


def test_the_published_loss_of_nothing_close_is_its_constant():
    without("torch")
    objective, z, indices = published(np.arange(SMALL.n)[None])
    far = -z  # the sample's own row is not among the nearest
    loss, gradient = objective.step(far, indices)
    np.testing.assert_allclose(loss.numpy(), -np.log(1e-7))
    assert not gradient.any()


# The data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bank", ["isotropic", "hierarchical"])
def test_inputs_are_unit_rows_made_by_one_seed(bank):
    problem = replace(SMALL, bank=bank, drift=0.5)
    x, again = data.inputs(problem), data.inputs(problem)
    for name, array in x.items():
        np.testing.assert_array_equal(array, again[name])
    for name in ("bank", "before", "z"):
        np.testing.assert_allclose(np.linalg.norm(x[name], axis=1), 1, rtol=1e-5)
    moved = np.sum(x["bank"] * x["before"], axis=1)
    assert 0.9 < moved.mean() < 0.99
    assert x["labels"].shape == (SMALL.clusterings, SMALL.n)


def test_a_bank_of_ones_own_takes_the_place_of_the_trained(tmp_path):
    np.save(tmp_path / "mine.npy", np.random.default_rng(0).standard_normal((300, 6)))
    row = rows.ROWS["cluster-trained"].on(tmp_path / "mine.npy")
    x = data.inputs(row.problem)
    assert x["bank"].shape == (300, 6)
    assert (row.problem.n, row.problem.dim, row.problem.m) == (300, 6, 300)
    assert rows.ROWS["cluster"].on(tmp_path / "mine.npy") is rows.ROWS["cluster"]


# Processes, and what is told of them ---------------------------------------------------------------------------------


def wrong(problem, x):
    """The first rows instead of the nearest."""
    return Work(lambda _: x["z"] @ x["bank"][: problem.k].T, contenders.sorted_scores)


def broken(problem, x):
    """Fails when it runs."""
    return Work(lambda _: 1 / 0, contenders.sorted_scores)


def sleepy(problem, x):
    """Too slow at full size."""
    return Work(lambda _: time.sleep(60 if problem.n == SMALL.n else 0), lambda _: {})


def hungry(problem, x):
    """Right, with 100 MB more than it needs."""
    right = contenders.search_numpy(problem, x)
    return right._replace(run=lambda repeat: (np.ones(25 * 2**20, np.float32), right.run(repeat))[1])


def ones(problem, x):
    """Holds 128 MB at most, and nothing of it afterwards."""
    return Work(lambda _: np.ones(32 * 2**20, np.float32).sum(), lambda _: {})


NUMPY = Contender("la_core, numpy", contenders.partial(contenders.search, library="numpy"))
PEERS = tuple(Contender(f.__name__, f, NUMPY.name) for f in (contenders.search_numpy, wrong, broken, sleepy, hungry))
ABSENT = Contender("absent", wrong, NUMPY.name, package="no_such_package")


def test_a_wrong_contender_is_caught_and_one_that_fails_stops_nobody_else():
    pytest.importorskip("threadpoolctl")
    row = Row("exact search", SMALL, (NUMPY, *PEERS, ABSENT), {"search_numpy": Goal(1e-9, 1e-6)})
    found = rows.carry_out(row, Plan(repeats=2, slow_repeats=1, timeout=10))
    assert [text.partition(":")[0] for text in found["wrong"]] == ["wrong"]
    assert found["missing"] == ["absent"]
    by_name = found["contenders"]
    assert "ZeroDivisionError" in by_name["broken"]["error"]
    assert by_name["sleepy"]["error"] == "took more than 10 s"
    assert by_name["search_numpy"]["repeats"] == 2
    assert by_name["search_numpy"]["goal"]["verdict"] == "aim"
    assert json.loads(json.dumps(found))["contenders"].keys() == by_name.keys()
    if by_name["hungry"]["peak_extra_mb"] is not None:
        assert 95 < by_name["hungry"]["peak_extra_mb"] - by_name["search_numpy"]["peak_extra_mb"] < 105
    text = report.table({"about": report.about(1), "rows": {"search": found}})
    for part in ("WRONG: wrong", "not installed: absent", "failed: ZeroDivisionError", "failed: took more than 10 s"):
        assert part in text


def test_the_command_writes_a_table_and_a_picture_and_keeps_other_rows(tmp_path, monkeypatch, capsys):
    pytest.importorskip("threadpoolctl")
    pytest.importorskip("matplotlib")
    right = Contender("search_numpy", contenders.search_numpy, NUMPY.name)
    one = Row("exact search", SMALL, (NUMPY, right))
    several = Row("exact search", SMALL, (NUMPY,), vary="n", values=(800, 1500))
    monkeypatch.setattr(command, "ROWS", {"one": one, "several": several})
    common = ["--threads", "1", "--repeats", "1", "--out", str(tmp_path)]
    assert command.main(["--only", "several", *common]) == 0
    assert command.main(["--only", "one", "--scale", "0.5", *common]) == 0
    kept = json.loads((tmp_path / "speed.json").read_text())
    assert list(kept["rows"]) == ["one", "several"]
    assert kept["rows"]["one"]["problem"]["n"] == 750
    assert "exponent" in kept["rows"]["several"]["curves"]["la_core, numpy"]
    assert (tmp_path / "speed.txt").read_text().count("la_core, numpy") == 2
    assert (tmp_path / "speed.png").stat().st_size > 0
    assert "so far" in capsys.readouterr().out


@needs_proc
def test_the_peak_is_what_a_run_holds_at_most():
    pytest.importorskip("threadpoolctl")
    # In a process of its own, as it is measured: one of the tests' would give other memory back meanwhile.
    found = turns.measure([Contender("ones", ones)], SMALL, Plan(repeats=2))["ones"]
    assert found.error is None
    assert 120 < found.peak_extra_mb < 140


def test_a_slow_contender_runs_less_often_and_its_first_run_counts(monkeypatch):
    class Fake:
        contender = NUMPY

        def __init__(self, seconds):
            self.seconds, self.runs = seconds, 0

        def ready(self):
            return []

        def run(self, turn):
            self.runs += 1
            return turns.Run(self.seconds, 1.0, {})

    monkeypatch.setattr(turns, "PAUSE", 0)
    for seconds, runs, counted in ((1.0, 6, 5), (11.0, 3, 3), (61.0, 2, 2)):
        worker, result = Fake(seconds), Result()
        for turn in range(6):
            turns._turn(worker, result, turn, Plan(repeats=5, slow_repeats=3))
        assert (worker.runs, len(result.seconds)) == (runs, counted)


@pytest.mark.parametrize(
    ("goal", "value", "verdict"),
    [
        (Goal(2, 5), 5.1, "aim"),
        (Goal(2, 5), 2.0, "holds"),
        (Goal(2, 5), 1.9, "MISSED"),
        (Goal(0.7, 0.5), 0.4, "aim"),
        (Goal(0.7, 0.5), 0.6, "holds"),
        (Goal(0.7, 0.5), 0.8, "MISSED"),
    ],
)
def test_a_goal_is_judged_on_its_own_side(goal, value, verdict):
    assert goal.verdict(value) == verdict


def test_a_faster_clustering_that_is_worse_misses_its_goal():
    ours = Result([1.0], answers=[{"inertia": np.float64(100.6)}])
    peer = Result([100.0], answers=[{"inertia": np.float64(100.0)}])
    named = {contenders.OURS: ours, contenders.FAISS.name: peer}
    row = Row("", SMALL, contenders.COLD, {contenders.FAISS.name: Goal(3, 8)})
    assert rows.facts(row, contenders.FAISS, named)["goal"]["verdict"] == "MISSED: inertia"
    ours.answers = [{"inertia": np.float64(100.4)}]
    assert rows.facts(row, contenders.FAISS, named)["goal"]["verdict"] == "aim"


def test_the_exponent_is_that_of_a_power_law():
    row = Row("", SMALL, contenders.COLD, vary="m", values=(10, 20, 40), exponent=Goal(0.7, 0.5))
    points = [{contenders.OURS: Result([3 * m**0.6])} for m in row.values]
    found = rows.curve(row, contenders.COLD[0], points)
    assert found["exponent"] == pytest.approx(0.6, abs=1e-3)
    assert found["goal"]["verdict"] == "holds"
