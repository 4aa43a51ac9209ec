"""Small runs that are stopped and go on, and what is left of one in the end. A run's setting is one of ``KINDS``."""

import hashlib
import json
from dataclasses import replace

import numpy as np

import la_core
from la_core import FeatureView, Settings
from la_core.folder import read_metrics
from la_core.mlp import MLP

RNG = np.random.default_rng(0)
CLASSES = np.repeat(np.arange(4), 12)
FEATURES = (3 * RNG.standard_normal((4, 10))[CLASSES] + RNG.standard_normal((48, 10))).astype(np.float32)
SIZES = (10, 16, 8)
PLAIN = Settings(
    epochs=5, warmup_epochs=2, batch_size=20, n_background=16, n_clusters=6, n_clusterings=2, knn_k=5, learning_rate=0.1
)
"""Five epochs of three steps."""
KINDS = {
    "plain": PLAIN,
    "two views": replace(PLAIN, views=2, warmup="batch", optimizer="adam", learning_rate=0.01, schedule="cosine"),
    "lists": replace(
        PLAIN, search="lists", cluster_start="last", recluster_every=3, recluster_unit="steps", warmup="nce", n_noise=20
    ),
}
VIEW = FeatureView(noise=0.2, drop=0.1)


def torch_encoder(backend, settings):
    """With all that has a state: batch norm, dropout, moments."""
    import torch
    from torch import nn

    from la_core.backends.torch import TorchEncoder, make_optimizer

    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    layers = (nn.Linear(10, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 8))
    module = nn.Sequential(*layers)
    return TorchEncoder(module, make_optimizer(module, settings))


def jax_encoder(backend, settings):
    """Likewise."""
    from flax import nnx

    from la_core.backends.jax import NnxEncoder
    from la_core.backends.jax.encoder import decayed, make_optimizer

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(10, 16, rngs=rngs)
            self.norm = nnx.BatchNorm(16, rngs=rngs)
            self.dropout = nnx.Dropout(0.2, rngs=rngs)
            self.head = nnx.Linear(16, 8, rngs=rngs)

        def __call__(self, x):
            return self.head(self.dropout(nnx.relu(self.norm(self.first(x)))))

    module = Net(nnx.Rngs(settings.seed))
    return NnxEncoder(module, make_optimizer(settings, decayed(module)))


ENCODERS = {
    "numpy": lambda backend, settings: MLP(backend, SIZES, settings),
    "torch": torch_encoder,
    "jax": jax_encoder,
}


def go(name, folder=None, settings=PLAIN, make=None, data=None, **options):
    """The run on that backend."""
    backend = la_core.backend(name)
    options = {"resume": "auto" if folder else "never", "checkpoint_every": 2, "checkpoint_unit": "steps"} | options
    return la_core.train(
        la_core.samples(FEATURES, CLASSES) if data is None else data,
        (make or ENCODERS[name])(backend, settings),
        **{"backend": backend, "settings": settings, "view": VIEW, "folder": folder, "progress": False} | options,
    )


def digest(run):
    """Of all that a run is made of, and of its losses: equal for equal runs, to the bit."""
    total = hashlib.sha256()
    arrays = {"bank": run.backend.to_host(run.state.bank), "step": np.array(run.step)}
    if run.state.labels is not None:
        arrays["labels"] = run.backend.to_host(run.state.labels)
    arrays |= {f"weights {name}": x for name, x in run.encoder.weights().items()}
    arrays |= {f"training {name}": x for name, x in run.encoder.training_state().items()}
    for name, x in sorted(arrays.items()):
        total.update(f"{name} {x.dtype} {x.shape}".encode() + np.ascontiguousarray(x).tobytes())
    return total.hexdigest()


def lines(records):
    """Records of an epoch without what a clock says."""
    return [{name: x for name, x in record.items() if name != "seconds"} for record in records]


def outcome(run, folder=None):
    """What must be equal in the end: the digest, and the lines of metrics."""
    told = lines(run.history if folder is None else read_metrics(folder))
    return json.loads(json.dumps({"digest": digest(run), "metrics": told}))


class Stop(la_core.Callback):
    """Ctrl-C after so many steps of this process."""

    def __init__(self, after):
        self.left = after

    def on_step(self, run, loss):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def stopped(name, folder, after, **options):
    """The run up to so many steps, and no further."""
    try:
        go(name, folder, callbacks=[Stop(after)], **options)
    except KeyboardInterrupt:
        return
    raise AssertionError("it came to its end before that")
