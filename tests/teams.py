"""Runs of several processes, forked from one that has everything imported, and what may go wrong in one of them.

Laws are called in a process of its own, without threads, that is forked from one that serves (:func:`warm`).
"""

import json
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module

import numpy as np
import torch
import torch.distributed as dist
from runs import CLASSES, FEATURES, SIZES, VIEW
from serving import Warm

import la_core
from la_core.mlp import MLP

N = 47
"""Divisible by nothing."""
TIMEOUT = 5
"""Seconds that a process waits for the others, where something is to go wrong."""


def warm(module):
    """A process with everything imported, which calls laws of a module: each in a fork, that finds nothing left."""
    return Warm(__file__, module)


def _serve(module):
    """Line by line: a law and its arguments come, and whether it held, with what it returned or said, goes."""
    module = import_module(module)
    import_module("torch._dynamo")  # as every optimizer of PyTorch does at its first step, for seconds
    for line in sys.stdin:
        law, arguments = json.loads(line)
        with tempfile.TemporaryFile("w+") as said:
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    os.dup2(said.fileno(), 1)
                    os.dup2(said.fileno(), 2)
                    result = getattr(module, law)(*arguments)
                    _tell(writing, result)
                    status = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stderr.flush()
                    os._exit(status)
            os.close(writing)
            with os.fdopen(reading) as stream:
                result = stream.read()
            _, status = os.waitpid(child, 0)
            said.seek(0)
            print(json.dumps([status == 0, json.loads(result) if status == 0 else said.read()]), flush=True)


@dataclass
class End:
    """How one process ended: its exit status, negative for a signal, what it told, and when, after the start."""

    status: int
    told: list
    seconds: float


def team(size, work, timeout=100, most=120):
    """``work(rank, tell)`` in ``size`` processes of a gloo group. No process is left behind."""
    began, children = time.monotonic(), []
    with tempfile.TemporaryDirectory() as place:
        for rank in range(size):
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(reading)
                _work(rank, size, work, writing, f"{place}/store", timeout)
            os.close(writing)
            children.append((child, reading))
        ends, waiting = {}, dict(children)
        while waiting and time.monotonic() - began < most:
            done, status = os.waitpid(-1, os.WNOHANG)
            if done:
                with os.fdopen(waiting.pop(done), "rb") as stream:
                    told = [json.loads(line) for line in stream.read().splitlines()]
                ends[done] = End(os.waitstatus_to_exitcode(status), told, time.monotonic() - began)
            time.sleep(0.005)
        for child in waiting:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert not waiting, f"{len(waiting)} of {size} processes did not come to an end"
    return [ends[child] for child, _ in children]


def _work(rank, size, work, writing, store, timeout):
    status = 1
    try:
        torch.set_num_threads(1)
        if size > 1:
            dist.init_process_group(
                "gloo",
                store=dist.FileStore(store, size),
                rank=rank,
                world_size=size,
                timeout=timedelta(seconds=timeout),
            )
        work(rank, lambda told: _tell(writing, told))
        status = 0
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _tell(writing, told):
    left = (json.dumps(told) + "\n").encode()
    while left:
        left = left[os.write(writing, left) :]


class Losses(la_core.Callback):
    """The loss of every step."""

    def __init__(self):
        self.all = []

    def on_step(self, run, loss):
        self.all.append(loss)


def perceptron(backend, settings):
    return MLP(backend, SIZES, settings)


def go(settings, make=perceptron, n=N, callbacks=(), **options):
    """A run on PyTorch of n samples, and its losses."""
    backend, losses = la_core.backend("torch"), Losses()
    torch.manual_seed(7)
    run = la_core.train(
        la_core.samples(FEATURES[:n], CLASSES[:n]),
        make(backend, settings),
        **{"backend": backend, "settings": settings, "view": VIEW, "progress": False} | options,
        callbacks=[losses, *callbacks],
    )
    return run, losses.all


def facts(run, losses):
    """What runs are compared by, as plain JSON."""
    from la_core import shards

    host = run.backend.to_host
    bank = shards.whole(run.state.bank, host)
    return {
        "losses": losses,
        "bank": None if bank is None else bank.tolist(),
        "labels": host(run.state.labels).tolist(),
        "weights": {name: x.tolist() for name, x in run.encoder.weights().items()},
        "history": [{name: x for name, x in record.items() if name != "seconds"} for record in run.history],
    }


def same(one, other, tolerance, exact=False):
    """Whether two runs are the same inside a tier."""
    for name in ("losses", "bank"):
        np.testing.assert_allclose(
            one[name], other[name], rtol=0 if exact else tolerance, atol=0 if exact else tolerance
        )
    for name in one["weights"]:
        np.testing.assert_allclose(one["weights"][name], other["weights"][name], rtol=0, atol=20 * tolerance)
    assert one["labels"] == other["labels"]
    for mine, theirs in zip(one["history"], other["history"], strict=True):
        assert set(mine) == set(theirs)
        assert mine.get("knn") == theirs.get("knn")


if __name__ == "__main__":
    warnings.simplefilter("error", UserWarning)
    _serve(sys.argv[1])
