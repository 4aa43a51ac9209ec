"""Local Aggregation, written once against the Array API: like things gather on the unit sphere.

    state = la_core.State(bank)                                         one unit row per sample
    labels = la_core.cluster(state.bank, n_clusters=..., seed=0).labels
    loss, dz = la_core.local_aggregation_and_cotangent(z, state, indices, n_background=..., temperature=0.07)
    state = la_core.update(state, indices, z, mixing=0.5)               after the backward pass

Every function takes NumPy arrays, PyTorch tensors, or arrays of any registered backend, and answers in kind.
``la_core.train(...)`` makes a whole run of them. Importing this package imports no framework.
"""

from la_core import errors, evaluate
from la_core.bank import State, random_rows, unit, update
from la_core.clusters import Clustering, cluster
from la_core.data import samples
from la_core.errors import LaCoreError
from la_core.neighbours import close, nearest
from la_core.objectives import (
    instance_discrimination,
    instance_discrimination_and_cotangent,
    local_aggregation,
    local_aggregation_and_cotangent,
    log_normaliser,
)
from la_core.planner import plan
from la_core.protocol import backend
from la_core.report import report
from la_core.run import Callback, Run
from la_core.settings import Settings
from la_core.train import train
from la_core.views import FeatureView, ImageView

__version__ = "0.1.0"

__all__ = [
    "Callback",
    "Clustering",
    "FeatureView",
    "ImageView",
    "LaCoreError",
    "Run",
    "Settings",
    "State",
    "backend",
    "close",
    "cluster",
    "errors",
    "evaluate",
    "instance_discrimination",
    "instance_discrimination_and_cotangent",
    "local_aggregation",
    "local_aggregation_and_cotangent",
    "log_normaliser",
    "nearest",
    "plan",
    "random_rows",
    "report",
    "samples",
    "train",
    "unit",
    "update",
]
