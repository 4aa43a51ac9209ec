"""One image as an array, and a folder of them."""

import io
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from folders import CLASSES, bomb, mixed_folder, saved
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from la_core import data, views
from la_core.data import image_folder, images
from la_core.errors import DataError, SettingsError


def through(image, form, mode=None, **options):
    """An image as it is after it was saved and read."""
    return images.read(io.BytesIO(saved(image, form, **options)), mode)


# One image ------------------------------------------------------------------------------------------------------------


@given(values=st.lists(st.integers(0, 65535), min_size=1, max_size=20))
def test_16_bits_of_gray_are_scaled_by_their_bit_depth(values):
    v = np.array([values], np.uint16)
    for form in ("PNG", "TIFF", "PPM"):
        np.testing.assert_array_equal(through(Image.fromarray(v), form), np.rint(v / 257))
    assert through(Image.fromarray(v.astype(np.int32)), "TIFF").tolist() == np.rint(v / 257).tolist()


def test_float_gray_is_0_to_1():
    v = np.array([[0, 0.5, 1]], np.float32)
    assert through(Image.fromarray(v), "TIFF").tolist() == [[0, 128, 255]]
    for bad in (-0.1, 1.1, np.nan, np.inf):
        with pytest.raises(DataError, match="between 0 and 1 "):
            through(Image.fromarray(np.array([[0, bad]], np.float32)), "TIFF")
    for bad in (-1, 65536):
        with pytest.raises(DataError, match="between 0 and 65535 "):
            through(Image.fromarray(np.array([[0, bad]], np.int32)), "TIFF")


def law_of_white(red, green, blue, alpha):
    """A transparent pixel shows white to the share that it is transparent."""
    expected = 255 + (np.array([red, green, blue]) - 255) * (alpha / 255)
    colour = Image.new("RGBA", (2, 2), (red, green, blue, alpha))
    np.testing.assert_allclose(through(colour, "PNG")[0, 0], expected, atol=1)
    gray = through(Image.new("LA", (2, 2), (red, alpha)), "PNG")
    assert gray.shape == (2, 2)
    np.testing.assert_allclose(gray, expected[0], atol=1)
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, red, green, blue])
    np.testing.assert_allclose(through(palette, "PNG", transparency=bytes([255, alpha]))[0, 0], expected, atol=1)


BYTES = st.integers(0, 255)


@given(red=BYTES, green=BYTES, blue=BYTES, alpha=BYTES)
def test_alpha_is_over_white(red, green, blue, alpha):
    law_of_white(red, green, blue, alpha)


def test_dropping_alpha_is_caught(monkeypatch):
    monkeypatch.setattr(images, "pixels", lambda image, mode: np.asarray(image.convert("RGB")))
    with pytest.raises(AssertionError):
        law_of_white(10, 20, 30, 0)


def test_a_transparent_colour_is_white():
    assert through(Image.new("RGB", (2, 2), (1, 2, 3)), "PNG", transparency=(1, 2, 3)).tolist() == [[[255] * 3] * 2] * 2
    for gray in (Image.new("L", (2, 2), 7), Image.fromarray(np.full((2, 2), 7, np.uint16)), Image.new("1", (2, 2), 0)):
        key = 0 if gray.mode == "1" else 7
        assert through(gray, "PNG", transparency=key).tolist() == [[255, 255]] * 2
        assert (through(gray, "PNG") < 10).all()
    gif = Image.new("P", (2, 2), 1)
    gif.putpalette([0, 0, 0, 9, 9, 9])
    assert through(gif, "GIF", transparency=1)[0, 0].tolist() == [255] * 3


def test_every_mode_becomes_the_one_asked_for():
    red = {"RGB": (255, 0, 0), "CMYK": (0, 255, 255, 0), "P": (255, 0, 0), "RGBA": (255, 0, 0, 255)}
    for mode, colour in red.items():
        image = Image.new("RGB", (3, 2), colour).convert("P") if mode == "P" else Image.new(mode, (3, 2), colour)
        assert through(image, "TIFF").tolist() == [[[255, 0, 0]] * 3] * 2
        assert through(image, "TIFF", "L").tolist() == [[76] * 3] * 2
    for mode in ("1", "L", "I;16", "F"):
        image = Image.new(mode, (3, 2), 0)
        assert through(image, "TIFF").tolist() == [[0] * 3] * 2
        assert through(image, "TIFF", "RGB").tolist() == [[[0, 0, 0]] * 3] * 2
    assert through(Image.new("1", (2, 2), 1), "PNG").tolist() == [[255, 255]] * 2


@pytest.mark.parametrize("turn", range(1, 9))
def test_every_image_is_upright(turn):
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8))
    stored = upright if turn == 1 else upright.transpose(_UNDO[turn])
    exif = Image.Exif()
    exif[0x0112] = turn
    np.testing.assert_array_equal(through(stored, "PNG", exif=exif), np.asarray(upright))


_UNDO = {  # how an image is stored that the orientation of this number sets right
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("form", ["GIF", "TIFF", "WEBP", "PNG"])
def test_of_several_frames_the_first(form):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black", "black")]
    assert (through(frames[0], form, "L", save_all=True, append_images=frames[1:]) > 250).all()


def test_no_other_program_is_asked_to_draw(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("Ghostscript was called")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", refuse)
    with pytest.raises(DataError, match="no image of a known format"):
        images.read(io.BytesIO(saved(Image.new("RGB", (8, 8)), "EPS")))


def test_the_limit_is_ours_and_pillows_is_left_as_it_was(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # above it Pillow would warn, and above twice that raise
    image = io.BytesIO(saved(Image.new("L", (8, 8)), "PNG"))
    assert images.read(image).shape == (8, 8, 3)
    with pytest.raises(DataError, match="8 x 8 pixels, more than max_pixels = 63"):
        images.read(image, max_pixels=63)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_filters_of_warnings_which_all_threads_share_are_left_alone(monkeypatch):
    def touched(*_, **__):
        raise AssertionError("filters were touched")

    monkeypatch.setattr(images.warnings, "catch_warnings", touched)
    assert through(Image.new("RGB", (3, 2)), "PNG").shape == (2, 3, 3)


def test_pillow_is_asked_for_by_the_name_of_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(DataError, match=r"la-core\[demo\]"):
        data.ImageFolder(tmp_path)


# A folder of them -----------------------------------------------------------------------------------------------------


def names(folder):
    return [file.relative_to(folder.root).as_posix() for file in folder.files]


def law_of_skipping(made):
    """Every good file has its number, the place of its name among the good ones; every other is named with a reason."""
    with pytest.warns(UserWarning, match=f"left out {len(made.broken)} of {len(made.good) + len(made.broken)}"):
        folder = data.ImageFolder(made.root, on_error="skip")
    assert names(folder) == made.good
    assert {file.relative_to(made.root).as_posix(): r for file, r in folder.broken}.keys() == made.broken.keys()
    for file, reason in folder.broken:
        assert made.broken[file.relative_to(made.root).as_posix()] in reason
    return folder


def test_300_files_of_which_8_are_broken(tmp_path):
    made = mixed_folder(tmp_path)
    folder = law_of_skipping(made)
    assert (len(folder), len(folder.broken)) == (292, 8)
    assert folder.class_names == list(CLASSES)
    some = data.samples(folder)
    assert [CLASSES[c] for c in some.classes] == [name.split("/")[0] for name in made.good]
    batch = data.load(some, range(len(some)), views.ImageView(size=24), (0, 0))
    assert batch.shape == (292, 3, 24, 24)
    assert np.isfinite(batch).all()

    lazy = data.ImageFolder(tmp_path)
    assert len(lazy) == 300
    assert lazy.check() == folder.broken
    for file, _ in folder.broken:
        with pytest.raises(DataError, match=file.name):
            lazy[lazy.files.index(file)]


def test_numbers_that_shift_are_caught(tmp_path, monkeypatch):
    made = mixed_folder(tmp_path, n=40)
    listing = image_folder._listing

    def wrong(root, follow_links):
        found, refused = listing(root, follow_links)
        return found[::-1], refused

    monkeypatch.setattr(image_folder, "_listing", wrong)
    with pytest.raises(AssertionError):
        law_of_skipping(made)


def test_a_file_that_breaks_later_is_an_error_and_no_number_changes(tmp_path):
    made = mixed_folder(tmp_path, n=12, n_broken=0)
    folder = data.ImageFolder(tmp_path, on_error="skip")
    assert folder.broken == []
    folder.files[3].write_bytes(b"")
    folder.files[5].unlink()
    with pytest.raises(DataError, match=rf"{folder.files[3].name}.*empty"):
        folder[3]
    with pytest.raises(DataError, match=rf"{folder.files[5].name}.*No such file"):
        data.load(data.samples(folder), [4, 5], views.ImageView(size=8), None)
    assert names(folder) == made.good
    assert folder[6].ndim == 3


def test_mode_and_limit_hold_for_the_whole_folder(tmp_path):
    mixed_folder(tmp_path, n=12, n_broken=0)
    gray = data.ImageFolder(tmp_path, mode="L")
    assert {gray[i].ndim for i in range(len(gray))} == {2}
    with pytest.raises(DataError, match="none of the 12 images"):
        data.ImageFolder(tmp_path, on_error="skip", max_pixels=100)


def test_with_and_without_classes(tmp_path):
    for name in ("a/cat/1.png", "a/cat/deep/2.png", "a/dog/1.jpg", "b/1.png", "b/sub/2.png", "c/one/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / name)
    named = data.samples(str(tmp_path / "a"))
    assert named.classes.tolist() == [0, 0, 1]
    assert named.source.class_names == ["cat", "dog"]
    for root in ("b", "c"):
        assert data.samples(tmp_path / root).classes is None


@given(stems=st.lists(st.text("aAbä0é", min_size=1, max_size=3), min_size=2, max_size=8, unique_by=str.lower))
def test_the_order_is_that_of_the_composed_names_however_the_disk_gives_them(stems):
    files = [f"{'x/' * (i % 3)}{stem}.png" for i, stem in enumerate(stems)]
    decomposed = [unicodedata.normalize("NFD", file) for file in files]
    in_order = sorted(files, key=image_folder._order)
    assert [unicodedata.normalize("NFC", f) for f in sorted(decomposed, key=image_folder._order)] == in_order
    assert in_order == sorted(files, key=lambda file: file.split("/"))


# What lies in a folder beside images ----------------------------------------------------------------------------------


@pytest.fixture
def nest(tmp_path):
    """A folder with one image, beside a folder that it should not leave."""
    for name in ("in/sub/1.png", "out/2.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / name)
    return tmp_path


def link(path, target):
    try:
        path.symlink_to(target, target_is_directory=target.is_dir())
    except OSError:
        pytest.skip("this platform makes no links")


@pytest.mark.parametrize(
    ("name", "target", "words"),
    [
        ("l.png", "out/2.png", "link out of the folder"),
        ("l", "out", "link out of the folder"),
        ("sub/l", "in", "folder that it lies in"),
        ("l.png", "in/nowhere.png", "leads nowhere"),
        ("l.png", "in/l.png", "leads nowhere"),
    ],
)
def test_a_link_is_refused_or_left_out_by_name(nest, name, target, words):
    link(nest / "in" / name, nest / target)
    with pytest.raises(DataError, match=words) as error:
        data.ImageFolder(nest / "in")
    assert str(nest / "in" / name) in str(error.value)
    with pytest.warns(UserWarning, match=words):
        folder = data.ImageFolder(nest / "in", on_error="skip")
    assert names(folder) == ["sub/1.png"]
    assert [file for file, _ in folder.broken] == [nest / "in" / name]


def test_links_within_the_folder_are_followed_and_others_on_request(nest):
    link(nest / "in" / "again.png", nest / "in" / "sub" / "1.png")
    link(nest / "in" / "both", nest / "in" / "sub")
    assert names(data.ImageFolder(nest / "in")) == ["again.png", "both/1.png", "sub/1.png"]
    link(nest / "in" / "out", nest / "out")
    link(nest / "out" / "back", nest / "in")
    link(nest / "in" / "notes.txt", nest / "out" / "2.png")  # not called an image
    with pytest.warns(UserWarning, match="out/back"):
        folder = data.ImageFolder(nest / "in", on_error="skip", follow_links=True)
    assert names(folder) == ["again.png", "both/1.png", "out/2.png", "sub/1.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this platform has no pipes in folders")
def test_a_pipe_is_never_opened(nest):
    os.mkfifo(nest / "in" / "pipe.png")  # whoever opens it waits for ever
    with pytest.raises(DataError, match=r"pipe\.png.*not a regular file"):
        data.ImageFolder(nest / "in")
    with pytest.warns(UserWarning, match="not a regular file"):
        assert names(data.ImageFolder(nest / "in", on_error="skip")) == ["sub/1.png"]
    folder = data.ImageFolder(nest / "in" / "sub")
    folder.files[0].unlink()
    os.mkfifo(folder.files[0])
    with pytest.raises(DataError, match="no longer a regular file"):
        folder[0]


def test_a_folder_that_cannot_be_listed_is_said(nest, monkeypatch):
    scandir = os.scandir

    def locked(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    (nest / "in" / "locked").mkdir()
    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(DataError, match=r"locked cannot be used.*Permission denied"):
        data.ImageFolder(nest / "in")


def test_a_folder_named_like_an_image_and_a_link_to_the_root(nest):
    (nest / "in" / "album.png").mkdir()
    shutil.copy(nest / "out" / "2.png", nest / "in" / "album.png" / "2.PNG")
    assert names(data.ImageFolder(nest / "in")) == ["album.png/2.PNG", "sub/1.png"]
    link(nest / "door", nest / "in")
    assert len(data.ImageFolder(nest / "door")) == 2


@pytest.mark.parametrize(
    "bad", [{"mode": "CMYK"}, {"on_error": "ignore"}, {"max_pixels": 0}, {"max_pixels": 1e6}, {"on_error": ["skip"]}]
)
def test_options_that_there_are_not(nest, bad):
    with pytest.raises(SettingsError, match=next(iter(bad))):
        data.ImageFolder(nest / "in", **bad)


def test_only_broken_files(tmp_path):
    (tmp_path / "bomb.png").write_bytes(bomb())
    with pytest.raises(DataError, match=r"none of the 1 images.*60000 x 60000"):
        data.ImageFolder(tmp_path, on_error="skip")
    with pytest.raises(DataError, match=r"bomb\.png.*60000 x 60000"):
        data.samples(tmp_path)[0]
