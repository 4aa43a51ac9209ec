"""Several processes make one run: that of one process, whatever their number is. Tier 1."""

import os
import re
import signal
import socket
import sys
import time
import warnings
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import teams
import torch
from planting import mutated
from runs import KINDS, SIZES, Stop
from teams import TIMEOUT, facts, go, perceptron, same, team
from test_not_finite import Faulty
from torch import nn

from la_core import Callback, clusters, comm, evaluate, kernels, shards
from la_core.backends.torch import TorchEncoder, Whiten, make_optimizer
from la_core.backends.torch.comm import TorchComm
from la_core.backends.torch.comm import comm as torch_comm
from la_core.checkpoint import Checkpoints
from la_core.comm import Team
from la_core.errors import CheckpointError, DistributedError, LaCoreError, SettingsError
from la_core.layout import Layout
from la_core.mlp import MLP
from la_core.planner import COLLECTIVES, traffic
from la_core.run import AGGREGATION

train = sys.modules["la_core.train"]  # the package's name for it is that of the function
TOLERANCE = {"float32": 2e-6, "float64": 1e-12, "float16": 2e-3, "bfloat16": 2e-2}
"""By the dtype of what is compared: in half precision that of the bank."""
SHORT = {"epochs": 3, "warmup_epochs": 1}
FLOAT32 = replace(KINDS["plain"], **SHORT)
FLOAT64 = replace(KINDS["plain"], epochs=4, warmup_epochs=1, dtype="float64")
CASES = {
    "replicated": [
        ("plain", "float32", "replicated", [2, 3, 4], 20),
        ("lists", "float64", "replicated", [2], 20),
        ("two views", "float64", "replicated", [3], 20),
        ("plain", "float64", "replicated", [4], 5),  # the last batches leave a process without a row
        ("plain", "bfloat16", "replicated", [2], 20),
    ],
    "sharded": [
        ("plain", "float32", "sharded", [2, 3, 4], 20),
        ("nce", "float64", "sharded", [3], 20),
        ("two views", "float64", "sharded", [3], 20),
        ("plain", "float16", "sharded", [2], 20),
        ("plain", "bfloat16", "sharded", [3], 20),
    ],
}


@pytest.fixture(scope="module")
def warm():
    process = teams.warm("test_processes")
    yield process
    process.close()


def of(ends):
    """What each process told, once, at its end."""
    assert [end.status for end in ends] == [0] * len(ends)
    return [end.told[0] for end in ends]


def law_any_number_of_processes_makes_the_same_run(cases, short=True):
    kinds = KINDS | {"nce": replace(KINDS["lists"], search="exact")}
    for kind, dtype, layout, sizes, batch in cases:
        dtypes = {"bank_dtype": dtype} if dtype.endswith("float16") else {"dtype": dtype}
        settings = replace(kinds[kind], **dtypes, batch_size=batch, **(SHORT if short else {}))

        def work(rank, tell, settings=settings, layout=layout):
            tell(facts(*go(settings, bank_layout=layout)))

        (alone,) = of(team(1, work))
        for size in sizes:
            told = of(team(size, work))
            same(told[0], alone, TOLERANCE[dtype])
            for other in told[1:]:
                assert other["losses"] == told[0]["losses"]
                assert other["labels"] == told[0]["labels"]
                assert other["history"] == told[0]["history"]
                assert other["bank"] == (told[0]["bank"] if layout == "replicated" else None)


@pytest.mark.parametrize("layout", CASES)
def test_any_number_of_processes_makes_the_same_run(warm, layout):
    warm("law_any_number_of_processes_makes_the_same_run", CASES[layout])


PLANTED = [
    ("replicated", Layout.dealt, "((mine.stop - mine.start) / n)", "1.0"),
    ("replicated", Layout.dealt, "indices[mine], *some", "indices[: mine.stop - mine.start], *some"),
    ("replicated", MLP.sum_gradients, "all_sum(xp.concat(", "(xp.concat("),
    ("replicated", Team.mine, "v * n + some.start : v * n + some.stop", "v * n : v * n + some.stop - some.start"),
    ("replicated", comm.joined, "[:n, ...]", "[-n:, ...]"),
    ("sharded", shards.Shard.places, "indices - self.start", "indices"),
    ("sharded", shards.best, "local + first(n, comm)", "local"),
    ("sharded", shards.softmax_mean, "xp.exp(lse - total)[:, None] * mean", "mean / bank.comm.size"),
    ("sharded", shards.weighted_rows, "xp.where(mine, weights, xp.zeros_like(weights))", "weights"),
    ("sharded", shards.Shard.put, "xp.take(rows, chosen, axis=0)", "rows[:count, :]"),
    ("sharded", kernels.segment_mean, "all_sum(total)", "total"),
]


def law_a_planted_bug_is_caught(number):
    layout, function, before, after = PLANTED[number]
    function.__code__ = mutated(function, before, after)
    law_any_number_of_processes_makes_the_same_run([("plain", "float64", layout, [2], 20)])


@pytest.mark.parametrize("number", range(len(PLANTED)), ids=lambda i: f"{PLANTED[i][1].__qualname__} {PLANTED[i][3]}")
def test_a_planted_bug_is_caught(warm, number):
    with pytest.raises(AssertionError, match=r"Not equal to tolerance|the processes of a run must agree"):
        warm("law_a_planted_bug_is_caught", number)


class Net(nn.Module):
    """With a part that takes no part."""

    def __init__(self, norm):
        super().__init__()
        layers = (nn.Linear(10, 16), *([nn.BatchNorm1d(16)] if norm else []), nn.ReLU(), nn.Linear(16, 8))
        self.unused, self.layers = nn.Linear(3, 3), nn.Sequential(*layers, *([Whiten(8, 4)] if norm else []))

    def forward(self, x):
        return self.layers(x)


def module_encoder(backend, settings, norm=False):
    """A module; with batch norm and whitening each process normalises its own rows."""
    module = Net(norm)
    return TorchEncoder(module, make_optimizer(module, settings))


def law_a_module_is_trained_as_by_one_process():
    def work(rank, tell):
        tell(facts(*go(FLOAT32, make=module_encoder)))

    (alone,) = of(team(1, work))
    same(of(team(3, work))[0], alone, 2e-6)


def test_a_module_is_trained_as_by_one_process(warm):
    warm("law_a_module_is_trained_as_by_one_process")


def law_normalisation_keeps_one_set_of_statistics():
    def work(rank, tell):
        run, _ = go(FLOAT32, make=lambda *args: module_encoder(*args, norm=True))
        tell({name: x.tolist() for name, x in run.encoder.weights().items()})

    told = of(team(3, work))
    assert told[0] == told[1] == told[2]
    return told[0]["layers.1.running_mean"], told[0]["layers.4.running_mean"]


def test_normalisation_keeps_one_set_of_statistics(warm):
    assert all(map(np.any, warm("law_normalisation_keeps_one_set_of_statistics")))


def law_a_step_that_is_not_finite_is_skipped_by_all(place, layout):
    """One process goes wrong at steps 4 and 6: all skip these, and stay together."""
    skip = replace(FLOAT64, on_not_finite="skip")
    whole = go(skip)[0]

    def work(rank, tell):
        bad = (4, 6) if rank == 1 else ()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run, losses = go(skip, make=lambda *args: Faulty(perceptron(*args), place, bad), bank_layout=layout)
        tell(facts(run, losses) | {"said": sum("the step is skipped" in str(one.message) for one in caught)})

    told = of(team(3, work))
    for one in told:
        assert one["said"] == 2
        assert len(one["losses"]) == whole.step - 2
        assert sum(record["skipped"] for record in one["history"]) == 2
        for name in ("losses", "labels", "history", "weights"):
            assert one[name] == told[0][name], name
    assert np.isfinite(told[0]["bank"]).all()


@pytest.mark.parametrize(
    ("place", "layout"), [("embeddings", "replicated"), ("row", "sharded"), ("gradients", "replicated")]
)
def test_a_step_that_is_not_finite_is_skipped_by_all(warm, place, layout):
    warm("law_a_step_that_is_not_finite_is_skipped_by_all", place, layout)


# Checkpoints --------------------------------------------------------------------------------------------------------


def law_a_checkpoint_goes_on_with_any_number(folder, plan):
    """One run, by another number of processes and another layout after every stop."""

    def work(rank, tell, folder=None, layout="replicated", after=None):
        options = {"folder": folder, "resume": "auto", "checkpoint_every": 2, "checkpoint_unit": "steps"}
        stops = [] if after is None else [Stop(after)]
        try:
            run = go(FLOAT64, bank_layout=layout, callbacks=stops, **(options if folder else {}))
        except KeyboardInterrupt:
            tell("stopped")
        else:
            tell(facts(*run))

    (whole,) = of(team(1, work))
    for size, layout, after in plan:
        told = of(team(size, lambda rank, tell, plan=(folder, layout, after): work(rank, tell, *plan)))
        assert after is None or told == ["stopped"] * size
    left = whole | {"losses": whole["losses"][-len(told[0]["losses"]) :]}
    same(told[0], left, 1e-12)


def test_a_checkpoint_goes_on_with_any_number_of_processes(warm, tmp_path):
    plan = [(1, "replicated", 3), (3, "sharded", 3), (2, "replicated", 3), (4, "sharded", None)]
    warm("law_a_checkpoint_goes_on_with_any_number", tmp_path, plan)


def law_the_same_number_goes_on_to_the_bit(folder, layout):
    def work(rank, tell, folder=None, after=None):
        options = {"folder": folder, "resume": "auto", "checkpoint_every": 1, "checkpoint_unit": "steps"}
        try:
            run = go(
                FLOAT32, bank_layout=layout, callbacks=[] if after is None else [Stop(after)],
                **(options if folder else {}),
            )  # fmt: skip
        except KeyboardInterrupt:
            tell(None)
        else:
            tell(facts(*run))

    whole = of(team(2, work))
    of(team(2, lambda rank, tell: work(rank, tell, folder, 4)))
    again = of(team(2, lambda rank, tell: work(rank, tell, folder)))
    for one, other in zip(again, whole, strict=True):
        assert one["losses"] == other["losses"][-len(one["losses"]) :]
        assert {**one, "losses": 0} == {**other, "losses": 0}


@pytest.mark.parametrize("layout", ["replicated", "sharded"])
def test_the_same_number_of_processes_goes_on_to_the_bit(warm, tmp_path, layout):
    warm("law_the_same_number_goes_on_to_the_bit", tmp_path, layout)


def law_sigterm_to_one_ends_all_with_a_checkpoint(folder):
    class Ask(Callback):
        def __init__(self, rank):
            self.rank = rank

        def on_step(self, run, loss):
            if self.rank == 1 and run.step == 4:
                os.kill(os.getpid(), signal.SIGTERM)

    def work(rank, tell):
        go(FLOAT32, callbacks=[Ask(rank)], folder=folder, resume="auto")

    ends = team(2, work)
    assert [end.status for end in ends] == [143, 143]
    assert [str(place) for place in Checkpoints(Path(folder) / "checkpoints").places()][-1:] != []
    return Checkpoints(Path(folder) / "checkpoints").latest().facts["step"]


def test_sigterm_to_one_ends_all_with_a_checkpoint(warm, tmp_path):
    assert warm("law_sigterm_to_one_ends_all_with_a_checkpoint", tmp_path) == 5


# What may go wrong in one of them -----------------------------------------------------------------------------------

PHASES = {
    "beginning": (Team, "enter", 1),
    "first bank": (evaluate, "embed", 1),
    "embedding": (MLP, "pullback", 2),
    "gradients": (MLP, "sum_gradients", 3),
    "clustering": (clusters, "means", 2),
    "measure": (Layout, "over_queries", 2),
    "checkpoint": (train, "snapshot", 3),
}
"""Where one may fail: what it then calls, and at which call."""
SLACK = 2
"""Seconds above the timeout within which every other process must have raised."""


def law_a_failing_process_is_an_error_on_all_others(folder, phase, fault, layout, size, timeout=TIMEOUT):
    """And the newest checkpoint resumes, with one process fewer, to the same end. How late the last of them raised."""
    at, shape = size - 1, fault == "shape"

    def work(rank, tell):
        owner, name, count = PHASES[phase]
        plain, calls = getattr(owner, name), []

        def failing(*args, **options):
            calls.append(None)
            if len(calls) == count:
                tell(["fault", time.monotonic()])
                if fault == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                if fault == "hangs":
                    time.sleep(TIMEOUT + SLACK + 1)
                    os._exit(0)
                if fault == "raises":
                    raise RuntimeError("planned")
                for collective in ("all_sum", "all_gather"):
                    setattr(TorchComm, collective, wider(getattr(TorchComm, collective)))
            return plain(*args, **options)

        if rank == at:
            setattr(owner, name, failing)
        try:
            go(FLOAT64, bank_layout=layout, folder=folder, resume="auto", checkpoint_every=2, checkpoint_unit="steps")
        except DistributedError as error:
            tell(["raised", time.monotonic(), str(error)])

    ends = team(size, work, timeout)
    (kind, when), *rest = ends[at].told
    assert kind == "fault", "the planned fault did not come"
    late = []
    expected = "another one has ended, or has not answered in time"
    if shape:  # all of them can tell, the one that is wrong too
        expected = rf"Process 0 gives a (sum|part) .*; process {at} of {size} gives a "
        ends[at].told = rest
    for end in ends[: size if shape else at]:
        ((kind, then, message),) = end.told
        assert (kind, end.status) == ("raised", 0)
        assert re.search(expected, message), message
        assert then - when <= TIMEOUT + SLACK, f"it took {then - when:.1f} s"
        late.append(then - when)
    whole, again = {}, {}
    for place, found in ((None, whole), (folder, again)):

        def resumed(rank, tell, place=place):
            options = {"folder": place, "resume": "auto", "checkpoint_every": 2, "checkpoint_unit": "steps"}
            tell(facts(*go(FLOAT64, bank_layout=layout, **(options if place else {}))))

        found |= of(team(1 if place is None else size - 1, resumed))[0]
    same(again, whole | {"losses": whole["losses"][-len(again["losses"]) :]}, 1e-12)
    return max(late)


def wider(collective):
    """Gives one number more in the last axis, as only a bug can."""
    return lambda self, x: collective(self, torch.cat([x, torch.zeros_like(x[..., :1])], -1))


FAULTS = ("killed", "hangs", "raises", "shape")


@pytest.mark.parametrize(
    ("phase", "fault", "layout", "size"),
    [
        ("beginning", "raises", "replicated", 3),
        ("embedding", "killed", "replicated", 2),
        ("gradients", "hangs", "replicated", 2),
        ("clustering", "killed", "sharded", 3),
        ("checkpoint", "killed", "sharded", 2),
        ("gradients", "shape", "replicated", 2),
        ("clustering", "shape", "sharded", 3),
    ],
)  # the soak has all of them
def test_a_failing_process_is_an_error_on_all_others(warm, tmp_path, phase, fault, layout, size):
    warm("law_a_failing_process_is_an_error_on_all_others", tmp_path, phase, fault, layout, size)


def law_errors_that_are_not_turned_are_caught(folder):
    TorchComm._counted = contextmanager(lambda self, x: (yield))
    law_a_failing_process_is_an_error_on_all_others(folder, "embedding", "killed", "replicated", 2)


def law_shapes_that_are_not_compared_are_caught(folder):
    TorchComm._compare = lambda self, what, x: None
    law_a_failing_process_is_an_error_on_all_others(folder, "gradients", "shape", "replicated", 2)


def law_a_late_error_is_caught(folder):
    law_a_failing_process_is_an_error_on_all_others(folder, "embedding", "hangs", "replicated", 2, TIMEOUT + 20)


def test_the_law_of_failing_processes_can_fail(warm, tmp_path):
    with pytest.raises(AssertionError, match=r"not enough values to unpack"):
        warm("law_errors_that_are_not_turned_are_caught", tmp_path / "a")
    with pytest.raises(AssertionError, match=r"it took \d+\.\d s"):
        warm("law_a_late_error_is_caught", tmp_path / "b")
    with pytest.raises(AssertionError, match=r"not enough values to unpack|another one has ended"):
        warm("law_shapes_that_are_not_compared_are_caught", tmp_path / "c")


def law_a_save_that_fails_is_an_error_on_all(folder, layout):
    """The first process cannot write its third checkpoint; the one before it goes on."""
    options = {"bank_layout": layout, "folder": folder, "resume": "auto", "checkpoint_every": 2}
    calls, save = [], Checkpoints.save

    def failing(self, found):
        calls.append(None)
        if len(calls) == 3:
            raise CheckpointError("the disk is full")
        return save(self, found)

    def work(rank, tell, fails=True):
        if fails:
            Checkpoints.save = failing
        try:
            tell(facts(*go(FLOAT64, **options, checkpoint_unit="steps")))
        except LaCoreError as error:
            tell([type(error).__name__, len(calls)])

    assert of(team(3, work, TIMEOUT)) == [["CheckpointError", 3], ["DistributedError", 0], ["DistributedError", 0]]
    assert Checkpoints(Path(folder) / "checkpoints").latest().facts["step"] == 2
    (whole,) = of(team(1, lambda rank, tell: tell(facts(*go(FLOAT64)))))
    again = of(team(3, lambda rank, tell: work(rank, tell, False)))[0]
    same(again, whole | {"losses": whole["losses"][-len(again["losses"]) :]}, 1e-12)


@pytest.mark.parametrize("layout", ["replicated", "sharded"])
def test_a_save_that_fails_is_an_error_on_all(warm, tmp_path, layout):
    warm("law_a_save_that_fails_is_an_error_on_all", tmp_path, layout)


def test_a_port_that_is_taken_is_said(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1])}
        for name, value in {"TORCHELASTIC_RUN_ID": "run", "RANK": "0", "WORLD_SIZE": "2", **where}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(DistributedError, match=r"torch\.distributed cannot begin: .*port"):
            torch_comm(torch.device("cpu"))


WRONG = {
    "settings": (lambda: {"settings": replace(FLOAT64, temperature=0.1)}, r"temperature 0\.07.*temperature 0\.1"),
    "data": (lambda: {"n": 46}, " data "),
    "layout": (lambda: {"bank_layout": "sharded"}, "bank_layout"),
    "dtype": (lambda: {"settings": replace(FLOAT64, dtype="float32")}, "dtype"),
    "encoder": (lambda: {"make": lambda backend, settings: MLP(backend, (10, 17, 8), settings)}, r"0\.weight"),
    "embedding": (lambda: {"make": narrow}, "embedding"),
}


def narrow(backend, settings):
    """Gives embeddings of another shape from the third step on, as only a bug can."""

    class Narrow(MLP):
        calls = 0

        def pullback(self, batch):
            z, back = super().pullback(batch)
            self.calls += 1
            return (z if self.calls < 3 else z[:, :-1]), back

    Narrow.__name__ = "MLP"
    return Narrow(backend, SIZES, settings)


def law_processes_that_differ_are_told_so(name, size):
    """On every one of them, and before anything is learnt from what does not fit."""
    make, _ = WRONG[name]

    def work(rank, tell):
        try:
            go(**{"settings": FLOAT64, **(make() if rank == size - 1 else {})})
        except DistributedError as error:
            tell(str(error))

    ends = team(size, work)
    assert [end.status for end in ends] == [0] * size
    messages = [end.told for end in ends]
    assert all(len(told) == 1 for told in messages), messages
    return [told[0] for told in messages]


@pytest.mark.parametrize("name", WRONG)
def test_processes_that_differ_are_told_so(warm, name):
    for message in warm("law_processes_that_differ_are_told_so", name, 3):
        assert "the processes of a run must agree" in message
        assert "process 2 of 3" in message
        assert re.search(WRONG[name][1], message), message


def law_a_bank_that_drifts_is_found(size):
    class Flip(Callback):
        def __init__(self, rank):
            self.rank = rank

        def on_step(self, run, loss):
            if self.rank == 1 and run.step == 2:
                run.state.bank[3, 0] += 1e-12

    def work(rank, tell):
        try:
            go(FLOAT64, callbacks=[Flip(rank)])
        except DistributedError as error:
            tell(str(error))

    return [end.told for end in team(size, work)]


def test_a_bank_that_drifts_is_found(warm):
    for told in warm("law_a_bank_that_drifts_is_found", 2):
        assert "(an epoch) bank" in told[0]


def test_what_cannot_be_done_is_said():
    with pytest.raises(SettingsError, match="bank_layout must be one of 'replicated', 'sharded'; got 'rows'"):
        go(FLOAT64, bank_layout="rows")


def law_what_processes_cannot_do_is_said():
    def work(rank, tell):
        for options in (
            {"settings": replace(KINDS["lists"], **SHORT), "bank_layout": "sharded"},
            {"settings": replace(FLOAT64, n_background=2, n_clusters=2, knn_k=1), "n": 3, "bank_layout": "sharded"},
            {"settings": FLOAT64, "make": lambda backend, settings: Unsummed()},
        ):
            try:
                go(**options)
            except LaCoreError as error:
                tell(f"{type(error).__name__}: {error}")

    class Unsummed:
        pass

    return [end.told for end in team(4, work)]


def test_what_processes_cannot_do_is_said(warm):
    for told in warm("law_what_processes_cannot_do_is_said"):
        lists, few, encoder = told
        assert lists.startswith("SettingsError: search='lists' reads the whole bank")
        assert few == "SettingsError: 3 rows of a bank cannot be sharded over 4 processes: start fewer"
        assert encoder.startswith("BackendError: a Unsummed has no sum_gradients")


# What it takes ------------------------------------------------------------------------------------------------------


def law_what_a_process_holds_and_gives(layout, size):
    """Bytes of the bank that it holds; and for steps of Local Aggregation its collectives, and the bytes it gives."""

    class Count(Callback):
        def __init__(self):
            self.before, self.steps = (0, 0), []

        def on_step(self, run, loss):
            now = (run.team.comm.calls, run.team.comm.payload)
            if run.step % 3 == 2:  # neither the first of an epoch, after measures and clustering, nor the last
                self.steps.append([now[0] - self.before[0], now[1] - self.before[1], run.last_batch, run.phase])
            self.before = now

    def work(rank, tell):
        count = Count()
        run, _ = go(FLOAT32, bank_layout=layout, callbacks=[count])
        rows = shards.held(run.state.bank)[0]
        weights = sum(x.size for x in run.encoder.weights().values())
        tell([rows.numel() * 4, weights, [step for step in count.steps if step[3] == AGGREGATION]])

    return [end.told[0] for end in team(size, work)]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("layout", ["replicated", "sharded"])
def test_a_process_holds_its_part_and_gives_what_the_model_says(warm, layout, size):
    told = warm("law_what_a_process_holds_and_gives", layout, size)
    n, dim, k = teams.N, SIZES[-1], FLOAT32.n_background
    for rank, (held, weights, steps) in enumerate(told):
        rows = min(-(-n // size), n - rank * -(-n // size)) if layout == "sharded" else n
        assert held == rows * dim * 4
        assert steps
        for calls, given, batch, _ in steps:
            assert calls == 2 * COLLECTIVES[layout]
            assert given == sum(traffic(layout, size, n=n, dim=dim, batch=batch, k=k, weights=weights))
