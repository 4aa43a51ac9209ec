"""Files that are not what they say, or not there any more: refused by name, before memory is taken or time is lost."""

import io
import os
import signal
import struct
import subprocess
import sys
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from folders import bomb, chunk, saved
from PIL import Image
from planting import mutated

from la_core import data
from la_core.data import arrays, images
from la_core.errors import DataError

TESTS = Path(__file__).parent
pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this platform has no pipes in folders")


@contextmanager
def within(seconds):
    """Fail where something waits: who opens a pipe waits for ever."""

    def late(number, frame):
        raise AssertionError(f"it took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def folder_of(tmp_path, **files):
    for name, content in files.items():
        (tmp_path / f"{name}.png").write_bytes(content)
    return data.ImageFolder(tmp_path)


# Of another type than the name says -----------------------------------------------------------------------------------


def unlisted():
    """Small files of every format that this Pillow writes and la-core does not open."""
    Image.init()
    for form in sorted(set(Image.SAVE) - set(images.FORMATS)):
        for mode in ("RGB", "L", "1", "P", "F"):
            try:
                yield form, saved(Image.new(mode, (16, 16)), form)
                break
            except Exception:
                continue


def law_other_types_do_not_open(tmp_path):
    tried = dict(unlisted())
    assert {"EPS", "PDF", "ICNS"} <= set(tried)
    folder = folder_of(tmp_path, **tried)
    for index in range(len(folder)):
        with pytest.raises(DataError, match="no image of a known format"):
            folder[index]


def test_other_types_do_not_open_whatever_their_names_are(tmp_path):
    law_other_types_do_not_open(tmp_path)


def test_opening_whatever_pillow_knows_is_caught(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_formats", lambda module: list(module.OPEN))
    with pytest.raises(pytest.fail.Exception):
        law_other_types_do_not_open(tmp_path)


def test_a_listed_type_opens_under_another_name(tmp_path):
    assert folder_of(tmp_path, photo=saved(Image.new("RGB", (8, 8)), "JPEG"))[0].shape == (8, 8, 3)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "JPEG2000"])
def test_what_is_cut_short_is_said_at_every_tenth(tmp_path, form):
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    content = saved(Image.fromarray(noise), form)
    for tenth in range(1, 9):  # some formats end with what is no part of the image
        with pytest.raises(DataError):
            images.read(io.BytesIO(content[: len(content) * tenth // 10]))


# Too many pixels ------------------------------------------------------------------------------------------------------


def icon(width, height):
    """An icon that says that it is of 16 x 16 pixels, and holds a PNG of another size, all of one colour."""
    packer = zlib.compressobj()  # row by row, so that making it takes no memory either
    rows = b"".join([*(packer.compress(bytes(1 + width)) for _ in range(height)), packer.flush()])
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b""))
    png = b"\x89PNG\r\n\x1a\n" + b"".join(parts)
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(png), 22) + png


BOMBS = {
    "png": bomb(),
    "icon": icon(9000, 9000),
    "gif": saved(Image.new("P", (8, 8)), "GIF").replace(struct.pack("<HH", 8, 8), struct.pack("<HH", 60_000, 60_000)),
    "ppm": b"P6 60000 60000 255\n" + bytes(100),
    "bmp": b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHH6I", 40, 60_000, 60_000, 1, 24, *6 * [0]),
}
DECODE = """
import sys, time
sys.path.insert(0, sys.argv[1])
import test_hostile_images as t
from la_core.data import images
def peak():
    return int(t.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
images.read(t.io.BytesIO(t.icon(8, 8)))
limit = images._limit
if len(sys.argv) > 2:
    images._limit = lambda module, pixels: limit(module, None)
for name, content in t.BOMBS.items():
    before, began = peak(), time.process_time()
    try:
        images.read(t.io.BytesIO(content), max_pixels=1_000_000)
    except t.DataError as error:
        assert "pixels" in str(error), error
    else:
        raise AssertionError(f"{name} was decoded")
    assert peak() - before < 16_000, f"{name} takes memory"
    assert time.process_time() - began < 1, f"{name} takes time"
print("all refused")
"""
peaks = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to read the peak of memory from")


def told_of_bombs(*plant):
    """What a process of its own says about them; each may take 16 MB and a second."""
    command = [sys.executable, "-c", DECODE, str(TESTS), *plant]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    return done.stdout + done.stderr


@peaks
def test_a_bomb_is_refused_before_it_is_decoded():
    assert told_of_bombs() == "all refused\n"


@peaks
def test_an_icon_that_is_opened_without_a_limit_is_caught():
    assert "icon takes memory" in told_of_bombs("without")


def test_an_icon_is_held_to_what_it_holds(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match="9000000 pixels"):
        images.read(io.BytesIO(icon(3000, 3000)), max_pixels=8_000_000)
    assert images.read(io.BytesIO(icon(16, 16))).shape == (16, 16, 3)
    assert Image.MAX_IMAGE_PIXELS == 10


# What lies in a folder ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="this platform has no /dev/zero")
def test_a_device_is_never_opened(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "endless.png").symlink_to("/dev/zero")
    for follow, words in ((False, "link out of the folder"), (True, "not a regular file")):
        with pytest.raises(DataError, match=words):
            data.ImageFolder(tmp_path / "in", follow_links=follow)
    with pytest.raises(DataError, match="not a regular file"):
        arrays.load_npy(tmp_path / "in" / "endless.png")


def swapped(monkeypatch, file, put):
    """Have something else put in the place of a file after it was looked at and before it is opened."""
    open_it = os.open

    def opened(path, *args, **kwargs):
        if Path(path) == file:
            file.unlink()
            put(file)
        return open_it(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", opened)


@pipes
def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(tmp_path, monkeypatch):
    folder = folder_of(tmp_path, one=saved(Image.new("L", (8, 8)), "PNG"))
    swapped(monkeypatch, folder.files[0], os.mkfifo)
    with within(10), pytest.raises(DataError, match="no longer a regular file"):
        folder[0]


@pipes
def test_that_it_is_waited_for_otherwise_is_caught(tmp_path, monkeypatch):
    folder = folder_of(tmp_path, one=saved(Image.new("L", (8, 8)), "PNG"))
    flags = 'getattr(os, "O_NONBLOCK", 0)'
    monkeypatch.setattr(images.open_regular, "__code__", mutated(images.open_regular, flags, "0"))
    swapped(monkeypatch, folder.files[0], os.mkfifo)
    with pytest.raises(AssertionError, match="took more than"), within(1):
        folder[0]


@pipes
def test_pipes_given_as_files_of_arrays(tmp_path):
    os.mkfifo(tmp_path / "x.npy")
    with within(10), pytest.raises(DataError, match="not a regular file"):
        arrays.load_npy(tmp_path / "x.npy")


def test_a_link_that_leaves_the_folder_later_is_not_followed(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("in/1.png", "secret.png"):
        Image.new("L", (8, 8)).save(tmp_path / name)
    folder, free = (data.ImageFolder(tmp_path / "in", follow_links=follow) for follow in (False, True))
    folder.files[0].unlink()
    folder.files[0].symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError, match="link out of the folder"):
        folder[0]
    assert free[0].shape == (8, 8, 3)
