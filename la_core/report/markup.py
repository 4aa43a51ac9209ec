"""The parts that a page is made of, as HTML. Titles and cells are text; sentences and captions are markup."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from io import BytesIO

import numpy as np


def paragraph(*sentences: str) -> str:
    """Sentences, one after the other."""
    return f"<p>{' '.join(sentences)}</p>"


def missing(what: str, remedy: str) -> str:
    """What a section lacks, and how to record it."""
    return f'<p class="missing">{what}. To have it here, {remedy}.</p>'


def notice(markup: str) -> str:
    """Something that the reader should not miss."""
    return f'<div class="notice" role="note" aria-label="Warnings">{markup}</div>'


def grid(parts: Iterable[str]) -> str:
    """Beside each other, as far as there is room."""
    return f'<div class="grid">{"".join(parts)}</div>'


def chart(svg: str, name: str, title: str, caption: str) -> str:
    """A drawing under a title, with what it says in words."""
    described = f'<svg role="img" aria-labelledby="{name}-name" aria-describedby="{name}-text"'
    return (
        f'<figure><h3 id="{name}-name">{escape(title)}</h3>{svg.replace("<svg", described, 1)}'
        f'<figcaption id="{name}-text">{caption}</figcaption></figure>'
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str, markup: bool = False) -> str:
    """Rows under a head; a first column of names. ``markup``: so are the cells of the head."""
    heads = "".join(
        f'<th scope="col">{cell if markup else escape(cell)}</th>' if cell else "<td></td>" for cell in head
    )
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def picture(image: np.ndarray, alt: str, mark: str) -> str:
    """An image (h, w, 3) uint8 within the page; ``mark`` is its class of style."""
    from PIL import Image

    stream = BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    data = base64.b64encode(stream.getvalue()).decode()
    side = image.shape[0]
    return (
        f'<img class="{mark}" width="{side}" height="{side}" alt="{escape(alt)}" title="{escape(alt)}" '
        f'src="data:image/png;base64,{data}">'
    )
