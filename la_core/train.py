"""The run, written once for every backend: warm-up by Instance Discrimination, clustering, Local Aggregation.

A step, in the order that matters: embed the batch, take the loss against the *old* bank, differentiate, move the
encoder, and only then mix the new embeddings into the bank.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from la_core import check, evaluate, kernels, lists, shards, termination
from la_core.bank import State, random_parts, random_rows, unit, update
from la_core.clusters import cluster
from la_core.comm import Team, digest
from la_core.data import Samples, Workers, batches, load, samples
from la_core.data.workers import Batch, Loaded
from la_core.errors import NotFiniteError, RangeError, RunFolderError, SettingsError, ShapeError, Terminated
from la_core.folder import RunFolder
from la_core.kernels import Array
from la_core.layout import Layout
from la_core.objectives import (
    Terms,
    fresh_rows,
    instance_discrimination_and_cotangent,
    local_aggregation_terms,
    with_instances,
)
from la_core.progress import Progress
from la_core.protocol import Backend, Encoder
from la_core.randomness import derived_seed, generator
from la_core.resume import MODES, UNITS, Memory, Saving, fit, identity, restore, snapshot, told
from la_core.run import AGGREGATION, WARM_UP, Callback, Run
from la_core.settings import Settings
from la_core.spaces import array_namespace, device
from la_core.views import View, default_view

RECALLED = 32
"""Rows of the bank that the recall of lists is measured on."""

PART = 64
"""Batches that are embedded at a time for a bank in a file."""

Step: TypeAlias = Callable[..., tuple[Terms, State]]


def train(
    data: Any,
    encoder: Encoder,
    *,
    backend: Backend,
    settings: Settings | None = None,
    view: View | None = None,
    test: Any = None,
    labels: np.ndarray | None = None,
    folder: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    workers: int = 0,
    resume: str = "never",
    checkpoint_every: int = 1,
    checkpoint_unit: str = "epochs",
    bank_layout: str = "replicated",
) -> Run:
    """Learn embeddings in which like things gather.

    Several processes make one run together where the backend has them (PyTorch, under torchrun): each calls this with
    the same arguments, learns from its part of every batch, and has the same state as the others after every step.
    Several devices of one process do where the backend has been made with them (``backend("jax", devices=8)``).

    Parameters
    ----------
    data
        What to embed, in any form that :func:`la_core.data.samples` takes. Classes, where known, are used by the
        running measure only.
    encoder
        Maps a batch of views to (B, D), and learns: see :class:`la_core.protocol.Encoder`.
    backend
        ``la_core.backend(name, device)``, the one that the encoder lives on.
    settings
        By default ``Settings()``.
    view
        Random and evaluation views of a sample. By default the published augmentation at the size that images have,
        and anything else as it is.
    test
        Samples with classes for the running measure. Without, it is leave-one-out on the bank.
    labels
        (H, N) integers: close neighbours that you bring yourself. No clustering is made then.
    folder
        An empty or a new folder for the files of the run: see :mod:`la_core.folder`. SIGTERM then ends the run as
        said below, unless the program handles it itself or this is not the main thread.
    callbacks
        Told of every step, epoch and phase, in order.
    progress
        A live bar on stderr.
    workers
        Processes that load batches ahead; 0 loads them in this one, ahead in a thread where samples and view are
        la-core's own. The batches are the same.
    resume
        ``"auto"``: go on from the newest checkpoint in ``folder``, or begin where there is none; ``"must"``: go on;
        ``"never"``: begin, in an empty folder. Give the same data, settings and a new encoder: the run then goes on to
        the bit as if it had not been stopped.
    checkpoint_every, checkpoint_unit
        A checkpoint in ``folder`` each so many ``"epochs"`` or ``"steps"``, and at the end; 0 for none. The two newest
        stay.
    bank_layout
        Of several processes or devices, ``"replicated"``: each has the whole bank; ``"sharded"``: each holds its part
        of the rows (:class:`la_core.shards.Dealt`). The run is the same.

    Returns
    -------
    Run
        With the final state, the encoder, and the history.

    Raises
    ------
    LaCoreError
        Bad settings, data or labels, before anything is learnt; embeddings or gradients that are not finite, at the
        step where they arise and before bank or weights are touched. ``KeyboardInterrupt`` passes through. In every
        case the run folder is left complete up to the last epoch, with the state as it stands.
    CheckpointError
        A checkpoint of another run, or damaged; one that cannot be written.
    DistributedError
        Another process has died, does not answer in time, or has other settings, data or shapes.
    Terminated
        SIGTERM came: the step was finished and a checkpoint saved. It is a ``SystemExit`` of status 143.
    """
    _check_resume(folder, resume, checkpoint_every, checkpoint_unit)
    source, team = samples(data), Team(backend)
    settings = (settings or Settings()).resolved(len(source))
    _check_store(settings, backend, folder)
    layout = Layout(bank_layout, len(source), team, settings)
    if layout.sharded and settings.search == "lists":
        raise SettingsError("search='lists' reads the whole bank: set bank_layout='replicated', or search='exact'")
    view = view or default_view(source[0])
    if labels is not None:
        labels = _brought(labels, len(source), settings)
    callbacks = [*callbacks, *([Progress()] if progress and team.first else [])]
    tests = None if test is None else samples(test)
    with (
        nullcontext() if folder is None or not team.first else RunFolder(folder, resume) as files,
        Workers(workers, source, *([] if tests is None else [tests])) as loaders,
    ):
        backend.seed(settings.seed if team.first else derived_seed(settings.seed, "process", team.comm.rank))
        found = None if files is None else files.found
        of = {} if folder is None and team.alone else identity(source, view, labels)
        saving = Saving(of, checkpoint_every, checkpoint_unit, folder is not None)
        if found is not None:
            fit(found, source, settings, of)
        how = {"bank_layout": bank_layout, "checkpoints": [checkpoint_every, checkpoint_unit], "resume": resume}
        team.enter(encoder, asdict(settings) | of | how | {"folder": folder is not None})
        found = told(found, team)
        saved = None if found is None else found.arrays["state"].get("bank")
        rows = partial(_first_rows, source, view, encoder, backend, settings, loaders)
        if files is not None and settings.bank_store == "file":
            dim = _width(source, view, encoder, backend, settings) if saved is None else saved.shape[1]
            bank = files.bank((len(source), dim), settings.stored_dtype)
            if saved is None:
                _fill(bank, rows, settings)
            else:
                bank[...] = saved
        else:
            bank = layout.made(rows(layout.own)) if found is None else layout.told(saved)
        run, memory = Run(source, tests, view, encoder, backend, settings, State(bank)), Memory()
        run.workers = loaders
        if found is not None:
            restore(found, run, memory)
            found.arrays.clear()  # the bank would be held twice
        return _Trainer(run, layout, memory, files, saving, callbacks, labels).train()


def _check_resume(folder: str | Path | None, resume: str, every: int, unit: str) -> None:
    for name, value, allowed in (("resume", resume, MODES), ("checkpoint_unit", unit, UNITS)):
        if value not in allowed:
            raise SettingsError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}")
    if isinstance(every, bool) or not isinstance(every, int) or every < 0:
        raise SettingsError(f"checkpoint_every must be an integer of at least 0; got {every!r}")
    if resume != "never" and folder is None:
        raise SettingsError(f"resume={resume!r} needs the folder of the run: folder=...")


def _brought(labels: np.ndarray, n: int, settings: Settings) -> np.ndarray:
    """Labels that the user brings, checked, in a dtype that every library has."""
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.shape[1] != n or not len(labels) or labels.dtype.kind not in "iu":
        raise ShapeError(
            f"labels must be integers of shape (H, {n}), one row for each clustering; got {labels.shape} {labels.dtype}"
        )
    if settings.search == "lists":
        if not 0 <= labels.max() < n:
            raise RangeError(f"labels must be below {n} for search='lists', and one at least 0; got {labels.max()}")
        # refuses too few probes for lists of these sizes
        replace(settings, n_clusters=1 + int(labels.max()), n_clusterings=len(labels)).resolved(n)
    return labels if labels.dtype in (np.int32, np.int64) else labels.astype(np.int64)


def _check_store(settings: Settings, backend: Backend, folder: str | Path | None) -> None:
    if settings.bank_store == "file" and (folder is None or backend.name != "numpy"):
        raise SettingsError(
            f"bank_store='file' needs the numpy backend and the folder of the run; got {backend.name!r} and "
            f"folder={folder!r}"
        )


class _Trainer:
    """The loop, and what it keeps between epochs beside the run itself."""

    def __init__(
        self,
        run: Run,
        layout: Layout,
        memory: Memory,
        folder: RunFolder | None,
        saving: Saving,
        callbacks: Sequence[Callback],
        given_labels: np.ndarray | None,
    ) -> None:
        self.run, self.memory, self.folder, self.saving = run, memory, folder, saving
        self.team, self.layout = run.team, layout
        self.callbacks, self.given_labels = callbacks, given_labels
        self.termination = termination.Notice()
        self.asked = False
        self._compile()

    def train(self) -> Run:
        with termination.heeded(self.saving.folder) as self.termination:
            return self._train()

    def _train(self) -> Run:
        run = self.run
        begins = run.step == 0
        if begins:
            self._keep()
        if self.folder is not None:
            self.folder.start(run.settings, run.history)
        try:
            self._tell("on_start" if begins else "on_resume")
            with closing(run.workers.stream(run.data, self._upcoming(), run.view)) as loaded:
                for epoch in range(len(run.history), run.settings.epochs):
                    run.epoch = epoch
                    run.phase = WARM_UP if run.epoch < run.settings.warmup_epochs else AGGREGATION
                    self._epoch(loaded)
                    if epoch + 1 in (run.settings.warmup_epochs, run.settings.epochs):
                        self._tell("on_phase_end")
                    self._keep()
            run.status = "finished"
        except KeyboardInterrupt:
            run.status = "interrupted"
            raise
        except Terminated:
            run.status = "terminated"
            raise
        except BaseException:
            run.status = "failed"
            raise
        finally:
            self._end()
        return run

    def _order(self, epoch: int) -> list[np.ndarray]:
        """The batches of an epoch."""
        settings = self.run.settings
        return batches(len(self.run.data), settings.batch(epoch), seed=settings.seed, epoch=epoch)

    def _upcoming(self) -> Iterator[Batch]:
        """Of each batch from here to the end the part of this process: the next epoch is loaded while one is closed."""
        seed, made = self.run.settings.seed, self.memory.number
        for epoch in range(len(self.run.history), self.run.settings.epochs):
            keys = (seed, epoch), (derived_seed(seed, "second view"), epoch)
            for batch in self._order(epoch)[made:]:
                yield batch[self.team.own(len(batch))], keys[: self.run.settings.views]
            made = 0

    def _epoch(self, loaded: Iterator[Loaded]) -> None:
        run, settings, memory = self.run, self.run.settings, self.memory
        order = self._order(run.epoch)
        for number, indices in list(enumerate(order))[memory.number :]:
            if run.phase == AGGREGATION and self._due(number, len(order)):
                self._cluster()
            with self._clock("load"):
                _, views = next(loaded)
            told: tuple[Any, ...]
            try:
                loss, n_close = self._step(indices, views, settings.rate(run.epoch + number / len(order)))
            except NotFiniteError as error:
                self._hold_back(error, indices)
                told = "on_skip", error
            else:
                memory.in_a_row = 0
                memory.losses.append(loss)
                if n_close is not None:
                    memory.close.append(n_close)
                told = "on_step", float(loss.mean())
            run.step += 1
            memory.number += 1
            run.last_batch = len(indices)
            self._tell(*told)
            if memory.number < len(order) or self._asked():  # at the end the epoch's record comes first
                self._keep()
        if not memory.losses:
            raise NotFiniteError(f"every step of epoch {run.epoch + 1} was skipped: nothing is being learnt")
        record: dict[str, Any] = {
            "epoch": run.epoch + 1,
            "step": run.step,
            "phase": run.phase,
            "loss": float(np.concatenate(memory.losses).mean()),
            "learning_rate": settings.rate(run.epoch),
        }
        if memory.close:
            sizes = np.concatenate(memory.close)
            record |= {"without_close": float((sizes == 0).mean()), "mean_close": float(sizes.mean())}
        if settings.on_not_finite == "skip":
            record["skipped"] = memory.skipped
        if memory.inertia:
            record["inertia"] = memory.inertia
        if memory.recall:
            record["recall"] = memory.recall[-1]
        if settings.knn_every and (run.epoch + 1) % settings.knn_every == 0:
            record |= self._measure()
        if settings.health_every and (run.epoch + 1) % settings.health_every == 0:
            with self._clock("health"):
                record["health"] = memory.health.record(run, brought=self.given_labels is not None)
            record["warnings"] = memory.health.warnings(record, settings, len(run.data))
        self._agree()
        total = time.perf_counter() - memory.began
        record["seconds"] = {name: round(s, 4) for name, s in memory.seconds.items()} | {"epoch": round(total, 4)}
        run.history.append(record)
        memory.next_epoch()
        if self.folder is not None:
            self.folder.append(record)
            self.folder.status(run.status, epoch=run.epoch + 1, epochs=settings.epochs)
        self._tell("on_epoch", record)

    def _step(
        self, indices: np.ndarray, views: np.ndarray, learning_rate: float
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """One batch: all of its indices, and the views that are this process's to embed.

        Returns the loss of each row and, in Local Aggregation, how many close neighbours it has.

        Raises
        ------
        NotFiniteError
            Embeddings, loss or gradients: neither bank nor weights have moved.
        """
        run, team, n, n_views = self.run, self.team, len(indices), self.run.settings.views
        with self._clock("load"):
            batch = run.backend.asarray(views.astype(run.settings.dtype, copy=False), copy=False)
            rows = run.backend.asarray(indices)
        with self._clock("encode"):
            mine, back = run.encoder.pullback(batch)
            if not team.alone:
                whole = mine.shape[0] == batch.shape[0]
                facts = {"step": run.step, "one row each": whole, "embedding": [mine.shape[1], mine.dtype]}
                self.asked = team.agree("a step", facts, self.termination.given)
            z = team.joined(mine, n, n_views)
            if not team.alone:
                check.finite("z", z)  # all of them see it, though each works on rows of its own from here
        with self._clock("objective"):
            terms, run.state = self._objective(z, run.state, rows)
            loss = self._host(terms.loss)
            check.finite("loss", loss)  # compiled, an objective cannot look at its numbers
        with self._clock("backward"):
            back(team.mine(terms.cotangent, n, n_views))
            team.sum_gradients(run.encoder)
            run.encoder.step(learning_rate)
        with self._clock("update"):
            run.state = self._update(run.state, rows, z)
        return loss, None if terms.n_close is None else self._host(terms.n_close)

    def _hold_back(self, error: NotFiniteError, indices: np.ndarray) -> None:
        """Go on without the step that raised this, or end the run, as the settings say."""
        run, settings, memory = self.run, self.run.settings, self.memory
        if hasattr(run.encoder, "revert"):
            run.encoder.revert()
        memory.skipped += 1
        memory.in_a_row += 1
        where = f"{error} (at step {run.step + 1}, epoch {run.epoch + 1})"
        todo = f"lower the learning rate, or look at the samples {indices[:8].tolist()}..."
        if settings.on_not_finite == "raise":
            raise NotFiniteError(f"{where}: {todo}") from error
        if memory.in_a_row > settings.most_skipped:
            raise NotFiniteError(f"{where}, after {memory.in_a_row - 1} steps in a row were skipped: {todo}") from error
        warnings.warn(f"{where}: the step is skipped, and neither encoder nor bank have moved", stacklevel=2)

    def _objective(self, z: Array, state: State, rows: Array) -> tuple[Terms, State]:
        """The loss of the phase, and the state as it was."""
        run, settings = self.run, self.run.settings
        if run.phase == AGGREGATION:
            return self._aggregate(z, state, rows, self.memory.lists)
        if settings.warmup != "nce":
            return self._discriminate(z, state, rows)
        draw = generator(settings.seed, "noise", run.step)
        noise = draw.integers(len(run.data), size=(rows.shape[0], settings.n_noise))
        return self._discriminate(z, state, rows, run.backend.asarray(noise))

    def _compile(self) -> None:
        """The arithmetic of a step: pure functions of arrays, with every setting bound."""
        settings, compiled, layout = self.run.settings, self.run.backend.compile, self.layout

        def over_views(objective: Callable[..., Terms], z: Array, state: State, rows: Array) -> tuple[Terms, State]:
            if settings.views == 2:
                return fresh_rows(objective, z, state, rows)
            return objective(z, state, rows), state

        def aggregate(z: Array, state: State, rows: Array, among: lists.Lists | None) -> tuple[Terms, State]:
            assert settings.n_background is not None  # resolved, as below
            assert settings.probes is not None
            assert settings.warmup_temperature is not None
            objective: Callable[..., Terms] = partial(
                local_aggregation_terms,
                n_background=settings.n_background,
                temperature=settings.temperature,
                combine=settings.combine,
                budget=settings.budget,
                lists=among,
                probes=settings.probes,
            )
            objective = layout.dealt(objective)
            if settings.instance_weight:
                objective = with_instances(objective, settings.instance_weight, settings.warmup_temperature)
            return over_views(objective, z, state, rows)

        def discriminate(z: Array, state: State, rows: Array, noise: Array | None = None) -> tuple[Terms, State]:
            def objective(z: Array, state: State, rows: Array, noise: Array | None = None) -> Terms:
                assert settings.warmup_temperature is not None  # resolved
                return Terms(
                    *instance_discrimination_and_cotangent(
                        *(z, state.bank, rows),
                        temperature=settings.warmup_temperature,
                        noise=noise,
                        budget=settings.budget,
                    )
                )

            if settings.warmup == "batch":  # the batch is all the bank there is
                xp = array_namespace(rows)
                own = xp.arange(rows.shape[0], dtype=rows.dtype, device=device(rows))
                return fresh_rows(objective, z, State(kernels.wide(kernels.rows_at(state.bank, rows))), own)[0], state
            return over_views(layout.dealt(objective, noise), z, state, rows)

        def moved(state: State, rows: Array, z: Array) -> State:
            every = array_namespace(rows).concat([rows] * settings.views)
            return update(state, every, z, mixing=settings.mixing)

        self._aggregate: Step = compiled(aggregate, (1,))
        self._discriminate: Step = compiled(discriminate, (1,))
        self._update: Callable[[State, Array, Array], State] = compiled(moved, (0,))

    def _due(self, number: int, per_epoch: int) -> bool:
        """Whether to cluster before this step: at the first of Local Aggregation, and then as often as settings say."""
        settings = self.run.settings
        if self.run.state.labels is None:
            return True
        epoch = self.run.epoch - settings.warmup_epochs
        if settings.recluster_unit == "steps":
            return (epoch * per_epoch + number) % settings.recluster_every == 0
        return number == 0 and epoch % settings.recluster_every == 0

    def _cluster(self) -> None:
        run, settings = self.run, self.run.settings
        assert settings.n_clusters is not None  # resolved
        if self.given_labels is not None:
            run.state = run.state._replace(labels=run.backend.asarray(self.given_labels))  # a step may consume them
        else:
            with self._clock("cluster"):
                result = cluster(
                    self.layout.for_clustering(run.state.bank),
                    n_clusters=settings.n_clusters,
                    n_clusterings=settings.n_clusterings,
                    seed=derived_seed(settings.seed, "round", run.step),
                    n_iter=settings.n_iter,
                    tolerance=settings.tolerance,
                    start=self._last_labels(),
                )
            run.state = run.state._replace(labels=result.labels)
            self.memory.inertia = self._host(result.inertia).tolist()
        if settings.search == "lists":
            with self._clock("lists"):
                self._list()

    def _last_labels(self) -> Array | None:
        """Where clusterings go on from, if they do: after a resume there may be fewer clusters than there were."""
        settings, labels = self.run.settings, self.run.state.labels
        if settings.cluster_start != "last" or labels is None or labels.shape[0] != settings.n_clusterings:
            return None
        most = self._host(labels).max(axis=1)
        return labels if (most < np.asarray(settings.n_clusters)).all() else None

    def _list(self) -> None:
        """The lists of these clusterings, and how much of the backgrounds of some rows of the bank they hold."""
        run, settings = self.run, self.run.settings
        assert settings.n_background is not None  # resolved, as below
        assert settings.probes is not None
        bank, labels = run.state.bank, run.state.labels
        xp = array_namespace(bank)
        self.memory.lists = lists.lists(bank, labels, 1 + int(xp.max(labels)))
        some = generator(settings.seed, "recall", run.step).integers(len(run.data), size=RECALLED)
        queries = xp.take(bank, run.backend.asarray(some), axis=0)
        recall = lists.recall(queries, bank, self.memory.lists, settings.n_background, settings.probes)
        self.memory.recall.append(recall)

    def _measure(self) -> dict[str, Any]:
        """Weighted kNN against the bank: of the test samples, or leave-one-out where there are none."""
        run, settings = self.run, self.run.settings
        known = run.test is not None and run.test.classes is not None
        if run.data.classes is None or settings.knn_k is None or (not known and len(run.data) < 2):
            return {}
        asarray, bank = run.backend.asarray, run.state.bank
        with self._clock("measure"):
            if run.test is not None and run.test.classes is not None:
                queries, truth, own = asarray(run.embed(run.test).embeddings), run.test.classes, None
            else:
                queries, truth, own = bank, run.data.classes, asarray(np.arange(len(run.data)))
            classify = partial(
                evaluate.knn,
                labels=asarray(run.data.classes),
                k=min(settings.knn_k, len(run.data) - (own is not None)),
                temperature=settings.knn_temperature,
                budget=settings.budget,
                as_it_is=kernels.apart(bank),
            )
            predicted = self.layout.over_queries(classify, bank, queries, own)
        return {"knn": float((self._host(predicted) == truth).mean())}

    def _keep(self) -> None:
        """A checkpoint where one is due, and where the run has been asked to end; then it does."""
        asked, every = self._asked(), self.saving.every
        if self.saving.due(self.run, self.memory) or (asked and every):
            found = snapshot(self.run, self.memory, self.saving.identity)
            if self.folder is not None:
                self.folder.checkpoints.save(found)
        if asked:
            kept = "it goes on by resume='auto'" if every else "without a checkpoint, for checkpoint_every is 0"
            raise Terminated(f"the run was asked to end after step {self.run.step}; {kept}")

    def _asked(self) -> bool:
        """Whether the run has been asked to end: of several processes, as they agreed in the last step."""
        return self.termination.given if self.team.alone else self.asked

    def _agree(self) -> None:
        """At the end of an epoch: the processes have the same weights and labels and, replicated, the same bank."""
        if self.team.alone:
            return
        run = self.run
        arrays = dict(run.encoder.weights())
        if run.state.labels is not None:
            arrays["labels"] = self._host(run.state.labels)
        if not self.layout.sharded:
            arrays["bank"] = self._host(run.state.bank)
        self.team.agree("an epoch", {name: digest(x) for name, x in arrays.items()})

    def _end(self) -> None:
        """The files as they stand, and the last word. What cannot be saved after an error does not hide it."""
        run = self.run
        try:
            self._save()
        except Exception as error:
            if run.status == "finished":
                run.status = "failed"
                if isinstance(error, OSError):
                    raise RunFolderError(f"the files of the run cannot be saved: {error}") from error
                raise
            warnings.warn(f"the run ends, and its files could not be saved as they stand: {error}", stacklevel=2)
        finally:
            if self.folder is not None:
                with nullcontext() if run.status == "finished" else suppress(OSError):
                    self.folder.status(run.status, epoch=len(run.history), epochs=run.settings.epochs)
            self._tell("on_end")

    def _save(self) -> None:
        run, bank = self.run, None
        if self.team.alone or not self.layout.sharded or run.status in ("finished", "terminated"):
            # ... else the others may be gone
            bank = shards.whole(run.state.bank, self._host)
        if self.folder is None:
            return
        if bank is not None:
            labels = {} if run.state.labels is None else {"labels": self._host(run.state.labels)}
            self.folder.arrays("embeddings.npz", {"bank": bank, **labels})
        self.folder.arrays("encoder.npz", run.encoder.weights())

    def _host(self, x: Array) -> np.ndarray:
        return self.run.backend.to_host(x)

    def _tell(self, event: str, *facts: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self.run, *facts)

    @contextmanager
    def _clock(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        seconds = self.memory.seconds
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began


def _first_rows(
    data: Samples,
    view: View,
    encoder: Encoder,
    backend: Backend,
    settings: Settings,
    workers: Workers,
    chosen: np.ndarray,
    drawn: np.ndarray | None = None,
) -> np.ndarray:
    """Rows of the bank before the first step (n, D): one pass of the encoder, or random unit rows.

    Where they are at hand, ``drawn`` are the random rows (n, D) of those chosen.
    """

    def at_random(dim: int) -> np.ndarray:
        every = random_rows(len(data), dim, seed=settings.seed)[chosen] if drawn is None else drawn
        return every.astype(settings.dtype)

    if settings.bank_start == "random":
        return at_random(_width(data, view, encoder, backend, settings) if drawn is None else drawn.shape[1])
    z = evaluate.embed(
        *(encoder, backend, data, view, settings.batch_size, settings.dtype), workers=workers, indices=chosen
    ).embeddings
    rows = np.asarray(unit(z.astype(settings.dtype, copy=False)))
    lost = ~rows.any(axis=1)  # an embedding of zeros has no direction: any will do
    if lost.any():
        rows[lost] = at_random(rows.shape[1])[lost]
    return rows


def _width(data: Samples, view: View, encoder: Encoder, backend: Backend, settings: Settings) -> int:
    one = backend.asarray(load(data, [0], view).astype(settings.dtype, copy=False))
    return int(encoder.apply(one)[0].shape[1])


def _fill(bank: np.ndarray, rows: Callable[[np.ndarray, np.ndarray], np.ndarray], settings: Settings) -> None:
    """A bank in a file, before the first step: in parts, for memory may not hold it."""
    for some, drawn in random_parts(*bank.shape, seed=settings.seed, size=PART * settings.batch_size):
        bank[some] = rows(np.arange(some.start, some.stop), drawn)
