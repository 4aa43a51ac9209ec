"""What the report needs beside the metrics, collected while the run has its encoder and its data at hand.

A run folder gets two files more; nothing in them grows with the number of samples.

``evaluation.json``
    ``format``       1
    ``phases``       names of the moments at which densities were taken, in order
    ``density``      ``k_local``, ``k_background``, ``samples``
    and, once the run has finished:
    ``class_names``  by class, or empty
    ``queries``      in words: who was asked for its neighbours
    ``knn``          ``ks``, ``temperatures``, ``accuracy`` (len(ks), len(temperatures)), ``protocol`` in words; or null
    ``class_accuracy``  of each class that has queries, by its number; absent where no classes are known

``evaluation.npz``
    ``density_<i>``  (2, S) float32, local and background density of the same S samples at phase i
    ``map_indices``, ``map_classes`` (P,), ``map_embeddings`` (P, D): training samples for the map; class -1 is unknown
    ``gallery_kind``, ``gallery_queries``, ``gallery_classes``, ``gallery_predicted``, ``gallery_confidence`` (M,)
    ``gallery_neighbours``, ``gallery_neighbour_classes``, ``gallery_cosines`` (M, k)
    ``gallery_query_images`` (M, h, w, 3), ``gallery_images`` (M, k, h, w, 3) uint8, where the samples are images
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from la_core import evaluate, kernels
from la_core.bank import unit
from la_core.data import Samples
from la_core.evaluate import Gallery
from la_core.folder import whole
from la_core.neighbours import nearest
from la_core.randomness import generator
from la_core.run import Callback, Run

K_LOCAL = 30
DENSITY_SAMPLES = 2000
"""Samples whose densities are kept, for a histogram."""
QUERIES = 2000
"""Training samples that are asked for their neighbours where no test samples are."""
KS, TEMPERATURES = (1, 10, 20, 50, 200), (0.03, 0.07, 0.1, 0.2, 0.5)
MAP_CLASSES, MAP_PER_CLASS = 6, 100
"""Classes of highest and of lowest accuracy on the map, and samples of each: as in the paper's figure."""
GALLERY, NEIGHBOURS = 8, 10
"""Successes, and failures; and neighbours of each."""
THUMBNAIL = 64
"""Longest side of a picture of the gallery, in pixels."""

JSON, ARRAYS = "evaluation.json", "evaluation.npz"


class Recorder(Callback):
    """Writes ``evaluation.json`` and ``evaluation.npz`` into the run folder, at the end of each phase.

    Densities are those of the bank, so they cost no pass of the encoder; the rest takes one pass, at the end.
    """

    def __init__(self, folder: str | Path, class_names: Sequence[str] = ()) -> None:
        self.folder = Path(folder)
        self.facts: dict[str, Any] = {"format": 1, "phases": [], "class_names": list(class_names)}
        self.arrays: dict[str, np.ndarray] = {}

    def on_start(self, run: Run) -> None:
        """The densities of a bank that the untrained encoder has filled."""
        if run.settings.bank_start == "encoder":
            self._density(run, "untrained")
        self._write(run)

    def on_resume(self, run: Run) -> None:
        """What was recorded before the run was stopped; what comes again takes its own place again."""
        with suppress(OSError, ValueError, BadZipFile):  # missing or cut off: the page says what it lacks
            facts = json.loads((self.folder / JSON).read_text())
            with np.load(self.folder / ARRAYS, allow_pickle=False) as saved:
                self.facts, self.arrays = self.facts | facts, dict(saved)

    def on_phase_end(self, run: Run) -> None:
        """The densities of the bank as it stands."""
        self._density(run, f"after {run.phase}")
        self._write(run)

    def on_end(self, run: Run) -> None:
        """Neighbours, votes and a map, if the run came to its end."""
        if run.status != "finished":
            return
        train = run.embed().embeddings
        self._neighbours(run, train)
        self._map(run, train)
        self._write(run)

    def _density(self, run: Run, phase: str) -> None:
        n = run.state.bank.shape[0]
        if n < 2:
            return
        chosen = np.sort(generator(run.settings.seed, "densities").permutation(n)[:DENSITY_SAMPLES])
        k_local = min(K_LOCAL, n - 1)
        found = evaluate.densities(
            run.state.bank,
            k_local=k_local,
            indices=run.backend.asarray(chosen),
            budget=run.settings.budget,
            as_it_is=kernels.apart(run.state.bank),
        )
        if phase not in self.facts["phases"]:
            self.facts["phases"].append(phase)
        self.arrays[f"density_{self.facts['phases'].index(phase)}"] = np.stack(
            [run.backend.to_host(x).astype(np.float32) for x in found]
        )
        self.facts["density"] = {"k_local": k_local, "k_background": min(4096, n - 1), "samples": len(chosen)}

    def _neighbours(self, run: Run, train: np.ndarray) -> None:
        """Who is near whom; and what that says about classes, where they are known."""
        settings, asarray = run.settings, run.backend.asarray
        if run.test is not None and (run.test.classes is not None or run.data.classes is None):
            asked, own = run.test, None
            queries = run.embed(run.test).embeddings
            self.facts["queries"] = f"{len(asked)} test samples"
        else:
            own = np.sort(generator(settings.seed, "queries").permutation(len(run.data))[:QUERIES])
            asked, queries = run.data.part(own), train[own]
            self.facts["queries"] = f"{len(asked)} training samples, each left out of its own neighbours"
        most = len(train) - (own is not None)
        if most < 1:
            return
        mine = None if own is None else asarray(own)
        if run.data.classes is not None and asked.classes is not None:
            assert settings.knn_k is not None  # resolved
            classes, truth = asarray(run.data.classes), asarray(asked.classes)
            bank, lines, k = asarray(train), asarray(queries), min(settings.knn_k, most)
            grid = evaluate.knn_grid(
                bank,
                classes,
                lines,
                truth,
                ks=sorted({*(k for k in KS if k <= most), k}),
                temperatures=sorted({*TEMPERATURES, settings.knn_temperature}),
                own=mine,
                budget=settings.budget,
                source="training samples embedded by the encoder as it ended",
                layer="embedding",
                crop="evaluation view",
            )
            self.facts["knn"] = {
                "ks": list(grid.ks),
                "temperatures": list(grid.temperatures),
                "accuracy": grid.accuracy.tolist(),
                "protocol": str(grid).partition("\n\n")[0].replace("\n", "; "),
            }
            votes: dict[str, Any] = {"temperature": settings.knn_temperature, "own": mine, "budget": settings.budget}
            right = run.backend.to_host(evaluate.knn(bank, classes, lines, k=k, **votes)) == asked.classes
            self.facts["class_accuracy"] = {
                int(c): float(right[asked.classes == c].mean()) for c in np.intersect1d(asked.classes, run.data.classes)
            }
            shown = evaluate.gallery(bank, classes, lines, truth, k=min(NEIGHBOURS, most), n=GALLERY, voters=k, **votes)
            self._gallery(run, asked, own, Gallery(shown.kind, *(run.backend.to_host(x) for x in shown[1:])))
        else:
            self._gallery(run, asked, own, _plain(run, train, queries, own))

    def _gallery(self, run: Run, asked: Samples, own: np.ndarray | None, shown: Gallery) -> None:
        chosen, found = np.asarray(shown.queries), np.asarray(shown.neighbours)
        self.arrays |= {
            "gallery_kind": np.array(shown.kind),
            "gallery_queries": chosen if own is None else own[chosen],
            "gallery_classes": np.full(len(chosen), -1) if asked.classes is None else asked.classes[chosen],
            "gallery_predicted": np.asarray(shown.predicted),
            "gallery_confidence": np.asarray(shown.confidence, dtype=np.float32),
            "gallery_neighbours": found,
            "gallery_neighbour_classes": (
                np.full_like(found, -1) if run.data.classes is None else run.data.classes[found]
            ),
            "gallery_cosines": np.asarray(shown.cosines, dtype=np.float32),
        }
        first = asked[int(chosen[0])] if len(chosen) else np.empty(0)
        if is_image(first):
            side = min(THUMBNAIL, max(first.shape[:2]))
            pictures = [thumbnail(asked[int(q)], side) for q in chosen]
            theirs = {int(i): thumbnail(run.data[int(i)], side) for i in np.unique(found)}
            self.arrays["gallery_query_images"] = np.stack(pictures)
            self.arrays["gallery_images"] = np.stack([[theirs[int(i)] for i in row] for row in found])

    def _map(self, run: Run, train: np.ndarray) -> None:
        """Embeddings of the classes that the neighbours tell best and worst; or of any samples."""
        order = generator(run.settings.seed, "map").permutation(len(train))
        classes = run.data.classes
        if classes is None:
            chosen = np.sort(order[: MAP_CLASSES * MAP_PER_CLASS])
        else:
            parts = [order[classes[order] == c][:MAP_PER_CLASS] for c in chosen_classes(self.facts, classes)]
            chosen = np.sort(np.concatenate(parts))
        self.arrays |= {
            "map_indices": chosen,
            "map_classes": np.full(len(chosen), -1) if classes is None else classes[chosen],
            "map_embeddings": train[chosen].astype(np.float32),
        }

    def _write(self, run: Run) -> None:
        if not run.team.first:
            return
        arrays: Any = self.arrays

        def save(file: Path) -> None:
            with file.open("wb") as stream:
                np.savez_compressed(stream, **arrays)

        whole(self.folder / ARRAYS, save)
        whole(self.folder / JSON, lambda file: file.write_text(json.dumps(self.facts, indent=2) + "\n"))


def chosen_classes(facts: dict[str, Any], classes: np.ndarray) -> list[int]:
    """The classes of the map: all of up to twice ``MAP_CLASSES``, else those of highest and of lowest accuracy."""
    there: list[int] = np.unique(classes).tolist()
    accuracy = facts.get("class_accuracy", {})
    known = [c for c in there if c in accuracy]
    if len(there) <= 2 * MAP_CLASSES or len(known) < 2 * MAP_CLASSES:
        return there[: 2 * MAP_CLASSES]
    ranked = sorted(known, key=lambda c: -accuracy[c])
    return ranked[:MAP_CLASSES] + ranked[-MAP_CLASSES:]


def is_image(sample: np.ndarray) -> bool:
    """(H, W) or (H, W, 1 or 3), and not a list of features."""
    return min(sample.shape, default=0) > 0 and (sample.ndim == 2 or (sample.ndim == 3 and sample.shape[2] in (1, 3)))


def thumbnail(image: np.ndarray, side: int) -> np.ndarray:
    """The square in the middle of an image, as (side, side, 3) uint8. Floats are stretched to their range."""
    x = image.astype(np.float32)
    if image.dtype != np.uint8:
        low, high = float(x.min()), float(x.max())
        x = (x - low) * (255.0 / (high - low) if high > low else 0.0)
    x = np.broadcast_to(x if x.ndim == 3 else x[:, :, None], (*x.shape[:2], 3))
    short = min(x.shape[:2])
    top, left = ((size - short) // 2 for size in x.shape[:2])
    x = x[top : top + short, left : left + short]
    whole = max(1, short // side)  # pixels to average into one
    x = x[: short // whole * whole, : short // whole * whole]
    x = x.reshape(len(x) // whole, whole, len(x) // whole, whole, 3).mean(axis=(1, 3))
    at = (np.arange(side) + 0.5) * len(x) // side
    return np.asarray(np.round(x[np.ix_(at.astype(int), at.astype(int))]).astype(np.uint8))


def _plain(run: Run, train: np.ndarray, queries: np.ndarray, own: np.ndarray | None) -> Gallery:
    """Some queries and their neighbours, where no class says what a success is."""
    chosen = np.sort(generator(run.settings.seed, "gallery").permutation(len(queries))[: 2 * GALLERY])
    host, asarray = run.backend.to_host, run.backend.asarray
    spare = own is not None
    cosines, found = (
        host(x)
        for x in nearest(asarray(unit(queries[chosen])), asarray(unit(train)), min(NEIGHBOURS + spare, len(train)))
    )
    if own is not None:  # without the query itself or, behind equal others, without the last
        itself = found == own[chosen][:, None]
        itself[~itself.any(axis=1), -1] = True
        found, cosines = found[~itself].reshape(len(chosen), -1), cosines[~itself].reshape(len(chosen), -1)
    nothing = np.full(len(chosen), -1)
    return Gallery(("sample",) * len(chosen), chosen, nothing, np.zeros(len(chosen)), found, cosines)
