"""Batches loaded in other processes are the batches loaded in this one, and the processes end when they should."""

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from folders import mixed_folder

from la_core import data, views
from la_core.data import ahead, loading, pool
from la_core.errors import DataError, SettingsError

IMAGES = views.ImageView(size=16, degrees=10)
FEATURES = views.FeatureView(noise=0.5, drop=0.2)
on_linux = pytest.mark.skipif(
    sys.platform != "linux" or os.sched_getscheduler(0) != os.SCHED_OTHER, reason="a policy that Linux has by default"
)
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals and process groups of POSIX")


class Sick:
    """Rows of which one raises what no other process can unpack, and one ends the process that asks for it."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 5:
            raise UnpackableError("this", "that")
        if index == 6:
            os._exit(3)
        return np.full(3, float(index))


class UnpackableError(Exception):
    def __init__(self, one, other):
        super().__init__(f"{one} and {other}")


class FailingView:
    def __call__(self, sample, rng):
        raise UnpackableError("view", "fails")


class NotHere:
    """Packs, and cannot be unpacked: as a class that was defined in a notebook."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return np.zeros(2)

    def __reduce__(self):
        return importlib.import_module, ("no_such_module",)


class NotHereView(views.FeatureView):
    __reduce__ = NotHere.__reduce__


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A folder of images, a part of it, features in memory, a mapped array, and a sick data set."""
    root = tmp_path_factory.mktemp("sets")
    made = mixed_folder(root / "images", n=60, n_broken=0)
    folder = data.samples(made.root)
    rng = np.random.default_rng(0)
    np.save(root / "x.npy", rng.standard_normal((40, 6)))
    return {
        "folder": folder,
        "part": folder.part(np.arange(0, 60, 2)[::-1]),
        "memory": data.samples(rng.standard_normal((40, 6))),
        "mapped": data.samples(np.load(root / "x.npy", mmap_mode="r")[4:]),
        "sick": data.samples(Sick()),
    }


@pytest.fixture(scope="module")
def workers(sets):
    """Two processes for the whole file: to start them takes longer than all that they do."""
    with data.Workers(2, *sets.values(), ahead=3) as two:
        yield two
    assert multiprocessing.active_children() == []


def law_of_equal_bytes(workers, some, order, view, *keys):
    """Whoever loads it, a batch is the same to the bit, in the same order, with its indices."""
    loaded = list(workers.load(some, order, view, *keys))
    assert len(loaded) == len(order)
    for (indices, batch), expected in zip(loaded, order, strict=True):
        np.testing.assert_array_equal(indices, expected)
        alone = data.load(some, expected, view, *keys)
        assert (batch.dtype, batch.shape) == (alone.dtype, alone.shape)
        assert batch.tobytes() == alone.tobytes()


@pytest.mark.parametrize(
    ("name", "view"), [("folder", IMAGES), ("part", IMAGES), ("memory", FEATURES), ("mapped", FEATURES)]
)
def test_every_batch_of_every_epoch_is_the_same_to_the_bit(workers, sets, name, view):
    some = sets[name]
    for epoch in range(2):
        order = data.batches(len(some), 7, seed=3, epoch=epoch)
        law_of_equal_bytes(workers, some, order, view, (3, epoch))
        law_of_equal_bytes(workers, some, order[2:], view, (3, epoch))  # a run that resumes in the epoch
    law_of_equal_bytes(workers, some, order, view, None)
    law_of_equal_bytes(workers, some, order, view, (3, 0), None, (4, 0))


def test_no_workers_and_data_that_they_do_not_know_are_the_same_too(workers, sets):
    order = data.batches(40, 7, seed=0, epoch=0)
    law_of_equal_bytes(data.Workers(), sets["memory"], order, FEATURES, (0, 0))
    law_of_equal_bytes(workers, data.samples(np.eye(40)), order, FEATURES, (0, 0))


def test_chance_that_depends_on_the_process_is_caught(workers, sets, monkeypatch):
    generator = loading.generator
    # Here, and not in the workers, who are other processes.
    monkeypatch.setattr(loading, "generator", lambda seed, *place: generator(seed + 1, *place))
    with pytest.raises(AssertionError):
        law_of_equal_bytes(workers, sets["memory"], [np.arange(4)], FEATURES, (0, 0))


def law_of_bounded_memory(some_pool, ahead):
    """At most ``ahead`` results are under way or waiting while one is in use."""
    taken, most = 0, 0

    def tasks():
        nonlocal taken
        for task in range(20):
            taken += 1
            yield task

    for done, result in enumerate(some_pool.map(pool_echo, tasks()), start=1):
        assert result == done - 1
        most = max(most, taken - done)
    assert most == ahead


def pool_echo(held, task):
    return task


class Ready:
    """An executor whose results are there at once."""

    def submit(self, _, function, packed):
        future = pool.Future()
        future.set_result(function(None, pool.pickle.loads(packed)))
        return future

    def shutdown(self, **_):
        pass


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_memory_is_bounded(ahead):
    with pool.Pool(2, None, ahead=ahead) as some_pool:
        some_pool._executor = Ready()
        law_of_bounded_memory(some_pool, ahead)


def test_reading_one_task_too_many_is_caught(monkeypatch):
    with pool.Pool(2, None, ahead=3) as some_pool:
        some_pool._executor = Ready()
        monkeypatch.setattr(some_pool, "ahead", 4)
        with pytest.raises(AssertionError):
            law_of_bounded_memory(some_pool, 3)


def law_of_one_ahead(one_ahead):
    """Every result in order, from another thread, each begun no sooner than the one before it is taken."""
    begun = []

    def work(task):
        begun.append(threading.get_ident())
        return task

    taken = []
    for result in one_ahead(work, iter(range(9))):
        taken.append(result)
        assert len(begun) <= len(taken) + 1
        time.sleep(0.002)  # long enough to begin too many
    assert taken == list(range(9))
    assert len(set(begun) - {threading.get_ident()}) == 1
    assert list(one_ahead(work, [])) == []


def test_a_thread_works_one_ahead():
    law_of_one_ahead(ahead.one_ahead)


def test_a_thread_that_runs_on_is_caught():
    def eager(function, tasks):
        with ahead.ThreadPoolExecutor(1) as thread:
            yield from thread.map(function, tasks)

    with pytest.raises(AssertionError):
        law_of_one_ahead(eager)


def policies(stand_back):
    """By which the operating system shares out the cores: for who asks before, for the thread that works, and after."""
    here = [os.sched_getscheduler(0)]
    with mock.patch.object(ahead, "stand_back", stand_back):
        (there,) = ahead.one_ahead(lambda _: os.sched_getscheduler(0), range(1))
    return [*here, there, os.sched_getscheduler(0)]


@on_linux
def test_the_thread_that_works_ahead_pushes_no_other_aside():
    usual = os.SCHED_OTHER
    assert policies(ahead.stand_back) == [usual, os.SCHED_BATCH, usual]
    assert policies(lambda: None) == [usual, usual, usual]


@on_linux
def test_where_it_may_not_it_works_as_it_is(monkeypatch):
    def refused(*args):
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refused)
    assert policies(ahead.stand_back) == [os.SCHED_OTHER] * 3
    monkeypatch.undo()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert policies(ahead.stand_back) == [os.SCHED_OTHER] * 3


def test_the_next_batch_is_made_while_one_is_in_use():
    begun = threading.Event()
    results = ahead.one_ahead(lambda task: begun.set() if task == 1 else None, range(3))
    next(results)
    assert begun.wait(timeout=20)
    results.close()


def test_an_error_ahead_waits_for_its_turn_and_the_thread_ends(sets):
    def work(task):
        if task == 2:
            raise KeyboardInterrupt
        return task

    before = set(threading.enumerate())
    results = ahead.one_ahead(work, range(5))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(KeyboardInterrupt):
        next(results)
    assert set(threading.enumerate()) == before
    left = data.Workers().load(sets["memory"], [np.arange(5)] * 4, FEATURES, (0, 0))
    next(left)
    assert len(threading.enumerate()) == len(before) + 1
    left.close()
    assert set(threading.enumerate()) == before


def law_of_short_turns(short_turns):
    """Turns are short while anybody is in it, whoever leaves first; then what they were, or what was set since."""
    before = sys.getswitchinterval()
    try:
        for some, short in ((7e-3, ahead.TURN), (2e-5, 2e-5)):
            sys.setswitchinterval(some)
            own = sys.getswitchinterval()
            with ExitStack() as last:
                with short_turns():
                    assert sys.getswitchinterval() == pytest.approx(short, abs=1e-6)
                    last.enter_context(short_turns())
                assert sys.getswitchinterval() == pytest.approx(short, abs=1e-6)
            assert sys.getswitchinterval() == own
        with short_turns():
            sys.setswitchinterval(3e-3)
        assert sys.getswitchinterval() == pytest.approx(3e-3, abs=1e-6)
    finally:
        sys.setswitchinterval(before)


def test_turns_are_short_while_a_thread_loads(sets):
    law_of_short_turns(ahead.short_turns)
    before = sys.getswitchinterval()
    assert before > ahead.TURN
    loaded = data.Workers().load(sets["memory"], [np.arange(5)] * 4, FEATURES, (0, 0))
    next(loaded)
    assert sys.getswitchinterval() == pytest.approx(ahead.TURN, abs=1e-6)
    loaded.close()
    assert sys.getswitchinterval() == before


def test_turns_that_end_with_the_first_are_caught():
    @contextmanager
    def hasty():
        before = sys.getswitchinterval()
        sys.setswitchinterval(min(before, ahead.TURN))
        yield
        sys.setswitchinterval(before)

    with pytest.raises(AssertionError):
        law_of_short_turns(hasty)


def test_only_what_is_ours_is_called_from_another_thread(sets):
    threads = set()

    class Own(views.FeatureView):
        def __call__(self, sample, rng):
            threads.add(threading.get_ident())
            return super().__call__(sample, rng)

    order = [np.arange(i, i + 5) for i in range(0, 20, 5)]
    for some, view in ((sets["memory"], Own()), (data.samples(list(np.eye(20))), FEATURES)):
        list(data.Workers().load(some, order, view, (0, 0)))
        assert not any(thread.name.startswith("la-core-ahead") for thread in threading.enumerate())
        rest = data.Workers().load(some, order, view, (0, 0))
        next(rest)
        assert not any(thread.name.startswith("la-core-ahead") for thread in threading.enumerate())
    assert threads == {threading.get_ident()}
    for name, view in (("folder", IMAGES), ("part", IMAGES), ("memory", FEATURES), ("mapped", FEATURES)):
        law_of_equal_bytes(data.Workers(), sets[name], order, view, (0, 0))


def test_leaving_early_leaves_the_pool_as_it_was(workers, sets):
    order = [np.arange(i, i + 5) for i in range(0, 40, 5)]
    batches = workers.load(sets["memory"], order, FEATURES, (0, 0))
    next(batches)
    batches.close()
    law_of_equal_bytes(workers, sets["memory"], order, FEATURES, (0, 1))


def test_errors_come_back_as_they_are_and_name_the_file(workers, sets, tmp_path):
    folder = sets["folder"].source
    file, kept = folder.files[7], tmp_path / "kept"
    file.rename(kept)
    try:
        with pytest.raises(DataError, match=file.name):
            list(workers.load(sets["folder"], [np.array([7])], IMAGES, None))
    finally:
        kept.rename(file)
    law_of_equal_bytes(workers, sets["folder"], [np.array([7])], IMAGES, None)
    with pytest.raises(DataError, match="sample 5 cannot be read: this and that"):
        list(workers.load(sets["sick"], [np.array([5])], FEATURES, None))
    with pytest.raises(DataError, match=r"view of sample 2.* view and fails"):
        list(workers.load(sets["memory"], [np.array([2])], FailingView(), None))


def test_a_view_that_cannot_travel_is_refused_and_harms_nothing(workers, sets):
    for view, words in ((lambda sample, rng: sample, "the view cannot be sent"), (NotHereView(), "no_such_module")):
        with pytest.raises(DataError, match=words):
            list(workers.load(sets["memory"], [np.arange(3)], view, None))
    law_of_equal_bytes(workers, sets["memory"], [np.arange(3)], FEATURES, None)


def test_a_worker_that_dies_is_an_error_and_the_next_ones_start_afresh(sets):
    before = set(multiprocessing.active_children())
    with data.Workers(1, sets["sick"]) as workers:
        with pytest.raises(DataError, match=r"died.*__main__"):
            list(workers.load(sets["sick"], [np.array([6])], FEATURES, None))
        assert set(multiprocessing.active_children()) == before
        law_of_equal_bytes(workers, sets["sick"], [np.array([1])], FEATURES, None)
    assert set(multiprocessing.active_children()) == before


def test_data_that_cannot_travel_is_refused_before_anything_starts():
    rows = data.samples([np.zeros(2), np.zeros(2)])
    with pytest.raises(DataError, match=r"data set cannot be sent.*workers=0"):
        data.Workers(1, rows, data.Samples(Locked()))
    with data.Workers(1, data.samples(NotHere())) as workers:
        some = workers._pool.held[0]
        with pytest.raises(DataError, match=r"cannot be set up in a worker process.*no_such_module"):
            list(workers.load(some, [np.array([0])], FEATURES, None))


class Locked(list):
    def __init__(self):
        super().__init__([np.zeros(2)])
        self.lock = threading.Lock()


def test_a_closed_pool_works_in_this_process(sets):
    before = set(multiprocessing.active_children())
    workers = data.Workers(2, sets["memory"])
    workers.close()
    workers.close()
    law_of_equal_bytes(workers, sets["memory"], [np.arange(3)], FEATURES, (0, 0))
    assert set(multiprocessing.active_children()) == before


@pytest.mark.parametrize("bad", [-1, 1.5, True, "2"])
def test_numbers_of_workers_that_there_are_not(bad, tmp_path):
    with pytest.raises(SettingsError, match="workers must be an integer"):
        data.Workers(bad)
    with pytest.raises(SettingsError, match="ahead must be an integer"):
        data.Workers(1, ahead=bad if bad != "2" else 0)
    mixed_folder(tmp_path, n=4, n_broken=0)
    with pytest.raises(SettingsError, match="workers must be an integer"):
        data.ImageFolder(tmp_path, on_error="skip", workers=bad)


def test_a_folder_checked_by_workers_is_the_folder_checked_by_none(tmp_path):
    mixed_folder(tmp_path, n=80)
    folder = data.ImageFolder(tmp_path)
    assert folder.check(workers=1) == folder.check()
    assert len(folder.check()) == 8


SCRIPT = """
import multiprocessing, sys, time
import numpy as np
from la_core import data, views

def main():
    rows = data.samples(np.zeros((1000, 2)))
    with data.Workers(2, rows) as workers:
        for number, _ in enumerate(workers.load(rows, np.arange(1000)[:, None], views.FeatureView(), None)):
            if number == 3:
                print(*[child.pid for child in multiprocessing.active_children()], flush=True)
                time.sleep(60)

if __name__ == "__main__":
    main()
"""


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")  # a process that ended and that nobody waited for still has a number
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


@POSIX
@pytest.mark.parametrize("by", ["Ctrl-C", "kill"])
def test_no_process_is_left_when_the_run_is_ended(tmp_path, by):
    (tmp_path / "script.py").write_text(SCRIPT)
    run = subprocess.Popen(
        [sys.executable, tmp_path / "script.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a group of its own, for Ctrl-C goes to a whole group
    )
    try:
        children = [int(pid) for pid in run.stdout.readline().split()]
        assert children
        assert all(map(alive, children))
        if by == "Ctrl-C":
            os.killpg(run.pid, signal.SIGINT)
        else:
            run.kill()
        _, errors = run.communicate(timeout=20)
    finally:
        run.kill()
        run.communicate()
    if by == "Ctrl-C":
        assert errors.count("KeyboardInterrupt") == 1, errors  # that of the run, and none of its workers
    deadline = time.monotonic() + 10
    while any(map(alive, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, children))
