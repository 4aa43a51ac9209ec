"""What one library saves another one loads, and the next step is the same: bank, labels, weights, place in the run."""

import json
from dataclasses import replace

import numpy as np
import pytest
from variants import ACROSS, assert_close

from agreement.guises import named, needed
from agreement.trajectory import MLP, SETTINGS, SIZES, VIEW, Net, samples, train
from la_core import Callback, Settings, State, update
from la_core.data import Samples, batches, load
from la_core.folder import read_metrics
from la_core.objectives import local_aggregation_terms

# The optimizer's momentum does not travel. Two epochs of Local Aggregation: the next one does not cluster again.
SHORT = replace(SETTINGS, epochs=6, momentum=0.0, schedule="constant")
PLACES = {
    "float64": (
        ("numpy", MLP),
        ("torch", Net),
        ("jax x64", MLP),
        ("strict strictest", MLP),
        ("strict device1", MLP),
        ("cupy", MLP),
    ),
    "float32": (("numpy", MLP), ("torch", MLP), ("jax", MLP), ("strict strictest", MLP)),
}
JOURNEYS = [
    pytest.param(dtype, saver, loader, id=f"{dtype}-{saver[0]}-{loader[0]}")
    for dtype, places in PLACES.items()
    for saver in places
    for loader in places
]


class Stop(Callback):
    """Ctrl-C after one more step."""

    def on_step(self, run, loss):
        self.loss = loss
        if run.step == 5 * SHORT.epochs + 1:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """For each library: the folder of a run, and the same run one step later."""
    folders = {}

    def save(dtype, place):
        name, make_encoder = place
        guise, settings = needed(named(name)), replace(SHORT, dtype=dtype)
        if (dtype, name) not in folders:
            folder, later, stop = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("later"), Stop()
            train(guise, make_encoder, settings, folder)
            with pytest.raises(KeyboardInterrupt):
                train(guise, make_encoder, replace(settings, epochs=7), later, [stop])
            folders[dtype, name] = folder, {"loss": np.array(stop.loss, dtype)} | arrays(later)
        return folders[dtype, name]

    return save


def arrays(folder):
    with np.load(folder / "embeddings.npz") as state, np.load(folder / "encoder.npz") as weights:
        return {"bank": state["bank"], "labels": state["labels"]} | dict(weights)


def next_step(guise, make_encoder, folder):
    """One step of Local Aggregation from what the folder holds, and from nothing else."""
    settings = Settings.load(folder / "settings.json")
    epoch = json.loads((folder / "status.json").read_text())["epoch"]
    step = [*read_metrics(folder)][-1]["step"]
    kept, data = arrays(folder), Samples(samples())
    order = batches(len(data), settings.batch_size, seed=settings.seed, epoch=epoch)
    indices = order[step - epoch * len(order)]
    with guise.mode():
        backend = guise.backend
        encoder = make_encoder(backend, SIZES, replace(settings, seed=99))
        state = State(backend.asarray(kept.pop("bank")), backend.asarray(kept.pop("labels")))
        encoder.load(kept)
        batch = load(data, indices, VIEW, (settings.seed, epoch)).astype(settings.dtype)
        rows = backend.asarray(indices)
        z, back = encoder.pullback(backend.asarray(batch))
        terms = local_aggregation_terms(
            z, state, rows, n_background=settings.n_background, temperature=settings.temperature
        )
        loss = backend.to_host(terms.loss).mean()
        back(terms.cotangent)
        encoder.step(settings.rate(epoch))
        state = update(state, rows, z, mixing=settings.mixing)
        after = {"loss": loss, "bank": backend.to_host(state.bank), "labels": backend.to_host(state.labels)}
        return after | encoder.weights()


@pytest.mark.parametrize(("dtype", "saver", "loader"), JOURNEYS)
def test_the_next_step_is_the_same(saved, dtype, saver, loader):
    folder, want = saved(dtype, saver)
    got = next_step(needed(named(loader[0])), loader[1], folder)
    assert got.keys() == want.keys()
    for name, x in want.items():
        if name == "labels":
            np.testing.assert_array_equal(got[name], x)
        else:
            assert got[name].dtype == dtype
            assert_close(got[name], x, ACROSS[np.dtype(dtype)], np.abs(x).max())
