"""The run, written once for every backend: warm-up by Instance Discrimination, clustering, Local Aggregation.

A step, in the order that matters: embed the batch, take the loss against the *old* bank, differentiate, move the
encoder, and only then mix the new embeddings into the bank.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from la_core import evaluate
from la_core.bank import State, random_rows, unit, update
from la_core.clusters import cluster
from la_core.data import Samples, batches, load, samples
from la_core.errors import NotFiniteError, ShapeError
from la_core.folder import RunFolder
from la_core.kernels import Array
from la_core.objectives import Terms, instance_discrimination_and_cotangent, local_aggregation_terms
from la_core.progress import Progress
from la_core.protocol import Backend, Encoder
from la_core.randomness import derived_seed, generator
from la_core.run import AGGREGATION, WARM_UP, Callback, Run
from la_core.settings import Settings
from la_core.views import View, default_view


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
) -> Run:
    """Learn embeddings in which like things gather.

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
        An empty or a new folder for the files of the run: see :mod:`la_core.folder`.
    callbacks
        Told of every step, epoch and phase, in order.
    progress
        A live bar on stderr.

    Returns
    -------
    Run
        With the final state, the encoder, and the history.

    Raises
    ------
    LaCoreError
        Bad settings, data or labels, before anything is learnt; embeddings that are not finite, at the step where
        they arise and before the bank is touched. ``KeyboardInterrupt`` passes through. In every case the run folder
        is left complete up to the last epoch, with the state as it stands.
    """
    source = samples(data)
    settings = (settings or Settings()).resolved(len(source))
    view = view or default_view(source[0])
    labels = None if labels is None else np.asarray(labels)
    if labels is not None and (labels.ndim != 2 or labels.shape[1] != len(source) or labels.dtype.kind not in "iu"):
        raise ShapeError(
            f"labels must be integers of shape (H, {len(source)}), one row for each clustering; "
            f"got {labels.shape} {labels.dtype}"
        )
    files = None if folder is None else RunFolder(folder)
    backend.seed(settings.seed)
    bank = backend.asarray(_first_bank(source, view, encoder, backend, settings))
    run = Run(source, None if test is None else samples(test), view, encoder, backend, settings, State(bank))
    told = [*callbacks, *([Progress()] if progress else [])]
    if files is not None:
        files.start(settings)
    return _Trainer(run, files, told, None if labels is None else backend.asarray(labels)).train()


class _Trainer:
    """The loop, and what it keeps between epochs beside the run itself."""

    def __init__(
        self, run: Run, folder: RunFolder | None, callbacks: Sequence[Callback], given_labels: Array | None
    ) -> None:
        self.run, self.folder, self.callbacks, self.given_labels = run, folder, callbacks, given_labels
        self.seconds: dict[str, float] = {}
        self.inertia: list[float] = []

    def train(self) -> Run:
        run = self.run
        try:
            self._tell("on_start")
            for epoch in range(run.settings.epochs):
                run.epoch = epoch
                run.phase = WARM_UP if run.epoch < run.settings.warmup_epochs else AGGREGATION
                self._epoch()
                if epoch + 1 in (run.settings.warmup_epochs, run.settings.epochs):
                    self._tell("on_phase_end")
            run.status = "finished"
        except KeyboardInterrupt:
            run.status = "interrupted"
            raise
        except BaseException:
            run.status = "failed"
            raise
        finally:
            self._save()
            self._tell("on_end")
        return run

    def _epoch(self) -> None:
        run, settings = self.run, self.run.settings
        self.seconds, self.inertia = {}, []
        began = time.perf_counter()
        order = batches(len(run.data), settings.batch_size, seed=settings.seed, epoch=run.epoch)
        losses, close = [], []
        for number, indices in enumerate(order):
            if run.phase == AGGREGATION and self._due(number, len(order)):
                self._cluster()
            progress = run.epoch + number / len(order)
            terms = self._step(indices, settings.rate(progress))
            losses.append(self._host(terms.loss))
            if terms.n_close is not None:
                close.append(self._host(terms.n_close))
            run.step += 1
            run.last_batch = len(indices)
            self._tell("on_step", float(losses[-1].mean()))
        record: dict[str, Any] = {
            "epoch": run.epoch + 1,
            "step": run.step,
            "phase": run.phase,
            "loss": float(np.concatenate(losses).mean()),
            "learning_rate": settings.rate(run.epoch),
        }
        if close:
            sizes = np.concatenate(close)
            record |= {"without_close": float((sizes == 0).mean()), "mean_close": float(sizes.mean())}
        if self.inertia:
            record["inertia"] = self.inertia
        if settings.knn_every and (run.epoch + 1) % settings.knn_every == 0:
            record |= self._measure()
        total = time.perf_counter() - began
        record["seconds"] = {name: round(s, 4) for name, s in self.seconds.items()} | {"epoch": round(total, 4)}
        run.history.append(record)
        if self.folder is not None:
            self.folder.append(record)
            self.folder.status(run.status, epoch=run.epoch + 1, epochs=settings.epochs)
        self._tell("on_epoch", record)

    def _step(self, indices: np.ndarray, learning_rate: float) -> Terms:
        run, settings = self.run, self.run.settings
        with self._clock("load"):
            host = load(run.data, indices, run.view, (settings.seed, run.epoch))
            batch = run.backend.asarray(host.astype(settings.dtype, copy=False))
            rows = run.backend.asarray(indices)
        with self._clock("encode"):
            z, back = run.encoder.pullback(batch)
        with self._clock("objective"):
            try:
                terms = self._objective(z, rows)
            except NotFiniteError as error:
                raise NotFiniteError(
                    f"{error} (embeddings at step {run.step + 1}, epoch {run.epoch + 1}): lower the learning rate, "
                    f"or look at the samples {indices[:8].tolist()}..."
                ) from None
        with self._clock("backward"):
            back(terms.cotangent)
            run.encoder.step(learning_rate)
        with self._clock("update"):
            run.state = update(run.state, rows, z, mixing=settings.mixing)
        return terms

    def _objective(self, z: Array, rows: Array) -> Terms:
        run, settings = self.run, self.run.settings
        if run.phase == AGGREGATION:
            assert settings.n_background is not None  # resolved
            return local_aggregation_terms(
                z,
                run.state,
                rows,
                n_background=settings.n_background,
                temperature=settings.temperature,
                combine=settings.combine,
                budget=settings.budget,
            )
        noise = None
        if settings.warmup == "nce":
            draw = generator(settings.seed, "noise", run.step)
            noise = run.backend.asarray(draw.integers(len(run.data), size=(z.shape[0], settings.n_noise)))
        return Terms(
            *instance_discrimination_and_cotangent(
                z, run.state.bank, rows, temperature=settings.temperature, noise=noise, budget=settings.budget
            )
        )

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
        if self.given_labels is not None:
            run.state = run.state._replace(labels=self.given_labels)
            return
        assert settings.n_clusters is not None  # resolved
        with self._clock("cluster"):
            result = cluster(
                run.state.bank,
                n_clusters=settings.n_clusters,
                n_clusterings=settings.n_clusterings,
                seed=derived_seed(settings.seed, "round", run.step),
                n_iter=settings.n_iter,
            )
        run.state = run.state._replace(labels=result.labels)
        self.inertia = self._host(result.inertia).tolist()

    def _measure(self) -> dict[str, Any]:
        """Weighted kNN against the bank: of the test samples, or leave-one-out where there are none."""
        run, settings = self.run, self.run.settings
        if run.data.classes is None or settings.knn_k is None or (run.test is None and len(run.data) < 2):
            return {}
        asarray, bank = run.backend.asarray, run.state.bank
        with self._clock("measure"):
            if run.test is not None and run.test.classes is not None:
                queries, truth, own = asarray(run.embed(run.test).embeddings), run.test.classes, None
            else:
                queries, truth, own = bank, run.data.classes, asarray(np.arange(len(run.data)))
            predicted = evaluate.knn(
                bank,
                asarray(run.data.classes),
                queries,
                k=min(settings.knn_k, len(run.data) - (own is not None)),
                temperature=settings.knn_temperature,
                own=own,
                budget=settings.budget,
            )
        return {"knn": float((self._host(predicted) == truth).mean())}

    def _save(self) -> None:
        if self.folder is None:
            return
        run = self.run
        arrays = {"bank": self._host(run.state.bank)}
        if run.state.labels is not None:
            arrays["labels"] = self._host(run.state.labels)
        self.folder.arrays("embeddings.npz", arrays)
        self.folder.arrays("encoder.npz", run.encoder.weights())
        self.folder.status(run.status, epoch=len(run.history), epochs=run.settings.epochs)

    def _host(self, x: Array) -> np.ndarray:
        return self.run.backend.to_host(x)

    def _tell(self, event: str, *facts: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self.run, *facts)

    @contextmanager
    def _clock(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


def _first_bank(data: Samples, view: View, encoder: Encoder, backend: Backend, settings: Settings) -> np.ndarray:
    """The bank before the first step (N, D): one pass of the encoder, or random unit rows."""
    if settings.bank_start == "random":
        one = backend.asarray(load(data, [0], view, None).astype(settings.dtype, copy=False))
        rows = random_rows(len(data), encoder.apply(one)[0].shape[1], seed=settings.seed)
        return rows.astype(settings.dtype)
    z = evaluate.embed(encoder, backend, data, view, settings.batch_size, settings.dtype).embeddings
    rows = np.asarray(unit(z.astype(settings.dtype, copy=False)))
    lost = np.flatnonzero(~rows.any(axis=1))  # an embedding of zeros has no direction: any will do
    rows[lost] = random_rows(len(data), rows.shape[1], seed=settings.seed)[lost]
    return rows
