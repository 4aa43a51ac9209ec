"""torchvision itself: it takes exported weights by name and embeds the same, and the recipe for VOC runs with it.

Where it does not import, these are skipped by name: nothing in la_core needs it, and it wants its own torch.
"""

import importlib
import json

import numpy as np
import pytest
from PIL import Image
from test_voc import example, thing, xml  # noqa: F401  (a fixture)

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")

from la_core import export
from la_core.backends import torch as on_torch

try:
    models = importlib.import_module("torchvision.models")
except Exception as error:  # beside another torch it raises a RuntimeError
    pytest.skip(f"test_torchvision.py: torchvision does not import ({error})", allow_module_level=True)

MODELS = {
    "ResNet18": ("resnet18", "fc."),
    "ResNet50": ("resnet50", "fc."),
    "TorchvisionVGG16": ("vgg16_bn", "classifier.6."),
    "TorchvisionAlexNet": ("alexnet", "classifier.6."),
}


def trained(name, dim):
    """As after some training: nothing is at 0 or 1, where a name that is mistaken would not be seen."""
    module = on_torch.initialise(on_torch.network(name, dim=dim), seed=0)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for x in (*module.parameters(), *module.buffers()):
            if x.ndim == 1:
                x.copy_(0.5 + torch.rand(x.shape, generator=draw))
    return on_torch.TorchEncoder(module)


@pytest.mark.parametrize("name", MODELS)
def test_torchvisions_models_take_the_weights_and_embed_the_same(name, tmp_path):
    theirs, head = MODELS[name]
    encoder = trained(name, dim=1000)
    export.save(encoder, tmp_path / "whole", head=True)
    export.save(encoder, tmp_path / "backbone")
    model = getattr(models, theirs)(weights=None).eval()
    model.load_state_dict(safetensors.load_file(tmp_path / "whole"), strict=True)
    x = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(x)
    np.testing.assert_allclose(encoder.apply(x)[0], expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    missing, unexpected = model.load_state_dict(safetensors.load_file(tmp_path / "backbone"), strict=False)
    assert not unexpected
    assert {key for key in missing if not key.endswith("num_batches_tracked")} == {head + "weight", head + "bias"}


def test_the_law_sees_weights_of_another_place(tmp_path):
    encoder = trained("ResNet18", dim=1000)
    export.save(encoder, tmp_path / "whole", head=True)
    weights = safetensors.load_file(tmp_path / "whole")
    keys = "layer1.0.bn1.weight", "layer1.0.bn2.weight"
    weights |= dict(zip(keys, (weights[key] for key in reversed(keys)), strict=True))
    model = models.resnet18(weights=None).eval()
    model.load_state_dict(weights, strict=True)
    x = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert not np.allclose(encoder.apply(x)[0], model(x), rtol=1e-3)


def test_the_recipe_for_voc_trains_and_tests_torchvisions_detector(example, tmp_path, capsys):  # noqa: F811
    rng = np.random.default_rng(0)
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / "voc" / part).mkdir(parents=True)
    for split in ("trainval", "test"):
        for i in range(2):
            image = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
            image.save(tmp_path / "voc" / "JPEGImages" / f"{split}{i}.jpg")
            objects = [thing("dog", 5, 5, 40, 30)] * i  # an image without objects is among them
            text = xml(*objects, width=64, height=48)
            (tmp_path / "voc" / "Annotations" / f"{split}{i}.xml").write_text(text)
        (tmp_path / "voc" / "ImageSets" / "Main" / f"{split}.txt").write_text(f"{split}0\n{split}1\n")
    export.save(on_torch.TorchEncoder(on_torch.initialise(on_torch.ResNet50(), 0)), tmp_path / "weights")
    options = ["--data", str(tmp_path / "voc"), "--out", str(tmp_path / "out"), "--size", "64", "--epochs", "1"]
    assert example.main([str(tmp_path / "weights"), *options]) == 0
    said = capsys.readouterr()
    assert "epoch 1/1: loss " in said.err
    assert "no objects" in said.out
    result = json.loads((tmp_path / "out" / "result.json").read_text(), parse_constant=pytest.fail)
    assert 0 <= result["by_class"]["dog"] <= 1
    assert result["by_class"]["cat"] is None
    state = torch.load(tmp_path / "out" / "detector.pt")
    weights = safetensors.load_file(tmp_path / "weights")
    assert torch.equal(state["backbone.body.conv1.weight"], weights["conv1.weight"])  # a stage that does not learn
    assert not torch.equal(state["backbone.body.layer4.2.conv3.weight"], weights["layer4.2.conv3.weight"])

    export.save(on_torch.TorchEncoder(on_torch.ResNet50(preactivation=True)), tmp_path / "second")
    options[3] = str(tmp_path / "out2")
    assert example.main([str(tmp_path / "second"), *options]) == 2
    assert "pre-activation has no place in torchvision's detectors" in capsys.readouterr().err
