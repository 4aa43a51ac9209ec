"""A file of weights means the same network on every library."""

import builtins

import numpy as np
import pytest

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
safetensors = pytest.importorskip("safetensors.numpy")

import jax.numpy as jnp
from safetensors import safe_open
from variants import assert_close

import la_core
from la_core import export
from la_core.backends import jax as on_jax
from la_core.backends import torch as on_torch
from la_core.errors import BackendError, DataError, KindError, ShapeError
from la_core.mlp import MLP

NETWORKS = {
    "ResNet18": {"dim": 8, "width": 2, "stem": "small", "projection": 6},
    "SmallCNN": {"channels": 3, "dim": 8, "width": 2, "blocks": 2},
    "TorchvisionVGG16": {"dim": 8, "width": 1, "projection": 6},
}
each = pytest.mark.parametrize("name", NETWORKS)
BATCH = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)


@pytest.fixture(autouse=True)
def shallow(monkeypatch):
    for made in (on_torch.ResNet18, on_jax.ResNet18):
        monkeypatch.setattr(made, "blocks", (1, 1))
    for made in (on_torch.TorchvisionVGG16, on_jax.TorchvisionVGG16):
        monkeypatch.setattr(made, "blocks", ((1, 2), (2, 1)))


def torch_encoder(name, seed=0, **options):
    return on_torch.TorchEncoder(on_torch.initialise(on_torch.network(name, **NETWORKS[name] | options), seed))


def jax_encoder(name, seed=0, **options):
    return on_jax.nnx_encoder(on_jax.initialise(on_jax.network(name, **NETWORKS[name] | options), seed))


def embedding(encoder):
    if isinstance(encoder, on_torch.TorchEncoder):
        return encoder.apply(torch.from_numpy(BATCH))[0].numpy()
    return np.asarray(encoder.apply(jnp.asarray(BATCH))[0])


def assert_same_file(one, other):
    """Up to the order of the header, which safetensors leaves open."""
    contents = []
    for path in (one, other):
        with safe_open(path, framework="numpy") as file:
            contents.append((file.metadata(), {key: file.get_tensor(key) for key in list(file.keys())}))
    (metadata, weights), (others_metadata, others_weights) = contents
    assert metadata == others_metadata
    assert weights.keys() == others_weights.keys()
    for key, x in weights.items():
        assert x.dtype == others_weights[key].dtype
        np.testing.assert_array_equal(x, others_weights[key])


@each
@pytest.mark.parametrize("here", [torch_encoder, jax_encoder])
@pytest.mark.parametrize("there", [torch_encoder, jax_encoder])
def test_every_library_reads_what_every_library_wrote(name, here, there, tmp_path):
    mine, theirs = here(name, seed=1), there(name, seed=2)
    export.save(mine, tmp_path / "whole.safetensors", head=True)
    metadata = export.load(theirs, tmp_path / "whole.safetensors")
    assert metadata["network"] == name
    assert metadata["dim"] == "8"
    assert metadata["la-core"] == la_core.__version__
    assert_close(embedding(theirs), embedding(mine), 1e-5, 1.0)


@each
def test_both_libraries_write_the_same_file(name, tmp_path):
    for part, encoder in (("torch", torch_encoder(name)), ("jax", jax_encoder(name))):
        export.save(encoder, tmp_path / part)
    assert_same_file(tmp_path / "torch", tmp_path / "jax")
    assert not list(tmp_path.glob("*.part"))


@each
@pytest.mark.parametrize("there", [torch_encoder, jax_encoder])
def test_a_file_without_a_head_leaves_the_head(name, there, tmp_path):
    mine, theirs = torch_encoder(name, seed=1), there(name, seed=2)
    export.save(mine, tmp_path / "file")
    before = theirs.torch_weights()
    export.load(theirs, tmp_path / "file")
    after = theirs.torch_weights()
    for key, x in mine.torch_weights().items():
        np.testing.assert_array_equal(after[key], before[key] if key.startswith(export.HEADS) else x)
    names = set(safetensors.load_file(tmp_path / "file"))
    assert names == {key for key in before if not key.startswith(("fc.", "head.", "classifier.6."))}


def test_a_plain_module_takes_the_file(tmp_path):
    """As torchvision's ResNet does: by ``load_state_dict``, not strict, lacking the head and the counters only."""
    export.save(jax_encoder("ResNet18", seed=1), tmp_path / "file")
    module = on_torch.network("ResNet18", **NETWORKS["ResNet18"])
    weights = {key: torch.from_numpy(x) for key, x in safetensors.load_file(tmp_path / "file").items()}
    missing, unexpected = module.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(key.startswith("fc.") or key.endswith("num_batches_tracked") for key in missing)


def test_a_layout_that_is_not_turned_is_caught(tmp_path, monkeypatch):
    export.save(torch_encoder("SmallCNN", seed=1), tmp_path / "torch")
    encoder = jax_encoder("SmallCNN", seed=1)
    right = encoder.torch_weights()
    monkeypatch.setattr(encoder, "torch_weights", lambda: {k: np.ascontiguousarray(x.T).T for k, x in right.items()})
    export.save(encoder, tmp_path / "jax")  # other strides, the same numbers
    assert_same_file(tmp_path / "torch", tmp_path / "jax")
    monkeypatch.setattr(
        encoder, "torch_weights", lambda: {k: x.swapaxes(-1, -2) if x.ndim == 4 else x for k, x in right.items()}
    )
    export.save(encoder, tmp_path / "jax")
    with pytest.raises(AssertionError):
        assert_same_file(tmp_path / "torch", tmp_path / "jax")


@pytest.mark.parametrize("there", [torch_encoder, jax_encoder])
def test_weights_that_do_not_fit_are_refused_and_change_nothing(there, tmp_path):
    export.save(torch_encoder("SmallCNN"), tmp_path / "other")
    export.save(torch_encoder("ResNet18", width=4), tmp_path / "wider")
    export.save(torch_encoder("ResNet18", dim=4), tmp_path / "dim", head=True)
    weights = torch_encoder("ResNet18").torch_weights()
    half_a_head = {key: x for key, x in weights.items() if key != "fc.0.weight"}
    safetensors.save_file(half_a_head, tmp_path / "half")
    encoder = there("ResNet18", seed=3)
    before = encoder.torch_weights()
    with pytest.raises(KindError, match=r"weights of SmallCNN.*missing.*unknown"):
        export.load(encoder, tmp_path / "other")
    with pytest.raises(ShapeError, match=r"bn1\.bias must have shape \(2,\)"):
        export.load(encoder, tmp_path / "wider")
    with pytest.raises(ShapeError, match=r"fc\.3"):
        export.load(encoder, tmp_path / "dim")
    with pytest.raises(KindError, match=r"an unnamed network.*missing \['fc\.0\.weight'\]"):
        export.load(encoder, tmp_path / "half")
    encoder.load_torch_weights(on_torch.TorchEncoder.weights(torch_encoder("ResNet18")))  # counters and all
    encoder.load_torch_weights(before)
    with pytest.raises(KindError, match="what was given does not fit"):
        encoder.load_torch_weights({"elsewhere": np.zeros(1)})
    for key, x in encoder.torch_weights().items():
        np.testing.assert_array_equal(x, before[key])


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "broken").write_bytes(b"not weights")
    for name in ("broken", "missing"):
        with pytest.raises(DataError, match=name):
            export.load(torch_encoder("SmallCNN"), tmp_path / name)


def test_a_scalar_weight_comes_back_as_one(tmp_path):
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(2.0))

    encoder = on_torch.TorchEncoder(Scaled())
    export.save(encoder, tmp_path / "file")
    encoder.module.scale.data.fill_(0.0)
    export.load(encoder, tmp_path / "file")
    assert encoder.module.scale.item() == 2.0


def test_files_that_cannot_be_written_are_named_and_leave_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("folder", "no/such"):
        with pytest.raises(DataError, match=name):
            export.save(torch_encoder("SmallCNN"), tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_an_encoder_without_names_is_refused(tmp_path):
    encoder = MLP(la_core.backend("numpy"), (4, 3, 2), la_core.Settings())
    with pytest.raises(KindError, match="MLP"):
        export.save(encoder, tmp_path / "file")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("safetensors"):
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BackendError, match=r"la-core\[export\]"):
        export.save(torch_encoder("SmallCNN"), tmp_path / "file")


def test_metadata_of_a_file_without_a_head(tmp_path):
    export.save(torch_encoder("SmallCNN"), tmp_path / "file")
    with safe_open(tmp_path / "file", framework="numpy") as file:
        assert file.metadata() == {"format": "pt", "network": "SmallCNN", "dim": "8", "la-core": la_core.__version__}
