"""One image as an array: decoded by Pillow, upright, 8 bits a channel, on white.

=====================  ================================================================================================
as stored              as given
=====================  ================================================================================================
turned by EXIF         upright
several frames         the first
transparent            over white: alpha, a transparent colour, a palette with transparency
palette, CMYK, ...     RGB
1 bit                  0 and 255
16 bits of gray        v of 0..65535 becomes round(v / 257), whatever part of the range the image uses
16 bits of colour      the higher byte, which is how Pillow reads them
32-bit integers        as 16 bits of gray; refused above 65535 and below 0
float                  v of 0..1 becomes round(255 v); refused outside, and where it is NaN
=====================  ================================================================================================
"""

from __future__ import annotations

import os
import stat
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

import numpy as np

from la_core.errors import DataError

MAX_PIXELS = 178_956_970
"""Most pixels of an image, width times height: Pillow's own limit. Decoded to RGB that is half a gigabyte."""

FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "SGI", "TGA", "TIFF"),
    "WEBP",
)
"""Formats that are opened, whatever the file is called. Not EPS: Pillow has it run by another program."""

ICON = "ICO"

MODES = ("RGB", "L")


def pillow() -> Any:
    """Pillow's ``Image``, or how to get it."""
    try:
        from PIL import Image
    except ImportError:
        raise DataError("images need Pillow, which is not installed: pip install 'la-core[demo]'") from None
    return Image


def open_regular(file: Path, inside: Path | None = None) -> IO[bytes]:
    """A file with something in it, open for reading, if it is a regular one and, by ``inside``, under that real path.

    What is there is looked at before it is opened, so that neither a pipe nor a device ever is, and after, so that
    nothing can be put in its place meanwhile.

    Raises
    ------
    DataError
        Says why, and leaves the name to the caller.
    """
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise DataError("it is no longer a regular file")
        if inside is not None and not Path(os.path.realpath(file)).is_relative_to(inside):
            raise DataError("it is a link out of the folder (follow_links=True follows it)")
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
        stream = os.fdopen(os.open(file, flags), "rb")
    except OSError as error:
        raise DataError(error.strerror or str(error)) from error
    status = os.fstat(stream.fileno())
    if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
        stream.close()
        raise DataError("the file is empty" if stat.S_ISREG(status.st_mode) else "it is no longer a regular file")
    return stream


def read(file: Path | IO[bytes], mode: str | None = "RGB", max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The image in a file, as :func:`pixels` gives it.

    Raises
    ------
    DataError
        It cannot be decoded, in whole, into at most ``max_pixels`` pixels. Says why, and leaves the file's name to the
        caller, who knows it.
    """
    image_module = pillow()
    try:
        with _opened(image_module, file, max_pixels) as image:
            if image.width * image.height > max_pixels:
                raise DataError(
                    f"it claims {image.width} x {image.height} pixels, more than max_pixels = {max_pixels:,} allow"
                )
            return pixels(image, mode)
    except DataError:
        raise
    except image_module.UnidentifiedImageError:
        raise DataError("it is no image of a known format") from None
    except Exception as error:  # a decoder fed with garbage raises anything, down to struct.error
        raise DataError(str(error) or type(error).__name__) from error


def pixels(image: Any, mode: str | None = None) -> np.ndarray:
    """An opened Pillow image as uint8: (H, W, 3) with mode "RGB", (H, W) with "L", by default what suits the image."""
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image)
    gray = image.mode in ("1", "L", "LA")
    if image.has_transparency_data:
        above = image.convert("RGBA")
        image = pillow().alpha_composite(pillow().new("RGBA", above.size, "white"), above)
    return np.asarray(image.convert(mode or ("L" if gray else "RGB")))


def is_image(item: object) -> bool:
    """Whether this is a Pillow image. Pillow need not be installed, and is not imported to find out."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(item, module.Image)


def _eight_bits(image: Any) -> Any:
    """Gray of mode I;16, I or F as mode L."""
    values = np.asarray(image)
    most = 1 if image.mode == "F" else 65535
    if not ((values >= 0) & (values <= most)).all():
        raise DataError(f"its values must lie between 0 and {most} (Pillow's mode {image.mode}): scale them first")
    scaled = np.rint(values * (255.0 / most)).astype(np.uint8)
    scaled[values == image.info.get("transparency")] = 255  # on white; most images name no such value
    return pillow().fromarray(scaled)


def _opened(image_module: Any, file: Path | IO[bytes], max_pixels: int) -> Any:
    """An image of which no more is read than its header, save for icons.

    Pillow decodes an icon when it is opened, and what it holds may be of another size than it says: Pillow's own limit
    has to stop that. The other formats know their size, and are held to ours.
    """
    formats = _formats(image_module)
    icons = [name for name in formats if name == ICON and _is_icon(image_module, file)]
    with _limit(image_module, max_pixels // 2 if icons else None):
        return image_module.open(file, formats=icons or [name for name in formats if name != ICON])


def _is_icon(image_module: Any, file: Path | IO[bytes]) -> bool:
    """By its first bytes, as Pillow tells."""
    if isinstance(file, Path):
        with file.open("rb") as stream:
            first = stream.read(16)
    else:
        first = file.read(16)
        file.seek(0)
    return bool(image_module.OPEN[ICON][1](first))


_LIMIT = threading.Lock()


@contextmanager
def _limit(image_module: Any, pixels: int | None) -> Iterator[None]:
    """Pillow's own limit, a global that warns above it and raises above twice of it; none with None.

    Filters of warnings belong to all threads, so they are touched for an icon only.
    """
    with _LIMIT, nullcontext() if pixels is None else warnings.catch_warnings():
        if pixels is not None:
            warnings.simplefilter("ignore")
        before, image_module.MAX_IMAGE_PIXELS = image_module.MAX_IMAGE_PIXELS, pixels
        try:
            yield
        finally:
            image_module.MAX_IMAGE_PIXELS = before


def _formats(image_module: Any) -> list[str]:
    """Those that this Pillow was built with, or has a plugin for."""
    image_module.init()
    return [name for name in FORMATS if name in image_module.OPEN]
