"""A folder of images as people have them: every kind of file that Pillow writes, and some that are broken."""

from __future__ import annotations

import io
import struct
import unicodedata
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("Blätter", "bars", "dots", "猫")


@dataclass(frozen=True)
class Folder:
    """What was written. Names are relative to ``root``, with / between their parts."""

    root: Path
    good: list[str]
    broken: dict[str, str]
    """Name of each broken file, and some words of the reason."""


def mixed_folder(root: Path, n: int = 300, n_broken: int = 8, seed: int = 0) -> Folder:
    """Fill ``root`` with n files of 24 to 48 pixels a side in the subfolders :data:`CLASSES`, a pattern for each class.

    ``n_broken`` of them, at most as many as there are ways to be broken, are so. Beside the n lie files that are not
    images and are not meant to be.
    """
    rng = np.random.default_rng(seed)
    good, broken = [], {}
    for i in range(n - n_broken):
        kind = i % len(CLASSES)
        suffix, write = _KINDS[i // len(CLASSES) % len(_KINDS)]
        name = f"{CLASSES[kind]}/{('', 'nested/', 'nested/deeper/')[i % 3]}{i:04d}{suffix}"
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(write(pattern(kind, rng)))
        good.append(name)
    for i, (stem, (content, words)) in enumerate([*_BROKEN.items()][:n_broken]):
        name = f"{CLASSES[i % len(CLASSES)]}/{stem}"
        (root / name).write_bytes(content())
        broken[name] = words
    for name in ("notes.txt", ".hid.png", "bars/._0001.png", ".cache/0001.png", "bars/Thumbs.db", "dots/3.jpg.part"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"not an image")
    return Folder(root, sorted(good, key=_key), broken)


def pattern(kind: int, rng: np.random.Generator) -> np.ndarray:
    """An image (H, W, 3) uint8 of one of four patterns, in colours of its own."""
    height, width = rng.integers(24, 49, 2)
    y, x = np.indices((height, width))
    period, phase = rng.integers(6, 10), rng.integers(0, 6)
    marked = (
        (x + y + phase) % period < 2,  # leaves: diagonal
        (x + phase) % period < period // 2,  # bars
        ((x + phase) % period < 3) & ((y + phase) % period < 3),  # dots
        np.hypot(x - width / 2, y - height / 2) % period < 2,  # rings
    )[kind]
    paper, ink = rng.integers(140, 256, 3), rng.integers(0, 100, 3)
    return np.where(marked[:, :, None], ink, paper).astype(np.uint8)


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _with_alpha(pixels: np.ndarray, mode: str) -> Image.Image:
    image = Image.fromarray(pixels).convert(mode)
    alpha = np.linspace(0, 255, image.width * image.height).reshape(image.height, image.width)
    image.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    return image


def _gray(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).convert("L"))


def _exif(turn: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = turn
    return exif


def _animation(pixels: np.ndarray) -> bytes:
    first = Image.fromarray(pixels)
    return saved(first, "GIF", save_all=True, append_images=[first.rotate(90, expand=False), first.rotate(180)])


_KINDS = (
    (".png", lambda p: saved(Image.fromarray(p), "PNG")),
    (".jpg", lambda p: saved(Image.fromarray(p), "JPEG")),
    (".JPG", lambda p: saved(Image.fromarray(p), "JPEG", exif=_exif(6))),
    (".gif", _animation),
    (".Png", lambda p: saved(Image.fromarray(_gray(p).astype(np.uint16) * 257), "PNG")),
    (".png", lambda p: saved(Image.fromarray(p).quantize(8), "PNG", transparency=0)),
    (".png", lambda p: saved(Image.fromarray(p).convert("1"), "PNG")),
    (".jpeg", lambda p: saved(Image.fromarray(p).convert("CMYK"), "JPEG")),
    (".png", lambda p: saved(_with_alpha(p, "RGB"), "PNG")),
    (".png", lambda p: saved(_with_alpha(p, "L"), "PNG")),
    (".tif", lambda p: saved(Image.fromarray(_gray(p).astype(np.float32) / 255), "TIFF")),
    (".TIFF", lambda p: saved(Image.fromarray(p).convert("CMYK"), "TIFF")),
    (".webp", lambda p: saved(Image.fromarray(p), "WEBP", lossless=True)),
    (".bmp", lambda p: saved(Image.fromarray(p).convert("P"), "BMP")),
    (".ppm", lambda p: saved(Image.fromarray(p), "PPM")),
    (".png", lambda p: saved(Image.fromarray(p), "JPEG")),  # a wrong suffix, and no harm done
    ("é.png", lambda p: saved(Image.fromarray(_gray(p)), "PNG")),
    (unicodedata.normalize("NFD", "é") + ".tga", lambda p: saved(Image.fromarray(p), "TGA")),
)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(width: int = 60_000, height: int = 60_000) -> bytes:
    """A PNG of a few bytes whose header claims any number of pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


def _noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def _flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


_BROKEN = {
    "empty.png": (lambda: b"", "empty"),
    "text.png": (lambda: b"404 not found\n", "no image"),
    "cut.jpg": (lambda: saved(Image.fromarray(_noise()), "JPEG")[:-400], "truncated"),
    "cut.png": (lambda: saved(Image.fromarray(_noise()), "PNG")[:1000], "truncated"),
    "bomb.png": (bomb, "60000 x 60000"),
    "page.jpeg": (lambda: b"<html><body>403 Forbidden</body></html>", "no image"),
    "flipped.png": (lambda: _flipped(saved(Image.fromarray(_noise()), "PNG"), 700), "broken"),
    "nan.tiff": (lambda: saved(Image.fromarray(np.full((24, 24), np.nan, np.float32)), "TIFF"), "between 0 and 1"),
}


def _key(name: str) -> tuple[list[str], str]:
    return unicodedata.normalize("NFC", name).split("/"), name
