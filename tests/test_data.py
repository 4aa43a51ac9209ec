"""Sources, the order of an epoch, and views."""

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from la_core import data, views
from la_core.data import loading
from la_core.errors import DataError, RangeError, SettingsError
from la_core.randomness import generator


@given(n=st.integers(1, 60), size=st.integers(1, 70), seed=st.integers(0, 5), epoch=st.integers(0, 5))
def test_an_epoch_visits_every_sample_once_in_an_order_of_its_own(n, size, seed, epoch):
    order = data.batches(n, size, seed=seed, epoch=epoch)
    again = data.batches(n, size, seed=seed, epoch=epoch)
    flat = np.concatenate(order)
    assert sorted(flat.tolist()) == list(range(n))
    assert len(order) == -(-n // size)
    assert max(map(len, order)) <= min(size, min(map(len, order)) + 1)
    np.testing.assert_array_equal(flat, np.concatenate(again))
    if n >= 30:
        assert flat.tolist() != np.concatenate(data.batches(n, size, seed=seed, epoch=epoch + 1)).tolist()
        assert flat.tolist() != np.concatenate(data.batches(n, size, seed=seed + 1, epoch=epoch)).tolist()


@given(
    seed=st.integers(0, 2**70),
    purpose=st.sampled_from(["view", ""]),
    counters=st.lists(st.integers(0, 2**40), max_size=4),
)
def test_draws_are_those_of_numpy_s_spawn_keys(seed, purpose, counters):
    key = (zlib.crc32(purpose.encode()), *counters)
    told = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))
    assert generator(seed, purpose, *counters).integers(2**63, size=3).tolist() == told.integers(2**63, size=3).tolist()


@pytest.mark.parametrize(("seed", "counter"), [(1.5, 0), (-1, 0), (0, 1.5), (0, -1), (None, 1.0)])
def test_a_seed_that_is_no_whole_number_is_refused(seed, counter):
    with pytest.raises((TypeError, ValueError)):
        generator(seed, "view", counter)


def test_a_view_depends_on_seed_epoch_and_sample_and_not_on_its_batch():
    images = data.samples(np.random.default_rng(0).integers(0, 256, (9, 20, 24, 3), dtype=np.uint8))
    view = views.ImageView(size=16, degrees=20, shift=0.1, scale=(0.8, 1.2), shear=5)
    whole = data.load(images, range(9), view, (3, 1))
    np.testing.assert_array_equal(whole[[7, 2]], data.load(images, [7, 2], view, (3, 1)))
    assert not np.array_equal(whole, data.load(images, range(9), view, (3, 2)))
    assert not np.array_equal(whole, data.load(images, range(9), view, (4, 1)))
    assert whole.shape == (9, 3, 16, 16)
    assert whole.dtype == np.float32


def test_several_views_of_a_batch_are_its_views_one_after_the_other_and_each_sample_is_read_once():
    class Counted(list):
        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            return super().__getitem__(index)

    rows = Counted(np.random.default_rng(0).standard_normal((5, 8)))
    view, keys = views.FeatureView(noise=0.5), [(3, 1), None, (4, 1)]
    alone = [data.load(data.samples(list(rows)), [4, 0], view, key) for key in keys]
    rows.reads = 0
    np.testing.assert_array_equal(data.load(data.samples(rows), [4, 0], view, *keys), np.concatenate(alone))
    assert rows.reads == 2
    np.testing.assert_array_equal(data.load(data.samples(rows), [4, 0], view), alone[1])


def law_a_batch_is_its_samples_one_by_one(side):
    """Of small samples and of large ones, with one twice, and for every number up to some more than a group."""
    draw = np.random.default_rng(side)
    some = data.samples(draw.integers(0, 256, (6, side, side, 3), dtype=np.uint8))
    view, keys = views.ImageView(size=3), ((3, 1), None)
    one_by_one = {i: data.load(some, [i], view, *keys) for i in range(6)}
    for n in (0, 1, 5, loading.AT_ONCE, loading.AT_ONCE + 1, 2 * loading.AT_ONCE):
        order = draw.integers(6, size=n)
        groups = [len(group) for group in loading._groups(some, order)]
        assert sum(groups) == n
        assert max(groups, default=1) <= (loading.AT_ONCE if side == 4 else 1)
        if n:
            want = np.stack([one_by_one[i] for i in order.tolist()], axis=1).reshape(2 * n, 3, 3, 3)
            np.testing.assert_array_equal(data.load(some, order, view, *keys), want)


@pytest.mark.parametrize("side", [4, 700])
def test_a_batch_is_its_samples_one_by_one_however_many_are_taken_at_once(side):
    law_a_batch_is_its_samples_one_by_one(side)


@pytest.mark.parametrize("key", [None, (3, 1)], ids=str)
def test_a_view_that_fails_among_others_is_named(key):
    """Views of images are made a group at a time; those of others one by one, each once."""
    images = [np.zeros((4, 4), np.uint8) for _ in range(loading.AT_ONCE)]
    images[5] = images[9] = np.zeros((4, 4, 5), np.uint8)  # of five channels
    some = data.samples(images)
    with pytest.raises(DataError, match=r"view of sample 5 \(4, 4, 5\) uint8 failed"):
        data.load(some, range(len(images)), views.ImageView(size=3), key)

    seen = []

    def fails_at_the_third(sample, rng):
        seen.append((sample.shape, rng is None))
        return 1 / (3 - len(seen))

    with pytest.raises(DataError, match=r"view of sample 2 \(4, 4\) uint8 failed: division by zero"):
        data.load(some, range(len(images)), fails_at_the_third, key)
    assert seen == [((4, 4), key is None)] * 3


def test_the_evaluation_view_is_the_centred_square():
    image = np.zeros((10, 30), np.uint8)
    image[:, 10:20] = 255
    seen = views.ImageView(size=10, mean=(0.0,), std=(1.0,))(image, None)
    np.testing.assert_array_equal(seen, np.ones((1, 10, 10), np.float32))


def law_what_pillow_would_leave_alone_is_left_alone(shape):
    """An image of its very size is its own evaluation view, whether or not it goes through Pillow."""
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    view = views.ImageView(size=6)
    pixels = Image.fromarray(image[:, :, 0] if shape[2:] == (1,) else image)
    want = np.asarray(view._centre(pixels))
    np.testing.assert_array_equal(view.begin([image], None)[0].pixels, want, strict=True)


@pytest.mark.parametrize("shape", [(6, 6), (6, 6, 1), (6, 6, 3), (6, 6, 4), (6, 9), (12, 12, 3)], ids=str)
def test_what_pillow_would_leave_alone_is_left_alone(shape):
    law_what_pillow_would_leave_alone_is_left_alone(shape)


def test_a_view_without_randomness_left_is_the_evaluation_view():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
    still = views.ImageView(size=12, crop=(1, 1), flip=0, grayscale=0, jitter=(0, 0, 0, 0))
    np.testing.assert_array_equal(still(image, rng), still(image, None))
    flipped = views.ImageView(size=12, crop=(1, 1), flip=1, grayscale=0, jitter=(0, 0, 0, 0))
    np.testing.assert_array_equal(flipped(image, rng)[:, :, ::-1], still(image, None))


def test_an_affine_view_turns_about_the_centre():
    image = np.zeros((41, 41), np.uint8)
    image[18:23, 18:23] = 255
    view = views.ImageView(
        size=41, crop=(1, 1), degrees=180, scale=(0.9, 1.1), flip=0, jitter=(0,) * 4, mean=(0.0,), std=(1.0,)
    )
    for seed in range(5):
        seen = view(image, np.random.default_rng(seed))[0]
        rows, columns = np.indices(seen.shape)
        centre = [(seen * axis).sum() / seen.sum() for axis in (rows, columns)]
        np.testing.assert_allclose(centre, [20, 20], atol=0.3)


def test_gray_has_three_equal_channels_and_a_full_turn_of_the_hue_changes_little():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    gray = views.ImageView(size=16, crop=(1, 1), flip=0, grayscale=1, jitter=(0,) * 4, mean=(0.0,) * 3, std=(1.0,) * 3)
    seen = gray(image, np.random.default_rng(0))
    np.testing.assert_array_equal(seen[0], seen[1])
    np.testing.assert_array_equal(seen[0], seen[2])
    turned = np.asarray(views._turn_hue(Image.fromarray(image), 1.0), dtype=int)
    assert np.abs(turned - image).max() <= 8  # HSV in 8 bits and back


def law_of_levels(levels):
    """Brightness and contrast of a batch of gray images are what Pillow makes of each, pixel for pixel."""
    rng = np.random.default_rng(0)
    images = np.concatenate([rng.integers(0, 256, (30, 7, 9)), 255 * (rng.random((30, 7, 9)) < 0.1)]).astype(np.uint8)
    batch = images[:, None].astype(np.float32)
    levels(batch, changes := [tuple((which, rng.uniform(-1, 1)) for which in rng.permutation(2)) for _ in images])
    for image, change, seen in zip(images, changes, batch[:, 0], strict=True):
        pillow = Image.fromarray(image)
        for which, amount in change:
            pillow = (ImageEnhance.Brightness, ImageEnhance.Contrast)[which](pillow).enhance(1 + amount)
        np.testing.assert_array_equal(seen, np.asarray(pillow))


def test_gray_images_are_levelled_as_by_pillow(monkeypatch):
    law_of_levels(views._level)
    monkeypatch.setattr(views, "_middle", lambda pixels: pixels.mean(axis=(1, 2, 3), keepdims=True))
    with pytest.raises(AssertionError):
        law_of_levels(views._level)


def test_a_batch_is_its_views_one_by_one():
    rng = np.random.default_rng(0)
    gray = data.samples(rng.integers(0, 256, (5, 9, 12), dtype=np.uint8))
    colour = data.samples(rng.integers(0, 256, (5, 9, 12, 3), dtype=np.uint8))
    for some, view in ((gray, views.ImageView(size=8)), (colour, views.ImageView(size=8))):
        batch = data.load(some, range(5), view, (3, 1), None)
        alone = [view(some[i], generator(3, "view", 1, i)) for i in range(5)] + [view(some[i], None) for i in range(5)]
        np.testing.assert_array_equal(batch, np.stack(alone))
        assert batch.flags.c_contiguous


def test_a_class_made_from_a_view_is_asked_itself():
    class Inverted(views.ImageView):
        def __call__(self, sample, rng):
            return -super().__call__(sample, rng)

    some = data.samples(np.arange(4 * 9, dtype=np.uint8).reshape(1, 6, 6))
    np.testing.assert_array_equal(
        data.load(some, [0], Inverted(size=4), None), -data.load(some, [0], views.ImageView(size=4), None)
    )


@pytest.mark.parametrize(
    "bad",
    [
        {"size": 0},
        {"size": 2.5},
        {"crop": (0.0, 1.0)},
        {"crop": (0.5, 1.1)},
        {"scale": (1.2, 0.8)},
        {"ratio": (-1.0, 1.0)},
        {"flip": 1.5},
        {"grayscale": -0.1},
        {"shift": 2.0},
        {"shear": 90.0},
        {"jitter": (0.4, 0.4, 0.4, 0.6)},
        {"jitter": (0.4, 0.4)},
        {"degrees": float("nan")},
        {"mean": (float("nan"),) * 3},
        {"std": (0.0, 1.0, 1.0)},
    ],
)
def test_a_view_that_no_image_could_have_is_refused(bad):
    with pytest.raises(SettingsError, match=next(iter(bad))):
        views.ImageView(**bad)


@pytest.mark.parametrize("bad", [{"noise": -1.0}, {"noise": float("inf")}, {"drop": 1.0}, {"drop": float("nan")}])
def test_a_feature_view_that_leaves_nothing_is_refused(bad):
    with pytest.raises(SettingsError, match=next(iter(bad))):
        views.FeatureView(**bad)


def test_feature_views():
    x = np.ones(1000)
    noisy = views.FeatureView(noise=0.5, drop=0.25)
    np.testing.assert_array_equal(noisy(x, None), x.astype(np.float32))
    seen = noisy(x, np.random.default_rng(0))
    assert 0.2 < (seen == 0).mean() < 0.3
    assert 0.4 < seen[seen != 0].std() < 0.6


class Pairs:
    """A map-style data set, as frameworks have them."""

    targets = (1, 0, 1)

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return np.full((4, 4), index, np.uint8), self.targets[index]


def test_any_sized_indexable_source(tmp_path):
    array = np.arange(12.0, dtype=np.float32).reshape(4, 3)
    np.save(tmp_path / "x.npy", array)
    for source in (array, np.load(tmp_path / "x.npy", mmap_mode="r"), list(array)):
        some = data.samples(source)
        assert some.classes is None
        np.testing.assert_array_equal(data.load(some, [2, 0], views.FeatureView(), None), array[[2, 0]])
    pairs = data.samples(Pairs())
    assert pairs.classes.tolist() == [1, 0, 1]
    assert pairs[2].tolist() == np.full((4, 4), 2).tolist()
    part = pairs.part(np.array([2, 1]))
    assert part.classes.tolist() == [1, 0]
    assert part[0][0, 0] == 2


def test_batches_of_nothing_are_refused():
    with pytest.raises(RangeError, match="batch_size"):
        data.batches(10, 0, seed=0, epoch=0)


@pytest.mark.parametrize("dtype", ["i1", "u2", "u8", ">i4", ">u8"])
def test_classes_are_kept_as_integers_that_every_library_has(dtype):
    classes = data.samples(np.zeros((4, 3)), np.array([0, 2, 2, 5], dtype)).classes
    assert classes.dtype == np.dtype("int64")
    assert classes.dtype.isnative
    assert classes.tolist() == [0, 2, 2, 5]


def test_classes_that_are_all_minus_one_are_not_known():
    class Unlabelled(list):
        labels = np.full(3, -1)

    for some in (data.samples(np.zeros((3, 2)), [-1] * 3), data.samples(Unlabelled(np.zeros((3, 2))))):
        assert some.classes is None
        assert some.part(np.array([1])).classes is None


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda tmp: data.samples(np.zeros((0, 3))), "empty"),
        (lambda tmp: data.samples(tmp), "no image"),
        (lambda tmp: data.samples(tmp / "nowhere"), "not a folder"),
        (lambda tmp: data.samples(__file__), "neither a folder"),
        (lambda tmp: data.samples(iter([1])), "sized and indexable"),
        (lambda tmp: data.samples(np.zeros((4, 3)), np.zeros(3, int)), "classes must have shape"),
        (lambda tmp: data.samples([np.zeros(3), np.full(3, np.nan)])[1], "sample 1 holds NaN"),
        (lambda tmp: data.samples(np.zeros((4, 3)), np.zeros(4)), "integers"),
        (lambda tmp: data.samples(np.zeros((4, 3)), [0, 1, -1, 2]), "at least 0"),
        (lambda tmp: data.samples(np.zeros((4, 3)), ["a", "b", "a", "b"]), "classes must be integers"),
        (lambda tmp: data.samples(data.samples(np.zeros((4, 3))), [0, 1]), "classes must have shape"),
        (lambda tmp: data.samples([{"image": 1, "label": 2}])[0], "image, label: la_core.data.from_hub"),
        (lambda tmp: data.samples({"train": [1]}), "sized and indexable"),
        (lambda tmp: data.samples([object()])[0], "sample 0 must be an array"),
        (
            lambda tmp: data.load(data.samples([np.zeros(2), np.zeros(3)]), [0, 1], views.FeatureView(), None),
            "one shape",
        ),
        (lambda tmp: data.samples([[1.0, 2.0], [3.0, 4.0]])[0], "a single number: rows must be arrays"),
        (lambda tmp: data.samples(np.zeros((4, 3))).part(np.array([0.5])), "part takes numbers"),
        (lambda tmp: data.samples(np.zeros((4, 3))).part(np.array([True, False])), "part takes numbers"),
        (lambda tmp: data.samples(np.zeros((4, 3))).part(np.array([1, 4])), "of the 4 samples"),
        (lambda tmp: views.ImageView()(np.zeros((4, 4)), None), "uint8"),
        (
            lambda tmp: data.load(data.samples(np.zeros((2, 4, 4))), [1], views.ImageView(), None),
            r"view of sample 1 \(4, 4\) float64 failed",
        ),
    ],
)
def test_bad_data_says_what_is_wrong(tmp_path, make, words):
    with pytest.raises(DataError, match=words):
        make(tmp_path)


def test_pillow_images_of_a_map_style_data_set_are_decoded_as_files_are():
    colour, gray = Image.new("CMYK", (4, 6), (0, 255, 255, 0)), Image.new("LA", (4, 6), (9, 0))
    some = data.samples([(colour, 0), (gray, 1)])
    assert some[0].tolist() == np.full((6, 4, 3), (255, 0, 0)).tolist()
    assert some[1].tolist() == np.full((6, 4), 255).tolist()
    with pytest.raises(DataError, match="of one mode"):
        data.load(some, [0, 1], views.ImageView(size=4), None)


def test_a_torch_data_set():
    torch = pytest.importorskip("torch")
    rows, labels = torch.arange(6.0).reshape(3, 2), torch.tensor([0, 1, 1])
    pairs = torch.utils.data.TensorDataset(rows, labels)
    pairs.targets = labels
    some = data.samples(pairs)
    assert some.classes.tolist() == [0, 1, 1]
    np.testing.assert_array_equal(data.load(some, [2, 1], views.FeatureView(), None), rows[[2, 1]].numpy())


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_jitter_is_pillows_enhancement(mode, which):
    rng = np.random.default_rng(which)
    for _ in range(20):
        image = Image.fromarray(rng.integers(0, 256, size=(9, 7, 3), dtype=np.uint8)).convert(mode)
        factor = rng.uniform(0.3, 1.7)
        enhancer = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[which]
        ours = Image.blend(views._without(which, image), image, factor)
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(enhancer(image).enhance(factor)))


def test_a_part_is_taken_by_numbers_or_by_a_mask():
    every = data.samples(np.arange(8.0).reshape(4, 2), [0, 1, 2, 3])
    by_mask, by_number = every.part(np.array([False, True, False, True])), every.part(np.array([1, 3]))
    for part in (by_mask, by_number):
        assert part.classes.tolist() == [1, 3]
        assert [part[i].tolist() for i in range(2)] == [[2.0, 3.0], [6.0, 7.0]]


@pytest.mark.parametrize(("mean", "std"), [((0.15,), (0.3,)), ((0.15,), (0.2, 0.3, 0.4)), ((0.1, 0.15, 0.2), (0.3,))])
def test_mean_and_std_may_be_of_one_or_of_three_channels(mean, std):
    gray = np.random.default_rng(0).integers(0, 256, (5, 5), np.uint8)
    view = views.ImageView(size=5, mean=mean, std=std)
    np.testing.assert_allclose(view(gray, None)[0], (gray / 255 - 0.15) / 0.3, atol=1e-6)
    colour = np.stack([gray] * 3, axis=2)
    want = (colour / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(view(colour, None), want.transpose(2, 0, 1), atol=1e-6)


@pytest.mark.parametrize("several", [(), (0.5, 0.5)])
def test_mean_and_std_of_other_lengths_are_refused(several):
    for name in ("mean", "std"):
        with pytest.raises(SettingsError, match="one or three"):
            views.ImageView(**{name: several})
