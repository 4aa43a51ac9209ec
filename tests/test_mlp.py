"""The hand-differentiated encoder against PyTorch's autograd and optimizers."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import la_core
from la_core import Settings
from la_core.errors import KindError, ShapeError
from la_core.mlp import MLP

SIZES = (6, 9, 7, 4)


def twin(encoder):
    """The same weights in PyTorch."""
    weights = encoder.weights()
    layers = []
    for i in range(len(SIZES) - 1):
        layer = torch.nn.Linear(SIZES[i], SIZES[i + 1], dtype=torch.float64)
        layer.weight.data = torch.from_numpy(weights[f"{i}.weight"].T.copy())
        layer.bias.data = torch.from_numpy(weights[f"{i}.bias"])
        layers += [layer, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_steps_equal_those_of_pytorch(optimizer):
    settings = Settings(optimizer=optimizer, dtype="float64", weight_decay=0.01, momentum=0.8)
    ours = MLP(la_core.backend("numpy"), SIZES, settings)
    theirs = twin(ours)
    make = (
        torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.8, weight_decay=0.01)
        if optimizer == "sgd"
        else torch.optim.AdamW(theirs.parameters(), lr=0.1, weight_decay=0.01)
    )
    rng = np.random.default_rng(0)
    for rate in (0.1, 0.05, 0.2, 0.1):
        batch, cotangent = rng.standard_normal((5, 2, 3)), rng.standard_normal((5, 4))
        z, back = ours.pullback(batch)
        back(cotangent)
        ours.step(rate)
        expected = theirs(torch.from_numpy(batch).flatten(1))
        np.testing.assert_allclose(z, expected.detach().numpy(), rtol=1e-10, atol=1e-12)
        make.param_groups[0]["lr"] = rate
        make.zero_grad()
        expected.backward(torch.from_numpy(cotangent))
        make.step()
    for i in range(len(SIZES) - 1):
        np.testing.assert_allclose(ours.weights()[f"{i}.weight"].T, theirs[2 * i].weight.detach().numpy(), rtol=1e-9)
        np.testing.assert_allclose(ours.weights()[f"{i}.bias"], theirs[2 * i].bias.detach().numpy(), rtol=1e-9)


def test_the_derivative_is_that_of_the_whole_chain():
    """Central differences of the mean loss in one weight of each layer."""
    settings = Settings(dtype="float64")
    encoder = MLP(la_core.backend("numpy"), SIZES, settings)
    rng = np.random.default_rng(1)
    batch, indices = rng.standard_normal((5, 6)), np.arange(5)
    bank = la_core.random_rows(12, 4, seed=0).astype(np.float64)

    def loss(weights):
        encoder.load(weights)
        return la_core.instance_discrimination(encoder.apply(batch)[0], bank, indices, temperature=0.5).mean()

    start = encoder.weights()
    z, back = encoder.pullback(batch)
    back(la_core.instance_discrimination_and_cotangent(z, bank, indices, temperature=0.5)[1])
    for name, gradient in encoder._gradients.items():
        moved = [{**start, name: start[name].copy()} for _ in range(2)]
        for weights, sign in zip(moved, (1, -1), strict=True):
            weights[name].flat[1] += sign * 1e-6
        slope = (loss(moved[0]) - loss(moved[1])) / 2e-6
        assert gradient.flat[1] == pytest.approx(slope, rel=1e-6, abs=1e-9)


def test_features_are_the_layer_before():
    encoder = MLP(la_core.backend("numpy"), SIZES, Settings(dtype="float64"))
    z, features = encoder.apply(np.ones((3, 6)))
    weights = encoder.weights()
    np.testing.assert_allclose(features @ weights["2.weight"] + weights["2.bias"], z)
    assert features.shape == (3, 7)


@pytest.mark.parametrize(
    "change", [lambda w: w | {"0.weight": np.zeros((9, 2))}, lambda w: {k: x for k, x in w.items() if k != "1.bias"}]
)
def test_weights_of_another_perceptron_are_refused(change):
    encoder = MLP(la_core.backend("numpy"), SIZES, Settings(dtype="float64"))
    before = encoder.weights()
    with pytest.raises(KindError, match="weights of another perceptron"):
        encoder.load(change(before))
    for name, x in encoder.weights().items():
        np.testing.assert_array_equal(x, before[name])
    encoder.load({name: x.astype(np.float32) for name, x in before.items()})
    assert {x.dtype.name for x in encoder.weights().values()} == {"float64"}


def test_samples_of_another_width_are_refused():
    with pytest.raises(ShapeError, match=f"takes {SIZES[0]} numbers of a sample; got {SIZES[0] + 1}"):
        MLP(la_core.backend("numpy"), SIZES, Settings()).apply(np.zeros((2, SIZES[0] + 1), np.float32))
