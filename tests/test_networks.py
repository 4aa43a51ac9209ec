"""The networks: torchvision's names, the published arithmetic, twins on torch and JAX, layers, and initial weights."""

from itertools import pairwise

import numpy as np
import pytest

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")

import jax.numpy as jnp
import optax
from flax import nnx
from variants import assert_close

import la_core
from la_core.backends import jax as on_jax
from la_core.backends import torch as on_torch
from la_core.backends.jax import networks as jax_networks
from la_core.backends.torch import networks as torch_networks
from la_core.errors import KindError, RangeError, ShapeError

SHALLOW = (1, 1)  # a block as it is, and one at half the size
SMALL_RESNET = {"dim": 8, "width": 4, "stem": "small"}
TWINS = {
    "cnn": ("SmallCNN", {"channels": 3, "dim": 8, "width": 4, "whiten": 4}, 17),
    "cnn-unpooled": ("SmallCNN", {"channels": 3, "dim": 8, "width": 2, "blocks": 3, "unpooled": 1}, 9),
    "perceptron": ("Perceptron", {"sizes": (48, 16, 12, 8), "projection": 12, "whiten": 1}, 4),
    "resnet18": ("ResNet18", {"dim": 8, "width": 4}, 33),
    "resnet50": ("ResNet50", SMALL_RESNET | {"preactivation": True, "momentum": 0.003, "projection": 12}, 9),
    "alexnet": ("AlexNet", {"dim": 8, "width": 2, "size": 99}, 99),
    "vgg16": ("VGG16", {"dim": 8, "width": 2, "size": 32, "projection": 12}, 32),
    "torchvision-alexnet": ("TorchvisionAlexNet", {"dim": 8, "width": 2}, 99),
    "torchvision-vgg16": ("TorchvisionVGG16", {"dim": 8, "width": 2, "projection": 12}, 40),
}


@pytest.fixture(scope="module", autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def shallow(monkeypatch):
    """Fewer layers, where twins are compared: what XLA compiles is what takes the time."""
    for made in (on_torch.ResNet18, on_torch.ResNet50, on_jax.ResNet18, on_jax.ResNet50):
        monkeypatch.setattr(made, "blocks", SHALLOW)
    for made in (on_torch.VGG16, on_jax.VGG16, on_torch.TorchvisionVGG16, on_jax.TorchvisionVGG16):
        monkeypatch.setattr(made, "blocks", ((1, 2), (2, 1), (4, 1), (8, 1), (8, 1)))


def torch_twin(name, options, seed=0):
    return on_torch.initialise(on_torch.network(name, **options), seed).double()


def jax_twin(name, options, seed=0):
    module = on_jax.initialise(on_jax.network(name, **options), seed)
    wide = jax.tree.map(lambda x: x.astype(jnp.float64), nnx.state(module, nnx.Any(nnx.Param, nnx.BatchStat)))
    nnx.update(module, wide)
    return module


def images(batch, size, seed=0):
    return np.random.default_rng(seed).standard_normal((batch, 3, size, size))


# Names -----------------------------------------------------------------------------------------------------------


def torchvision_resnet(blocks, bottleneck, classes=1000):
    """Names and shapes of torchvision's ResNets, in their order."""
    yield "conv1.weight", (64, 3, 7, 7)
    yield from norm("bn1", 64)
    inside = 64
    for stage, n_blocks in enumerate(blocks, 1):
        width = 32 * 2**stage
        out = 4 * width if bottleneck else width
        for block in range(n_blocks):
            at = f"layer{stage}.{block}"
            sizes, path = ((1, 3, 1), (inside, width, width, out)) if bottleneck else ((3, 3), (inside, width, out))
            for i, (size, (rows, columns)) in enumerate(zip(sizes, pairwise(path), strict=True), 1):
                yield f"{at}.conv{i}.weight", (columns, rows, size, size)
                yield from norm(f"{at}.bn{i}", columns)
            if block == 0 and (stage > 1 or inside != out):
                yield f"{at}.downsample.0.weight", (out, inside, 1, 1)
                yield from norm(f"{at}.downsample.1", out)
            inside = out
    yield "fc.weight", (classes, inside)
    yield "fc.bias", (classes,)


def norm(name, n):
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", (n,)
    yield f"{name}.num_batches_tracked", ()


def affine(name, *shape):
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def torchvision_vgg16_bn(classes=1000):
    """Names and shapes of torchvision's, in their order."""
    at, inside = 0, 3
    for out in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        if out:
            yield from affine(f"features.{at}", out, inside, 3, 3)
            yield from norm(f"features.{at + 1}", out)
            inside = out
        at += 3 if out else 1  # convolution, norm, ReLU; or a pooling
    for at, shape in ((0, (4096, 512 * 7 * 7)), (3, (4096, 4096)), (6, (classes, 4096))):
        yield from affine(f"classifier.{at}", *shape)


def torchvision_alexnet(classes=1000):
    """Names and shapes of torchvision's, in their order."""
    for at, out, inside, size in (
        (0, 64, 3, 11),
        (3, 192, 64, 5),
        (6, 384, 192, 3),
        (8, 256, 384, 3),
        (10, 256, 256, 3),
    ):
        yield from affine(f"features.{at}", out, inside, size, size)
    for at, shape in ((1, (4096, 256 * 6 * 6)), (4, (4096, 4096)), (6, (classes, 4096))):
        yield from affine(f"classifier.{at}", *shape)


@pytest.mark.parametrize(
    ("name", "theirs", "entries", "parameters"),
    # By torchvision 0.29: entries of the state dict, and the parameters that its documentation gives.
    [
        ("TorchvisionVGG16", torchvision_vgg16_bn, 97, 138_365_992),
        ("TorchvisionAlexNet", torchvision_alexnet, 16, 61_100_840),
    ],
)
def test_the_torchvision_networks_have_its_names_and_shapes(name, theirs, entries, parameters):
    with torch.device("meta"):
        module = on_torch.network(name, dim=1000)
    mine = {key: tuple(x.shape) for key, x in module.state_dict().items()}
    assert list(mine.items()) == list(theirs())
    assert len(mine) == entries
    assert sum(p.numel() for p in module.parameters()) == parameters
    twin = on_jax.torch_weights(on_jax.network(name, width=1, dim=1000))
    assert twin.keys() == {key for key in mine if not key.endswith("num_batches_tracked")}


@pytest.mark.parametrize("size", [1, 2, 6, 7, 9, 13, 15])
@pytest.mark.parametrize("side", [6, 7])
def test_means_are_over_the_windows_of_pytorch(size, side):
    x = np.random.default_rng(0).standard_normal((2, 3, size, size + 4))
    theirs = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(x), side).numpy()
    mine = jax_networks._averaged(jnp.moveaxis(jnp.asarray(x), 1, -1), side)
    assert_close(np.moveaxis(np.asarray(mine), -1, 1), theirs, 1e-12, 1.0)


@pytest.mark.parametrize(
    ("name", "blocks", "bottleneck", "entries", "parameters", "some"),
    [
        ("ResNet18", (2, 2, 2, 2), False, 122, 11_689_512, {"layer2.0.downsample.0.weight": (128, 64, 1, 1)}),
        ("ResNet50", (3, 4, 6, 3), True, 320, 25_557_032, {"layer4.2.conv3.weight": (2048, 512, 1, 1)}),
    ],
)
def test_resnets_have_the_names_and_shapes_of_torchvision(name, blocks, bottleneck, entries, parameters, some):
    with torch.device("meta"):
        module = on_torch.network(name, dim=1000)
    mine = {key: tuple(x.shape) for key, x in module.state_dict().items()}
    assert list(mine.items()) == list(torchvision_resnet(blocks, bottleneck))
    assert len(mine) == entries
    assert sum(p.numel() for p in module.parameters()) == parameters
    assert some.items() <= mine.items()
    twin = on_jax.torch_weights(on_jax.network(name, width=1, dim=1000))
    assert twin.keys() == {key for key in mine if not key.endswith("num_batches_tracked")}


def test_the_second_form_normalises_before_and_once_at_the_end():
    with torch.device("meta"):
        names = set(on_torch.ResNet18(preactivation=True).state_dict())
    assert {"bn5.weight", "layer1.0.bn1.weight", "layer2.0.downsample.0.weight"} <= names
    assert not {"bn1.weight", "layer1.0.downsample.0.weight", "layer2.0.downsample.1.weight"} & names


@pytest.mark.parametrize(
    ("name", "macs", "parameters"),
    # The second figures: those of 1000 classes, by the papers' tables and torchvision's.
    [
        ("ResNet18", 1.82e9, 11_689_512),
        ("ResNet50", 4.09e9, 25_557_032),
        ("VGG16", 15.5e9, 138_357_544),
        ("TorchvisionVGG16", 15.47e9, 138_365_992),
        ("TorchvisionAlexNet", 0.71e9, 61_100_840),
    ],
)
def test_the_arithmetic_is_that_of_the_papers(name, macs, parameters):
    found = on_torch.cost(lambda: on_torch.network(name, dim=1000), (3, 224, 224))
    assert found.macs == pytest.approx(macs, rel=0.02)
    assert found.parameters == pytest.approx(parameters, rel=1e-4)
    assert found.dim == 1000


@pytest.mark.parametrize("name", ["ResNet18", "AlexNet", "VGG16", "TorchvisionAlexNet", "TorchvisionVGG16"])
def test_both_libraries_count_the_same(name):
    theirs, mine = (
        package.cost(lambda package=package: package.network(name), (3, 224, 224)) for package in (on_torch, on_jax)
    )
    assert (theirs.macs, theirs.parameters, theirs.dim) == (mine.macs, mine.parameters, mine.dim)
    assert theirs.activations <= mine.activations <= 2 * theirs.activations


# Twins -----------------------------------------------------------------------------------------------------------


def deviation(mine, theirs, batch, cotangent):
    """The worst difference of embedding, gradient and running statistics between a torch module and its twin."""
    mine.train()
    z = mine(torch.from_numpy(batch))
    (z * torch.from_numpy(cotangent)).sum().backward()
    here = {key: p.grad.numpy() for key, p in mine.named_parameters()}
    here |= {key: x.numpy() for key, x in mine.named_buffers() if not key.endswith("num_batches_tracked")}
    mine.eval()
    with torch.no_grad():
        here |= {"in training": z.numpy(), "in evaluation": mine(torch.from_numpy(batch)).numpy()}

    encoder = on_jax.NnxEncoder(theirs, optax.inject_hyperparams(optax.sgd)(learning_rate=1.0))
    before, batch = encoder.torch_weights(), jnp.asarray(batch)
    z, back = encoder.pullback(batch)
    back(jnp.asarray(cotangent))
    there = {"in training": z, "in evaluation": encoder.apply(batch)[0]}  # the old weights, the new statistics
    encoder.step(1.0)
    for key, x in encoder.torch_weights().items():
        there[key] = x if key.rpartition(".")[2].startswith("running") else before[key] - x

    assert here.keys() == there.keys()
    assert all(x.shape == there[key].shape for key, x in here.items())
    return max(np.abs(x - there[key]).max() / max(1e-3, np.abs(x).max()) for key, x in here.items())


@pytest.mark.parametrize("name", [name for name in TWINS if name != "cnn"])  # which makes thirty steps below
def test_twins_agree(name, shallow):
    network, options, size = TWINS[name]
    mine, theirs = torch_twin(network, options), jax_twin(network, options)
    assert deviation(mine, theirs, images(3, size), np.random.default_rng(1).standard_normal((3, 8))) < 1e-9


def test_a_biased_running_variance_is_caught(monkeypatch):
    monkeypatch.setattr(jax_networks.BatchNorm, "__call__", nnx.BatchNorm.__call__)
    network, options, size = TWINS["perceptron"]
    mine, theirs = torch_twin(network, options), jax_twin(network, options)
    assert deviation(mine, theirs, images(3, size), np.ones((3, 8))) > 1e-3


def test_features_in_another_order_are_caught(monkeypatch):
    monkeypatch.setattr(jax_networks, "_flat", lambda x: x.reshape(len(x), -1))
    network, options, size = TWINS["alexnet"]
    mine, theirs = torch_twin(network, options).eval(), jax_twin(network, options)
    theirs.eval()
    with torch.no_grad():
        z = mine(torch.from_numpy(images(2, size))).numpy()
    assert np.abs(z - np.asarray(theirs(jnp.asarray(images(2, size))))).max() > 1e-3


def test_weights_move_between_twins_by_name():
    network, options, size = TWINS["perceptron"]
    mine, theirs = torch_twin(network, options, seed=1), jax_twin(network, options, seed=2)
    on_jax.load_torch_weights(theirs, on_torch.TorchEncoder(mine).weights())
    mine.eval(), theirs.eval()
    batch = images(2, size)
    with torch.no_grad():
        assert_close(theirs(jnp.asarray(batch)), mine(torch.from_numpy(batch)).numpy(), 1e-9, 1.0)


def test_thirty_steps_on_both_libraries_agree():
    settings = la_core.Settings(optimizer="adam", learning_rate=1e-2, dtype="float64")
    network, options, size = TWINS["cnn"]
    mine, theirs = torch_twin(network, options), jax_twin(network, options)
    here = on_torch.TorchEncoder(mine, on_torch.make_optimizer(mine, settings))
    there = on_jax.NnxEncoder(theirs, on_jax.make_optimizer(settings, on_jax.decayed(theirs)))
    target = np.random.default_rng(1).standard_normal((6, 8))
    for step in range(30):
        batch = images(6, size, seed=step)
        z, back = here.pullback(torch.from_numpy(batch))
        back(z - torch.from_numpy(target))
        here.step(1e-2)
        z_there, back_there = there.pullback(jnp.asarray(batch))
        back_there(z_there - target)
        there.step(1e-2)
        assert_close(z_there, z.numpy(), 1e-9, 1.0)
    weights = here.torch_weights()
    assert weights.keys() == there.torch_weights().keys()
    for key, x in there.torch_weights().items():
        assert_close(x, weights[key], 1e-9, 1.0)


# What is asked of a network --------------------------------------------------------------------------------------


def encoders(name):
    network, options, size = TWINS[name]
    batch = images(2, size)
    here = on_torch.TorchEncoder(torch_twin(network, options)), torch.from_numpy(batch)
    return here, (on_jax.nnx_encoder(jax_twin(network, options)), jnp.asarray(batch))


@pytest.mark.parametrize(
    ("name", "width"),
    [("cnn", 32), ("perceptron", 12), ("resnet18", 8), ("resnet50", 32),
     ("alexnet", 128), ("vgg16", 128), ("torchvision-alexnet", 128), ("torchvision-vgg16", 128)],
)  # fmt: skip
def test_the_features_are_those_before_the_head(name, width, shallow):
    both = encoders(name)
    found = [encoder.apply(batch) for encoder, batch in both]
    for z, features in found:
        assert (z.shape, features.shape) == ((2, 8), (2, width))
    features = found[0][1].numpy()
    assert_close(found[1][1], features, 1e-9, 1.0)
    mine, batch = both[0]
    mine.module.eval()
    with torch.no_grad():
        before = mine.module.before_head if name.startswith("torchvision") else mine.module.features
        assert_close(before(batch).numpy(), features, 1e-12, 1.0)


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("resnet18", ("layer2", "conv1", "maxpool", "layer1.0.bn1", "layer1", "fc", "layer2.0.downsample.0")),
        ("alexnet", ("conv1", "conv5", "fc6", "head", "conv2.0")),
        ("vgg16", ("conv1_2", "conv5_1", "head.0")),
        ("torchvision-alexnet", ("features", "features.0", "features.12", "avgpool", "classifier.5", "classifier.6")),
        ("torchvision-vgg16", ("features.1", "avgpool", "classifier.4", "classifier.6.3")),
        ("perceptron", ("body", "body.0", "head")),
    ],
)
def test_layers_are_the_same_on_both_libraries(name, names, shallow):
    found = [encoder.layers(batch, names) for encoder, batch in encoders(name)]
    assert list(found[0]) == list(found[1]) == list(names)
    for layer in names:
        assert found[0][layer].shape == found[1][layer].shape
        assert_close(found[1][layer], found[0][layer].numpy(), 1e-9, 1.0)
    (mine, batch), _ = encoders(name)
    assert_close(found[0][names[-1]].numpy(), mine.layers(batch, names[-1:])[names[-1]].numpy(), 1e-12, 1.0)


def test_a_layer_is_kept_as_it_was_before_the_next_worked_in_place():
    (encoder, batch), _ = encoders("alexnet")
    assert (encoder.layers(batch, ["conv1.1"])["conv1.1"] < 0).any()  # its ReLU comes next


def test_any_layer_may_be_the_features_and_the_embedding_stays():
    network, options, size = TWINS["cnn"]
    batch = images(2, size)
    here = on_torch.TorchEncoder(torch_twin(network, options), features="body.4")
    module = jax_twin(network, options)
    settings = la_core.Settings()
    there = on_jax.nnx_encoder(module, on_jax.make_optimizer(settings, on_jax.decayed(module)), features="body.4")
    z, features = there.apply(jnp.asarray(batch))
    assert features.shape == (2, 8 * 8 * 8)
    assert_close(features, here.apply(torch.from_numpy(batch))[1].numpy(), 1e-9, 1.0)
    assert_close(z, here.apply(torch.from_numpy(batch))[0].numpy(), 1e-9, 1.0)
    before = there.weights()
    z, back = there.pullback(jnp.asarray(batch))
    back(z)
    there.step(0.1)
    after = there.weights()
    assert all(not np.array_equal(after[key], before[key]) for key in before if key.endswith(("kernel", "mean")))


class Own(nnx.Module):
    """A network of a user's, with a part that it does not use."""

    def __init__(self, rngs):
        self.first = nnx.Linear(48, 6, rngs=rngs)
        self.second = nnx.Linear(6, 8, rngs=rngs)
        self.idle = nnx.Linear(1, 1, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.relu(self.first(x.reshape(len(x), -1))))


class OwnTorch(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(48, 6), torch.nn.Linear(6, 8)
        self.idle = torch.nn.Linear(1, 1)

    def forward(self, x):
        return self.second(torch.relu(self.first(x.flatten(1))))


def test_a_module_of_your_own_has_layers_and_weights_by_name():
    here, there = on_torch.TorchEncoder(OwnTorch()), on_jax.nnx_encoder(Own(nnx.Rngs(0)), features="first")
    there.load_torch_weights(here.torch_weights())
    batch = images(2, 4).astype(np.float32)
    found = there.layers(jnp.asarray(batch), ["first"])["first"]
    assert_close(found, here.layers(torch.from_numpy(batch), ["first"])["first"].numpy(), 1e-6, 1.0)
    assert_close(there.apply(jnp.asarray(batch))[1], found, 1e-6, 1.0)


@pytest.mark.parametrize(
    "make", [lambda: on_torch.TorchEncoder(OwnTorch()), lambda: on_jax.nnx_encoder(Own(nnx.Rngs(0)))]
)
def test_a_layer_that_is_not_there_or_took_no_part_is_named(make):
    encoder = make()
    batch = images(2, 4).astype(np.float32)
    batch = torch.from_numpy(batch) if isinstance(encoder, on_torch.TorchEncoder) else jnp.asarray(batch)
    with pytest.raises(KindError, match="'third'"):
        encoder.layers(batch, ["first", "third"])
    with pytest.raises(KindError, match="idle"):
        encoder.layers(batch, ["first", "idle"])
    assert encoder.layers(batch, ["first"])["first"].shape == (2, 6)


def test_bad_networks_are_refused_in_plain_words():
    for package, extra in ((on_torch, {}), (on_jax, {"rngs": nnx.Rngs(0)})):
        with pytest.raises(RangeError, match="Did you mean 'ResNet18'"):
            package.network("Resnet18")
        with pytest.raises(RangeError, match="stem must be one of"):
            package.ResNet18(stem="big", **extra)
        with pytest.raises(RangeError, match="at least 67"):
            package.AlexNet(size=66, width=2, **extra)
        assert package.AlexNet(size=67, width=2, **extra).size == 67
        with pytest.raises(RangeError, match="at least 32"):
            package.VGG16(size=31, width=2, **extra)
    with pytest.raises(KindError, match="'layer9'"):
        on_torch.TorchEncoder(OwnTorch(), features="layer9")
    with pytest.raises(KindError, match="'layer9'"):
        on_jax.nnx_encoder(Own(nnx.Rngs(0)), features="layer9")
    (mine, _), (theirs, _) = encoders("vgg16")
    with pytest.raises(ShapeError, match=r"\(B, C, 32, 32\)"):
        mine.apply(torch.zeros(2, 3, 64, 64, dtype=torch.float64))
    with pytest.raises(ShapeError, match=r"\(B, C, 32, 32\)"):
        theirs.apply(jnp.zeros((2, 3, 64, 64)))
    for package, extra in ((on_torch, {}), (on_jax, {"rngs": nnx.Rngs(0)})):
        small = package.SmallCNN(1, 8, 2, **extra)
        made = torch.from_numpy if package is on_torch else jnp.asarray
        assert small(made(np.zeros((2, 1, 8, 9), np.float32))).shape == (2, 8)
        for shape in ((2, 1, 7, 9), (2, 8, 8)):
            with pytest.raises(ShapeError, match="at least 8 pixels"):
                small(made(np.zeros(shape, np.float32)))
        small = package.SmallCNN(1, 8, 2, unpooled=2, **extra)
        assert small(made(np.zeros((2, 1, 2, 3), np.float32))).shape == (2, 8)
        with pytest.raises(ShapeError, match="at least 2 pixels"):
            small(made(np.zeros((2, 1, 1, 3), np.float32)))
        for unpooled in (-1, 4):
            with pytest.raises(RangeError, match="unpooled must be between 0 and 3, all convolutions but the last"):
                package.SmallCNN(1, 8, 2, unpooled=unpooled, **extra)
    (mine, _), (theirs, _) = encoders("torchvision-alexnet")
    with pytest.raises(ShapeError, match="at least 63 pixels"):
        mine.apply(torch.zeros(2, 3, 63, 62, dtype=torch.float64))
    with pytest.raises(ShapeError, match="at least 63 pixels"):
        theirs.apply(jnp.zeros((2, 3, 63, 62)))
    assert mine.apply(torch.zeros(2, 3, 63, 64, dtype=torch.float64))[0].shape == (2, 8)


def test_a_maximum_before_relu_is_relu_before_a_maximum_to_the_bit():
    small = on_torch.initialise(on_torch.SmallCNN(1, 8, 4, whiten=4), 0)
    told = on_torch.initialise(on_torch.SmallCNN(1, 8, 4, whiten=4), 0)
    layers = list(told.body)
    for i, layer in enumerate(layers[:-1]):
        if isinstance(layer, torch.nn.MaxPool2d):
            layers[i : i + 2] = layers[i + 1], layer
    told.body = torch.nn.Sequential(*layers)
    assert [type(x).__name__ for x in told.body[:4]] == ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"]
    x = torch.round(3 * torch.randn(8, 1, 24, 24, generator=torch.Generator().manual_seed(0)))  # equal maxima, too
    z, expected = small(x), told(x)
    assert torch.equal(z, expected)
    for one in (z, expected):
        (one**2).sum().backward()
    for (name, mine), theirs in zip(small.named_parameters(), told.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad), name


def test_the_cost_leaves_a_module_as_it_is(shallow):
    network, options, _ = TWINS["resnet18"]
    mine, theirs = torch_twin(network, options).eval(), jax_twin(network, options)
    theirs.eval()
    before = on_torch.TorchEncoder(mine).weights(), on_jax.torch_weights(theirs)
    found = on_torch.cost(mine, (3, 16, 16)), on_jax.cost(theirs, (3, 16, 16))
    assert (
        found[0].macs == found[1].macs == on_torch.cost(lambda: on_torch.network(network, **options), (3, 16, 16)).macs
    )
    assert not mine.training
    assert theirs.bn1.use_running_average
    for was, now in zip(before, (on_torch.TorchEncoder(mine).weights(), on_jax.torch_weights(theirs)), strict=True):
        for key, x in was.items():
            np.testing.assert_array_equal(now[key], x)


def test_both_packages_offer_the_same_networks():
    assert (
        torch_networks.NETWORKS.keys() == jax_networks.NETWORKS.keys() >= {"AlexNet", "VGG16", "ResNet18", "ResNet50"}
    )
