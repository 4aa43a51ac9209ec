"""Contenders in processes of their own, which take turns: one runs while the others wait.

A process of its own makes the peak of memory a contender's own, and lets each have the BLAS library that it comes with.
All are bound to the same cores and told the same number of threads before Python starts.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from speed.contenders import Answer, Contender
from speed.data import Problem, first, inputs

SLOW, SLOWEST = 10.0, 25.0
"""Seconds of a run from which on there are fewer, and the first one counts unless something was compiled in it; and
from which on there is one less of these."""
WARM_UP = 0.05
"""Size of the first task of a process: libraries are loaded, and their threads started."""
PAUSE = 0.25
"""Seconds before each turn, in which the threads of the one before stop waiting for work."""


@dataclass(frozen=True)
class Plan:
    """How often and how long."""

    repeats: int = 5
    slow_repeats: int = 3
    """Of those whose run takes more than ``SLOW`` seconds; one less above ``SLOWEST``, if there is more than one."""
    threads: int = 1
    timeout: float = 600.0
    """Seconds of one run, or of making one ready."""


@dataclass
class Result:
    """What was measured of a contender."""

    seconds: list[float] = field(default_factory=list)
    peak_extra_mb: float | None = None
    """The highest of all runs, above what the process held before the run. Linux only."""
    answers: list[Answer] = field(default_factory=list)
    libraries: list[str] = field(default_factory=list)
    """Threaded libraries that the process had loaded: version, cores they were made for, threads."""
    error: str | None = None

    @property
    def median(self) -> float:
        """Of the seconds."""
        return median(self.seconds)


@dataclass(frozen=True)
class Run:
    """One run, as its process reports it."""

    seconds: float
    peak_extra_mb: float | None
    answer: Answer


def measure(contenders: Sequence[Contender], problem: Problem, plan: Plan) -> dict[str, Result]:
    """Every contender that is present, by name. One that fails or takes too long has an ``error``."""
    results = {c.name: Result() for c in contenders if c.present}
    with TemporaryDirectory() as folder:
        for name, array in inputs(problem).items():
            np.save(Path(folder, name), array)
        workers = [Worker(c, problem, folder, plan) for c in contenders if c.present]
        try:
            for turn in range(plan.repeats + 1):
                for worker in workers:
                    _turn(worker, results[worker.contender.name], turn, plan)
        finally:
            for worker in workers:
                worker.stop()
    return results


def _turn(worker: Worker, result: Result, turn: int, plan: Plan) -> None:
    """One run of one contender, if it has not had enough of them."""
    if result.error or (result.seconds and len(result.seconds) >= _enough(plan, result.seconds[0])):
        return
    time.sleep(PAUSE)
    try:
        if turn == 0:
            result.libraries = worker.ready()
        run = worker.run(turn)
    except WorkerError as error:
        result.error = str(error)
        worker.stop()
        return
    result.answers.append(run.answer)
    if run.peak_extra_mb is not None:
        result.peak_extra_mb = max(run.peak_extra_mb, result.peak_extra_mb or 0.0)
    if turn > 0 or (run.seconds > SLOW and not worker.contender.compiles):  # else it was a warm-up
        result.seconds.append(run.seconds)


def _enough(plan: Plan, seconds: float) -> int:
    """How many runs that take so long."""
    if seconds <= SLOW:
        return plan.repeats
    return plan.slow_repeats if seconds <= SLOWEST else max(1, plan.slow_repeats - 1)


class WorkerError(Exception):
    """A contender failed."""


class Worker:
    """A contender's process, as seen from outside."""

    def __init__(self, contender: Contender, problem: Problem, folder: str, plan: Plan) -> None:
        self.contender, self.timeout = contender, plan.timeout
        context = multiprocessing.get_context("spawn")
        self.link, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, contender, problem, folder, plan.threads))
        with environment(settings(contender, plan.threads)):
            self.process.start()
        other.close()

    def ready(self) -> list[str]:
        """Wait until it is; the threaded libraries that it has loaded."""
        libraries: list[str] = self._answer()
        return libraries

    def run(self, repeat: int) -> Run:
        """Have it run once."""
        self.link.send(repeat)
        run: Run = self._answer()
        return run

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()
        self.link.close()

    def _answer(self) -> Any:
        if not self.link.poll(self.timeout):
            raise WorkerError(f"took more than {self.timeout:g} s")
        try:
            answer = self.link.recv()
        except EOFError:
            self.process.join()
            raise WorkerError(f"its process ended with {self.process.exitcode}") from None
        if isinstance(answer, WorkerError):
            raise answer
        return answer


def settings(contender: Contender, threads: int) -> dict[str, str]:
    """Environment variables of its process: libraries read them when they are loaded, or when Python starts."""
    names = "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC"  # the last is XLA's
    chosen = {name: str(threads) for name in names}
    if contender.package == "faiss" and "avx512f" in cpu("flags").split():
        # The OpenBLAS in faiss's wheel is older than these CPUs, and would use kernels made for SSE3.
        chosen["OPENBLAS_CORETYPE"] = os.environ.get("OPENBLAS_CORETYPE", "SkylakeX")
    return chosen


def cpu(what: str) -> str:
    """A line of Linux's account of the first core, such as "model name"; "" elsewhere."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith(what))
    return ""


@contextmanager
def environment(chosen: Mapping[str, str]) -> Iterator[None]:
    """Variables as chosen, and afterwards as they were."""
    before = dict(os.environ)
    os.environ.update(chosen)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


# In the process ------------------------------------------------------------------------------------------------------


def serve(link: Connection, contender: Contender, problem: Problem, folder: str, threads: int) -> None:
    """Make the contender ready, then run it whenever a number comes."""
    try:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
        x = {path.stem: np.load(path) for path in Path(folder).glob("*.npy")}
        times = problem.clusterings if contender.one_by_one else 1
        if contender.one_by_one:
            problem = replace(problem, clusterings=1)
        little = problem.scaled(WARM_UP)
        work = contender.prepare(little, first(x, little.n))
        work.answer(work.run(0))
        work = contender.prepare(problem, x)
        del x
        link.send(threaded_libraries())
        while True:
            run = measured(work, link.recv())
            link.send(replace(run, seconds=times * run.seconds))
    except EOFError:  # nobody asks any more
        return
    except Exception:  # whatever it is, it is the contender's, and the others go on
        link.send(WorkerError(traceback.format_exc()))


def measured(work: Any, repeat: int) -> Run:
    """One run: its time, and its peak of memory."""
    held = forget_peak()
    began = time.perf_counter()
    found = work.run(repeat)
    seconds = time.perf_counter() - began
    peak = None if held is None else memory_mb("VmHWM") - held
    return Run(seconds, peak, work.answer(found))


def forget_peak() -> float | None:
    """The memory that this process holds, from which on its peak counts."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return memory_mb("VmRSS")
    except OSError:
        return None


def memory_mb(what: str) -> float:
    """A line of this process's account of its memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(what))) / 1024


def threaded_libraries() -> list[str]:
    """Such as "openblas 0.3.15 SkylakeX, 2 threads"."""
    from threadpoolctl import threadpool_info

    return [
        " ".join(str(part) for part in (lib["internal_api"], lib["version"], lib.get("architecture")) if part)
        + f", {lib['num_threads']} threads"
        for lib in threadpool_info()
    ]
