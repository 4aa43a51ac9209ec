"""The published code's own numbers (reference.npz, float64), as cases."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
from variants import NUMPY, assert_close

import la_core

GOLDEN = np.load(Path(__file__).with_name("reference.npz"))
CASES = ("small", "union", "cool", "all_background")


def golden(name, variant=NUMPY):
    prefix = f"{name}/"
    case = SimpleNamespace(**{key.removeprefix(prefix): GOLDEN[key] for key in GOLDEN if key.startswith(prefix)})
    case.settings = {"n_background": int(case.n_background), "temperature": float(case.temperature)}
    case.nce = {"temperature": float(case.temperature), "log_z": float(case.ir_log_z)}
    case.mixing = 1.0 - float(case.keep)
    for array in ("bank", "labels", "indices", "embeddings", "noise"):
        setattr(case, array, variant.asarray(getattr(case, array)))
    case.state = la_core.State(case.bank, case.labels)
    return case


def assert_golden(got, want):
    assert_close(got, want, 1e-9, scale=np.max(np.abs(want)))
