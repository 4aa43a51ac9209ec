"""Detection on VOC: the folder and what may be wrong with it, average precision by hand, weights for a backbone."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from la_core import voc
from la_core.errors import BackendError, DataError, KindError, NotFiniteError, RangeError, ShapeError
from la_core.voc import VOC, Detections, Objects

NONE = Objects(np.empty((0, 4)), np.empty(0, np.int64), np.empty(0, bool))
NOTHING = Detections(np.empty((0, 4)), np.empty(0, np.int64), np.empty(0))
DOG = voc.CLASSES.index("dog")

OBJECT = """<object><name>{name}</name><part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax>
<ymax>2</ymax></bndbox></part><difficult>{difficult}</difficult>
<bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"""


def xml(*objects, width=20, height=16):
    return f"<annotation><size><width>{width}</width><height>{height}</height></size>{''.join(objects)}</annotation>"


def thing(name, *box, difficult=0):
    return OBJECT.format(*box, name=name, difficult=difficult)


def folder(root, annotations, split="trainval"):
    """A folder of VOC's layout with images of 20 x 16 pixels."""
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / part).mkdir(parents=True, exist_ok=True)
    for i, (name, text) in enumerate(annotations.items()):
        Image.fromarray(np.full((16, 20, 3), 40 * i, np.uint8)).save(root / "JPEGImages" / f"{name}.jpg")
        (root / "Annotations" / f"{name}.xml").write_text(text)
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}  1\n" for name in annotations))
    return root


# The folder -----------------------------------------------------------------------------------------------------------


def test_a_folder_is_read_in_the_order_of_its_list(tmp_path):
    dog, cat = thing("dog", 1, 1, 20, 16), thing("cat", 3, 4, 3, 4.5, difficult=1)
    data = VOC(folder(tmp_path, {"000007": xml(dog, cat), "000002": xml()}), "trainval")
    assert (len(data), data.ids) == (2, ["000007", "000002"])
    image, objects = data[0]
    assert image.shape == (16, 20, 3)
    np.testing.assert_array_equal(objects.boxes, [[0, 0, 20, 16], [2, 3, 3, 4.5]])  # edges; the part's box is not taken
    np.testing.assert_array_equal(objects.labels, [DOG, voc.CLASSES.index("cat")])
    np.testing.assert_array_equal(objects.difficult, [False, True])
    assert data[1][1].boxes.shape == (0, 4)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "sub/000001", "..\\\\secret"])
def test_a_list_cannot_name_what_lies_elsewhere(tmp_path, name):
    place = folder(tmp_path, {"000007": xml()})
    (place / "ImageSets" / "Main" / "trainval.txt").write_text(f"000007\n{name}\n")
    with pytest.raises(DataError, match="names an image outside of JPEGImages"):
        VOC(place, "trainval")


BOMB = '<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>' + xml(thing("&b;", 1, 1, 2, 2))
OUTSIDE = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]>' + xml(thing("&b;", 1, 1, 2, 2))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "not well-formed XML"),
        (xml()[:-5], "not well-formed XML"),
        ("\x00\x01", "not well-formed XML"),
        (BOMB, "declares a document type"),
        (OUTSIDE, "declares a document type"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "Annotations/000001.xml"),
        (xml(thing("&unknown;", 1, 1, 2, 2)), "not well-formed XML"),
        ("<annotation/>", "size/width must be a number; got None"),
        (xml(width="wide"), "size/width must be a number; got 'wide'"),
        (xml(thing("wolf", 1, 1, 2, 2)), "object 1 is of class 'wolf'"),
        (xml("<object><name>dog</name></object>"), r"object 1 \(dog\): bndbox/xmin must be a number"),
        (xml(thing("dog", 1, 1, "nan", 2)), "bndbox/xmax must be a number; got 'nan'"),
        (xml(thing("dog", 1, 1, 2, 2), thing("cat", 0, 1, 2, 2)), r"object 2 \(cat\) must lie in its image.*\(0, 1\)"),
        (xml(thing("dog", 1, 1, 21, 2)), r"pixels 1 to 20 by 1 to 16; its box is \(1, 1\) to \(21, 2\)"),
        (xml(thing("dog", 1, 1, 20, 17)), "must lie in its image"),
        (xml(thing("dog", 9, 1, 8, 2)), "must lie in its image"),
    ],
)
def test_an_annotation_that_cannot_be_used_is_named(tmp_path, text, told):
    with pytest.raises(DataError, match=told) as error:
        VOC(folder(tmp_path, {"000001": text}), "trainval")
    assert "000001.xml" in str(error.value)


def test_files_that_are_missing_are_named(tmp_path):
    with pytest.raises(DataError, match=r"val\.txt cannot be read"):
        VOC(folder(tmp_path, {"1": xml(), "2": xml()}), "val")
    (tmp_path / "JPEGImages" / "1.jpg").unlink()
    (tmp_path / "Annotations" / "2.xml").unlink()
    with pytest.raises(DataError, match=r"files are missing: .*1\.jpg, and 1 more"):
        VOC(tmp_path, "trainval")
    with pytest.raises(DataError, match="names no images"):
        VOC(folder(tmp_path, {}), "trainval")


def test_an_image_that_cannot_be_used_is_named(tmp_path):
    data = VOC(folder(tmp_path, {"1": xml(), "2": xml(width=16, height=20)}), "trainval")
    (tmp_path / "JPEGImages" / "1.jpg").write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"1\.jpg cannot be read: it is no image"):
        data[0]
    with pytest.raises(DataError, match=r"2\.jpg is 20 x 16, but .*2\.xml says 16 x 20"):
        data[1]


# Average precision ----------------------------------------------------------------------------------------------------


def at(*lefts, label=0):
    """Boxes of 10 x 10 that lie apart, by their number."""
    boxes = np.array([[20 * x, 0, 20 * x + 10, 10] for x in lefts], dtype=float).reshape(-1, 4)
    return boxes, np.full(len(lefts), label)


def there(*lefts, difficult=()):
    return Objects(*at(*lefts), np.isin(lefts, difficult))


def claims(*pairs):
    """(which box, score)"""
    return Detections(*at(*(left for left, _ in pairs)), np.array([score for _, score in pairs], dtype=float))


def ap(detections, objects, **options):
    return voc.average_precision(detections, objects, ("thing",), **options).mean


def hand_computed():
    # One of two found: precision 1 up to recall 1/2, that is at 0, .1, ..., .5.
    assert ap([claims((0, 0.9))], [there(0, 1)]) == pytest.approx(6 / 11)
    # A false one first: precision 1/2 at recall 1.
    assert ap([claims((5, 0.9), (0, 0.8))], [there(0)]) == pytest.approx(1 / 2)
    # right, wrong, right of three objects: precisions 1 up to 1/3 (0 to .3), 2/3 up to 2/3 (.4 to .6), then nothing.
    found = claims((0, 0.9), (7, 0.8), (1, 0.7))
    assert ap([found], [there(0, 1, 2)]) == pytest.approx((4 + 3 * 2 / 3) / 11)
    # The second detection of an object is wrong: precision 1 up to 1/2, then 2/3.
    found = claims((0, 0.9), (0, 0.8), (1, 0.7))
    assert ap([found], [there(0, 1)]) == pytest.approx((6 + 5 * 2 / 3) / 11)
    # Three of ten: recall .3 counts at the point .3, though 3 / 10 < 0.3 in floats of some sums.
    assert ap([claims(*((i, 1 - i / 100) for i in range(3)))], [there(*range(10))]) == pytest.approx(4 / 11)
    # A difficult object is not asked for, and to find it, however often, is not counted.
    found = claims((0, 0.9), (0, 0.8), (1, 0.7))
    assert ap([found], [there(0, 1, difficult=(0,))]) == 1
    # An object in another image does not help.
    assert ap([claims((0, 0.9)), NOTHING], [NONE, there(0)]) == 0


def test_hand_computed_cases():
    hand_computed()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("overlaps", lambda a, b: np.ones((len(a), len(b)))),
        ("_of_class", lambda label, found, there, overlap: 1.0),
    ],
)
def test_hand_computed_cases_see_a_planted_bug(monkeypatch, name, wrong):
    monkeypatch.setattr(voc, name, wrong)
    with pytest.raises(AssertionError):
        hand_computed()


def test_overlap_is_that_of_the_rule():
    a, b = np.array([[0, 0, 10, 10], [3, 3, 3, 3]]), np.array([[0, 0, 10, 5], [5, 5, 15, 15], [10, 0, 20, 10]])
    np.testing.assert_allclose(voc.overlaps(a, b), [[0.5, 25 / 175, 0], [0, 0, 0]])
    half = Detections(np.array([[0, 0, 10, 5.0]]), np.array([0]), np.array([1.0]))
    assert ap([half], [there(0)]) == 1  # 0.5 is enough
    assert ap([half], [there(0)], overlap=0.51) == 0


def test_a_detection_stands_for_the_object_that_it_overlaps_most():
    close = Objects(np.array([[0, 0, 10, 10.0], [2, 0, 12, 10]]), np.array([0, 0]), np.array([False, False]))
    both = Detections(close.boxes[::-1], np.array([0, 0]), np.array([0.9, 0.8]))
    assert ap([both], [close]) == 1
    # Twice the same box: the second is wrong, though another object is near enough. Recall stays at 1/2.
    assert ap([both._replace(boxes=close.boxes[[0, 0]])], [close]) == pytest.approx(6 / 11)


scenes = st.lists(
    st.tuples(
        st.sets(st.integers(0, 4), max_size=4),
        st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0.1, 0.5, 0.5, 0.9])), max_size=6),
    ),
    min_size=1,
    max_size=4,
).filter(lambda scene: any(lefts for lefts, _ in scene))


@given(scenes, st.randoms())
def test_laws(scene, random):
    objects = [there(*sorted(lefts)) for lefts, _ in scene]
    found = [claims(*pairs) for _, pairs in scene]
    value = ap(found, objects)
    assert 0 <= value <= 1
    assert ap([claims(*((left, 0.5) for left in lefts)) for lefts, _ in scene], objects) == 1
    assert ap([NOTHING] * len(scene), objects) == 0
    # Neither the order of the images nor that of the detections in them matters, nor the scale of the scores.
    order = random.sample(range(len(scene)), len(scene))
    shuffled = []
    for f in (found[i] for i in order):
        turn = random.sample(range(len(f.scores)), len(f.scores))
        shuffled.append(Detections(f.boxes[turn], f.labels[turn], np.exp(7 * f.scores[turn])))
    assert ap(shuffled, [objects[i] for i in order]) == value
    # To say everything once more, less surely, finds nothing new.
    again = [Detections(f.boxes, f.labels, f.scores - 1) for f in found]
    both = [Detections(*map(np.concatenate, zip(f, g, strict=True))) for f, g in zip(found, again, strict=True)]
    assert ap(both, objects) == value
    # More objects that are difficult change nothing.
    more = [
        Objects(*(np.concatenate(pair) for pair in zip(o, Objects(*at(9), np.array([True])), strict=True)))
        for o in objects
    ]
    assert ap(found, more) == value


def test_each_class_by_itself_and_a_class_without_objects_is_not_in_the_mean():
    objects = [Objects(np.vstack([at(0)[0], at(1)[0]]), np.array([0, 1]), np.zeros(2, bool))]
    found = [Detections(*at(0, 1), np.array([0.9, 0.8]))]
    result = voc.average_precision(found, objects, ("a", "b", "c"))
    assert result.by_class["a"] == 1
    assert result.by_class["b"] == 0
    assert np.isnan(result.by_class["c"])
    assert result.mean == 0.5
    assert "mean" in str(result)
    assert "50.0%" in str(result)
    assert np.isnan(voc.average_precision([NOTHING], [NONE]).mean)


@pytest.mark.parametrize(
    ("detections", "objects", "error", "told"),
    [
        ([NOTHING], [], ShapeError, "for each image; got 1 and 0"),
        ([Detections(np.zeros((2, 3)), np.zeros(2, int), np.zeros(2))], [NONE], ShapeError, "detections of image 0"),
        ([Detections(np.zeros((2, 4)), np.zeros(2, int), np.zeros(1))], [NONE], ShapeError, "detections of image 0"),
        ([Detections(np.zeros((1, 4)), np.zeros(1), np.zeros(1))], [NONE], KindError, "integer labels"),
        ([Detections(np.zeros((1, 4)), np.array([1]), np.zeros(1))], [NONE], RangeError, "labels from 0 to 0"),
        ([Detections(np.zeros((1, 4)), np.array([0]), np.array([np.nan]))], [NONE], NotFiniteError, "NaN"),
        ([Detections(np.array([[1, 0, 0, 1]]), np.array([0]), np.zeros(1))], [NONE], RangeError, "x1 > x2"),
        ([NOTHING], [Objects(np.zeros((1, 4)), np.array([4]), np.zeros(1, bool))], RangeError, "objects of image 0"),
    ],
)
def test_bad_input(detections, objects, error, told):
    with pytest.raises(error, match=told):
        ap(detections, objects)
    with pytest.raises(RangeError, match="overlap"):
        ap([NOTHING], [NONE], overlap=0)


# Weights for the backbone ---------------------------------------------------------------------------------------------

ENCODER = {
    "conv1.weight": (4, 3, 7, 7),
    "bn1.weight": (4,),
    "bn1.running_mean": (4,),
    "layer1.0.conv1.weight": (4, 4, 1, 1),
    "layer1.0.downsample.0.weight": (16, 4, 1, 1),
    "fc.weight": (128, 16),
    "fc.bias": (128,),
}
DETECTOR = {
    **{f"backbone.body.{name}": shape for name, shape in ENCODER.items() if not name.startswith("fc")},
    "backbone.body.bn1.num_batches_tracked": (),
    "backbone.fpn.inner_blocks.0.0.weight": (256, 16, 1, 1),
    "rpn.head.conv.0.0.weight": (256, 256, 3, 3),
    "roi_heads.box_predictor.cls_score.weight": (21, 1024),
}


def weights(**changes):
    shapes = ENCODER | changes
    return {name: np.full(shape, i, np.float32) for i, (name, shape) in enumerate(shapes.items()) if shape is not None}


def test_weights_take_torchvisions_names():
    mine = weights()
    found = voc.backbone(mine, DETECTOR)
    assert found.dropped == ["fc.bias", "fc.weight"]
    assert set(found.weights) == {f"backbone.body.{name}" for name in ENCODER if not name.startswith("fc")}
    for name, x in found.weights.items():
        np.testing.assert_array_equal(x, mine[name.removeprefix("backbone.body.")])


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"conv1.weight": None}, KindError, r"missing \['backbone.body.conv1.weight'\], unknown \[\]"),
        ({"layer9.weight": (1,)}, KindError, r"unknown \['backbone.body.layer9.weight'\]$"),
        ({"bn5.weight": (16,)}, KindError, "pre-activation"),
        ({"conv1.weight": (4, 3, 3, 3)}, ShapeError, r"conv1.weight .* \(4, 3, 7, 7\); got \(4, 3, 3, 3\)"),
    ],
)
def test_weights_of_another_network_are_refused(changes, error, told):
    with pytest.raises(error, match=told):
        voc.backbone(weights(**changes), DETECTOR)


def test_a_detector_without_such_a_backbone_is_refused():
    with pytest.raises(KindError, match=r"begin with 'backbone\.'"):
        voc.backbone(weights(), {"conv1.weight": (4, 3, 7, 7)}, prefix="backbone.")


# The example, with a detector of torchvision's interface --------------------------------------------------------------


@pytest.fixture(scope="module")
def example():
    pytest.importorskip("torch")
    path = Path(__file__).parents[1] / "examples" / "finetune_voc.py"
    spec = importlib.util.spec_from_file_location("finetune_voc", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small_detector():
    """Learns one box and the score of each class for all images."""
    import torch

    class Small(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.box = torch.nn.Parameter(torch.tensor([8.0, 6.0, 12.0, 10.0]))
            self.scores = torch.nn.Parameter(torch.zeros(21))
            self.seen = []

        def forward(self, images, targets=None):
            if not self.training:
                best = self.scores.softmax(0)[1:].argmax() + 1
                one = {"boxes": self.box[None], "labels": best[None], "scores": torch.ones(1)}
                return [one for _ in images]
            self.seen += [(image, target) for image, target in zip(images, targets, strict=True)]
            labels = torch.cat([target["labels"] for target in targets])
            boxes = torch.cat([target["boxes"] for target in targets])
            if not len(labels):
                return {"box": 0 * self.box.sum()}
            logits = self.scores.expand(len(labels), 21)
            return {
                "box": (self.box - boxes).square().mean(),
                "class": torch.nn.functional.cross_entropy(logits, labels),
            }

    return Small()


def test_the_loop_of_the_example_trains_and_tests_a_detector(example, tmp_path):
    dog, hidden = thing("dog", 6, 5, 15, 12), thing("cat", 1, 1, 2, 2, difficult=1)  # alike when mirrored
    data = VOC(folder(tmp_path, {str(i): xml(dog, hidden) for i in range(4)}), "trainval")
    model, told = small_detector(), []
    before = voc.average_precision(example.detect(model, data), data.objects).mean
    example.fine_tune(model, data, epochs=60, batch_size=2, learning_rate=5.0, tell=told.append)
    after = voc.average_precision(example.detect(model, data), data.objects).mean
    assert (before, after) == (0, 1)
    assert len(told) == 60
    image, target = model.seen[0]
    assert image.shape == (3, 16, 20)
    assert float(image.max()) <= 1
    assert target["labels"].tolist() == [DOG + 1]  # 0 is the background; what is difficult is not shown
    np.testing.assert_allclose(model.box.detach(), [5, 4, 15, 12], atol=0.5)


def test_a_mirrored_image_has_its_boxes_mirrored(example):
    image = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(4, 5, 3)
    objects = Objects(np.array([[1.0, 0, 3, 2]]), np.array([0]), np.array([False]))
    turned, boxes = example.mirror(image, objects)
    np.testing.assert_array_equal(turned[0:2, 2:4][:, ::-1], image[0:2, 1:3])
    np.testing.assert_array_equal(boxes.boxes, [[2, 0, 4, 2]])
    twice = example.mirror(turned, boxes)
    np.testing.assert_array_equal(twice[0], image)
    np.testing.assert_array_equal(twice[1].boxes, objects.boxes)


def test_a_loss_that_is_not_finite_stops_it(example, tmp_path):
    data = VOC(folder(tmp_path, {"1": xml(thing("dog", 1, 1, 9, 9))}), "trainval")
    with pytest.raises(NotFiniteError, match="step"):
        example.fine_tune(small_detector(), data, epochs=400, batch_size=1, learning_rate=1e9)


def test_weights_reach_a_detector_of_torchvisions_names(example, tmp_path):
    torch = pytest.importorskip("torch")
    numpy = pytest.importorskip("safetensors.numpy")
    body = torch.nn.Module()
    body.conv1, body.bn1 = torch.nn.Conv2d(3, 4, 7, bias=False), torch.nn.BatchNorm2d(4)
    model = torch.nn.Module()
    model.backbone = torch.nn.Module()
    model.backbone.body, model.backbone.fpn = body, torch.nn.Linear(2, 2)
    pyramid = model.backbone.fpn.weight.detach().clone()
    given = {name: x.numpy() + 1 for name, x in body.state_dict().items() if "num_batches" not in name}
    numpy.save_file({**given, "fc.weight": np.zeros((2, 2), np.float32)}, tmp_path / "w.safetensors")
    assert example.fill(model, tmp_path / "w.safetensors") == ["fc.weight"]
    for name, x in given.items():
        np.testing.assert_array_equal(model.state_dict()[f"backbone.body.{name}"], x)
    np.testing.assert_array_equal(model.backbone.fpn.weight.detach(), pyramid)
    with pytest.raises(DataError, match="cannot be read as safetensors"):
        example.fill(model, tmp_path / "none.safetensors")


def test_without_torchvision_it_says_what_to_install(example, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torchvision.models.detection", None)
    with pytest.raises(BackendError, match="pip install torchvision"):
        example.detector(20, 3)
    folder(tmp_path, {"1": xml()}, "trainval")
    folder(tmp_path, {"1": xml()}, "test")
    given = ["w.safetensors", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert example.main(given) == 2
    assert "error: fine-tuning a detector needs torchvision" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
