"""Pictures of a run, drawn by matplotlib: some stand alone, the small charts are for the page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any, TypeAlias
from warnings import catch_warnings, filterwarnings

import numpy as np

from la_core.errors import DataError
from la_core.folder import read_metrics

BLUE, GREEN, RED, GRAY = "#2b6cb0", "#2a9d5c", "#d1495b", "#777777"
INK = "#1a1c1f"
"""Text and axes; on the page the colour of the text around it."""
CLASSES = (
    BLUE, "#e07b00", GREEN, RED, "#8d5fc4", "#8c6239", "#d65fa8", GRAY, "#a3a021", "#1f9fb4", "#5a7d2a", "#b06a4f",
)  # fmt: skip
MARKERS = "os^Dv<>pXPhd"
"""Classes differ by shape too, and not by colour alone."""

Record = Mapping[str, Any]


# Stand-alone pictures ------------------------------------------------------------------------------------------------


def curves(folder: str | Path, baselines: Mapping[str, float] | None = None) -> Path:
    """Draw loss, running kNN and close neighbours over the epochs of a run folder, as ``curves.png`` in it.

    ``baselines`` are accuracies to draw as level lines, by name.

    Raises
    ------
    RunFolderError
        The folder holds no metrics.
    """
    records = list(read_metrics(folder))
    figure, ((*axes,),) = _figure(1, 3, (12, 3.4))
    titles = ("loss", "weighted kNN accuracy", "close neighbours within the background")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title)
        _epochs(axis, records)
    _loss(axes[0], records)
    _accuracy(axes[1], records, baselines)
    _close(axes[2], records)
    for axis in axes[:2]:
        axis.legend(frameon=False)
    return _save(figure, Path(folder) / "curves.png")


def neighbours(
    path: str | Path, images: np.ndarray, queries: np.ndarray, found: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> Path:
    """Draw a gallery: each query, and its nearest training images by each representation.

    Parameters
    ----------
    path
        Of the picture.
    images
        (N, H, W, C) training images with values in [0, 1].
    queries
        (Q, H, W, C).
    found
        By the name of the representation: indices (Q, k) into ``images``, nearest first, and (Q, k) bool, whether the
        class is the query's.
    """
    k = next(iter(found.values()))[0].shape[1]
    cells: list[list[_Cell]] = [[(_pixels(query), GRAY)] for query in queries]
    for indices, right in found.values():
        for row, nearest, same in zip(cells, indices, right, strict=True):
            row += [None, *((_pixels(images[i]), GREEN if y else RED) for i, y in zip(nearest, same, strict=True))]
    figure, axis, step = _mosaic(cells, 0.62)
    axis.text(0, -step / 4, "query", fontsize=9)
    for part, (name, (_, right)) in enumerate(found.items()):
        middle = (2 + part * (k + 1) + k / 2) * step
        about = f"nearest by {name}: {right.mean():.0%} of the same class"
        axis.text(middle, -step / 4, about, fontsize=9, horizontalalignment="center")
    return _save(figure, Path(path))


# Charts of the page --------------------------------------------------------------------------------------------------


def loss(records: Sequence[Record]) -> Any:
    """Loss over the epochs."""
    figure, axis = _chart(records=records)
    _loss(axis, records)
    _legend(figure)
    return figure


def accuracy(records: Sequence[Record], baselines: Mapping[str, float] | None = None) -> Any:
    """The running measure over the epochs, and what it is to be compared with."""
    figure, axis = _chart(records=records)
    _accuracy(axis, records, baselines)
    _legend(figure, ncols=2)
    return figure


def close(records: Sequence[Record]) -> Any:
    """Close neighbours over the epochs."""
    figure, axis = _chart(records=records)
    _close(axis, records)
    return figure


def line(records: Sequence[Record], values: Mapping[str, Sequence[float | None]], top: float | None = None) -> Any:
    """Some series over the epochs, by name; None where nothing was measured."""
    figure, axis = _chart(records=records)
    epochs = [r["epoch"] for r in records]
    for (name, series), colour in zip(values.items(), (BLUE, GREEN, RED), strict=False):
        there = [(e, y) for e, y in zip(epochs, series, strict=True) if y is not None]
        axis.plot(*zip(*there, strict=True), color=colour, label=name, **_dots(there))
    axis.set_ylim(0, 1.03 * (top or axis.get_ylim()[1]))  # room for the dot of the highest
    if len(values) > 1:
        _legend(figure)
    return figure


def band(records: Sequence[Record], quantiles: Sequence[Sequence[float]], limits: Sequence[float] = ()) -> Any:
    """Least, quarter, half, three quarters and most of something, over the epochs; and where it should stay."""
    figure, axis = _chart(records=records)
    epochs = [r["epoch"] for r in records]
    least, quarter, half, three, most = np.array(quantiles).T
    axis.fill_between(epochs, least, most, color=BLUE, alpha=0.15, linewidth=0, label="all")
    axis.fill_between(epochs, quarter, three, color=BLUE, alpha=0.35, linewidth=0, label="middle half")
    axis.plot(epochs, half, color=BLUE, label="median", **_dots(epochs))
    for i, limit in enumerate(limits):
        axis.axhline(limit, color=GRAY, linewidth=1, linestyle="--", label=None if i else "good range")
    axis.set_ylim(bottom=0)
    _legend(figure)
    return figure


def grid(ks: Sequence[int], temperatures: Sequence[float], values: np.ndarray) -> Any:
    """kNN accuracy over k, a line for each temperature."""
    figure, axis = _chart("neighbours that vote, k", "accuracy")
    shades = [(BLUE, 0.5 + 0.5 * i / max(1, len(temperatures) - 1)) for i in range(len(temperatures))]
    for j, temperature in enumerate(temperatures):
        axis.plot(range(len(ks)), values[:, j], color=shades[j], label=f"{temperature:g}", marker=MARKERS[j % 12], ms=4)
    axis.set_xticks(range(len(ks)), [str(k) for k in ks])
    _percent(axis, share=True)
    _legend(figure, title="temperature")
    return figure


def histogram(values: Mapping[str, np.ndarray]) -> Any:
    """Densities of a sample at several moments, by name."""
    figure, axis = _chart("mean cosine", "share of the samples")
    low = min(float(v.min()) for v in values.values())
    high = max(float(v.max()) for v in values.values())
    edges = np.linspace(low, high if high > low else low + 1e-3, 41)
    styles = ((GRAY, ":"), (BLUE, "--"), (GREEN, "-"), (RED, "-."))
    peaks = []
    for (name, sample), (colour, style) in zip(values.items(), styles, strict=False):
        shares = np.histogram(sample, edges)[0] / len(sample)
        peaks.append(shares.max())
        axis.stairs(shares, edges, color=colour, linestyle=style, linewidth=1.6, label=name)
    axis.set_ylim(0, 1.1 * min(max(peaks), 2 * peaks[-1]))  # a spike of the untrained would flatten all others
    _percent(axis)
    _legend(figure)
    return figure


def scatter(points: np.ndarray, classes: np.ndarray, names: Mapping[int, str]) -> Any:
    """A map: points (P, 2) with a colour and a shape for each class; class -1 is unknown."""
    figure, axis = _chart(size=(4.0, 4.2))
    named = []
    for i, (c, name) in enumerate(names.items()):
        mine = points[classes == c]
        colour = GRAY if c < 0 else CLASSES[i % len(CLASSES)]
        dots = axis.scatter(*mine.T, s=14, color=colour, marker=MARKERS[i % len(MARKERS)], alpha=0.75, linewidth=0)
        named.append((dots, name))
    axis.set_aspect("equal", adjustable="datalim")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(visible=False)
    for side in ("left", "bottom"):
        axis.spines[side].set_visible(False)
    if len(names) > 1:
        _legend(figure, ncols=5, named=named)
    return figure


def gallery(queries: np.ndarray, images: np.ndarray, right: np.ndarray | None) -> Any:
    """Rows of a query (M, h, w, 3) and its neighbours (M, k, h, w, 3), framed by whether they are right (M, k)."""
    framed = np.full(images.shape[:2], GRAY) if right is None else np.where(right, GREEN, RED)
    cells = [
        [(query, GRAY), None, *zip(near, colours, strict=True)]
        for query, near, colours in zip(queries, images, framed, strict=True)
    ]
    return _mosaic(cells, 0.6)[0]


def save(figure: Any, folder: Path | None, name: str) -> str:
    """Write a figure as PNG and as SVG into a folder, if one is given. Returns the SVG for a page, as markup.

    In the page its ink follows the text (``currentColor``), its identifiers are its own, and it is as wide as there
    is room.
    """
    from matplotlib import rc_context

    stream = StringIO()
    with _any_glyph(), rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        _as_written(figure)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # it is laid out; once is enough
        if folder is not None:
            figure.savefig(folder / f"{name}.png", dpi=120)
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    markup = stream.getvalue()
    if folder is not None:
        (folder / f"{name}.svg").write_text(markup, encoding="utf-8")
    markup = markup[markup.index("<svg") :]
    markup = re.sub(r"<metadata>.*?</metadata>", "", markup, flags=re.DOTALL)
    markup = re.sub(r"<!--.*?-->", "", markup, flags=re.DOTALL)
    markup = re.sub(r"(<svg[^>]*?) width=\"[^\"]*\"", r"\1", markup, count=1)
    markup = re.sub(r"(<svg[^>]*?) height=\"[^\"]*\"", r"\1", markup, count=1)
    markup = re.sub(r"\bid=\"", f'id="{name}-', markup)
    markup = re.sub(r"(href=\"|url\()#", rf"\g<1>#{name}-", markup)
    return re.sub(r">\s+<", "><", markup.replace(INK, "currentColor")).strip()


# How they are drawn --------------------------------------------------------------------------------------------------


def _loss(axis: Any, records: Sequence[Record]) -> None:
    phases = list(dict.fromkeys(r["phase"] for r in records))
    for phase, colour in zip(phases, (BLUE, GREEN), strict=False):
        chosen = [r for r in records if r["phase"] == phase]
        axis.plot([r["epoch"] for r in chosen], [r["loss"] for r in chosen], color=colour, label=phase, **_dots(chosen))
    axis.set_ylim(bottom=0)


def _accuracy(axis: Any, records: Sequence[Record], baselines: Mapping[str, float] | None) -> None:
    measured = [r for r in records if "knn" in r]
    axis.plot(
        [r["epoch"] for r in measured],
        [r["knn"] for r in measured],
        color=GREEN,
        label="embedding, on bank",
        **_dots(measured),
    )
    for i, (name, value) in enumerate((baselines or {}).items()):
        axis.axhline(value, color=GRAY, linewidth=1, linestyle=("--", ":", "-.")[i % 3], label=name)
    _percent(axis, share=True)


def _close(axis: Any, records: Sequence[Record]) -> None:
    chosen = [r for r in records if "mean_close" in r]
    epochs = [r["epoch"] for r in chosen]
    axis.plot(epochs, [r["mean_close"] for r in chosen], color=BLUE, **_dots(chosen))
    axis.set_ylabel("mean number (line)")
    axis.set_ylim(0, 1.05 * axis.get_ylim()[1])
    share = axis.twinx()
    share.plot(epochs, [100 * r["without_close"] for r in chosen], color=RED, linestyle="--", **_dots(chosen))
    share.set_ylabel("% of rows without any (dashes)")
    share.set_ylim(bottom=0)
    _plain_axis(share)


def _epochs(axis: Any, records: Sequence[Record]) -> None:
    """An axis of whole epochs, with a dotted line where Local Aggregation begins."""
    axis.set_xlabel("epoch")
    axis.xaxis.get_major_locator().set_params(integer=True)
    phases = [r["phase"] for r in records]
    switch = next((r["epoch"] - 0.5 for r in records if r["phase"] != phases[0]), None)
    if switch is not None:
        axis.axvline(switch, color=GRAY, linewidth=0.8, linestyle=":")


def _dots(points: Sequence[Any]) -> dict[str, Any]:
    """A line through few points shows them; one point is no line."""
    return {"marker": "o", "ms": 4} if len(points) < 12 else {}


def _percent(axis: Any, share: bool = False) -> None:
    """In percent; what is a share of all has no marks beyond 0 and 100 %, but room for the dots there."""
    if share:
        low, high = axis.get_ylim()
        axis.set_ylim(max(low, -0.015), min(high, 1.015))
    axis.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.3g}%")


LEGEND: dict[str, float] = {"fontsize": 8, "columnspacing": 1.2, "handlelength": 1.6, "handletextpad": 0.5}
"""Lengths in units of the font size."""


def _legend(
    figure: Any, title: str | None = None, ncols: int = 3, named: Sequence[tuple[Any, str]] | None = None
) -> None:
    """Above the chart, where it hides nothing, in at most so many columns as there is room for.

    ``named`` are what it shows, and how that is called; by default what has a label that does not begin with ``_``.
    """
    if named is None:
        named = list(zip(*figure.axes[0].get_legend_handles_labels(), strict=True))
    em = LEGEND["fontsize"]
    gap, sign = LEGEND["columnspacing"] * em, (LEGEND["handlelength"] + LEGEND["handletextpad"]) * em
    room = 72 * figure.get_figwidth() - 2 * em  # without its margins
    with _any_glyph():
        names = [_shortened(name, room - sign) for _, name in named]
        widths = [sign + _width(name) for name in names]
    while ncols > 1 and sum(max(part, default=0) + gap for part in _split(widths, ncols)) - gap > room:
        ncols -= 1
    legend = figure.legend(
        [drawn for drawn, _ in named], ["name"] * len(names), loc="outside upper left", ncols=ncols, frameon=False,
        labelcolor=INK, title=title, title_fontsize=em, alignment="left", **LEGEND,
    )  # fmt: skip
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)
    legend.get_title().set_color(INK)
    more = max(0, -(-len(names) // ncols) - 3)  # rows, of which the chart gives room to three
    figure.set_figheight(figure.get_figheight() + 1.6 * em * more / 72)


def _split(widths: Sequence[float], ncols: int) -> list[list[float]]:
    """Into columns, as matplotlib deals them out."""
    return [part.tolist() for part in np.array_split(np.array(widths), ncols)]


def _shortened(name: str, most: float) -> str:
    """A name, or as much of its two ends, around an ellipsis, as is no wider than so many points."""
    short, kept = name, len(name)
    while kept and _width(short) > most:
        kept -= 1
        short = f"{name[: kept - kept // 2]}…{name[len(name) - kept // 2 :]}"
    return short


def _width(name: str) -> float:
    """Of a name in a legend, in points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=LEGEND["fontsize"])
    return float(text_to_path.get_text_width_height_descent(name, font, ismath=False)[0])


@contextmanager
def _any_glyph() -> Iterator[None]:
    """Without a warning of glyphs of a class name that matplotlib's font lacks: a browser has a font for it."""
    with catch_warnings():
        filterwarnings("ignore", "Glyph .* missing from")
        yield


def _pixels(image: np.ndarray) -> np.ndarray:
    """(h, w, C) in [0, 1] -> (h, w, 3) uint8, gray unless C is 3."""
    shown = image if image.shape[2] == 3 else image[:, :, :1]
    return np.broadcast_to(np.round(255 * shown).astype(np.uint8), (*image.shape[:2], 3))


_Cell: TypeAlias = tuple[np.ndarray, str] | None
"""An image (h, w, 3) uint8 with the colour of its frame, or a gap."""


def _mosaic(rows: Sequence[Sequence[_Cell]], inches: float) -> tuple[Any, Any, int]:
    """Framed images of one size, all drawn as one: a figure, its axis, and the pixels from a cell to the next.

    An axis for each would take ten times as long to lay out.
    """
    first = rows[0][0]
    assert first is not None
    height, width = first[0].shape[:2]
    rim = max(1, width // 14)
    down, step = height + 3 * rim, width + 3 * rim
    mosaic = np.full((len(rows) * down, len(rows[0]) * step, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            if cell is not None:
                image, colour = cell
                framed = mosaic[i * down : (i + 1) * down - rim, j * step : (j + 1) * step - rim]
                framed[:] = [int(colour[c : c + 2], 16) for c in (1, 3, 5)]
                framed[rim:-rim, rim:-rim] = image
    figure, ((axis,),) = _figure(1, 1, (inches * len(rows[0]), inches * len(rows)))
    axis.imshow(mosaic, interpolation="nearest")
    axis.set_axis_off()
    return figure, axis, step


def _chart(
    x: str = "", y: str = "", *, size: tuple[float, float] = (3.7, 2.6), records: Sequence[Record] | None = None
) -> tuple[Any, Any]:
    figure, ((axis,),) = _figure(1, 1, size)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    if records is not None:
        _epochs(axis, records)
    _plain_axis(axis)
    axis.grid(color=INK, alpha=0.12, linewidth=0.6)
    return figure, axis


def _plain_axis(axis: Any) -> None:
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color(INK)
    axis.tick_params(colors=INK, labelsize=8)
    for label in (axis.xaxis.label, axis.yaxis.label):
        label.set(size=9, color=INK)


def need_matplotlib() -> None:
    """Raise DataError where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise DataError("pictures need matplotlib, not installed: pip install 'la-core[report]'")


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    need_matplotlib()
    from matplotlib.figure import Figure  # and not pyplot, which keeps state and looks for a screen

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _as_written(figure: Any) -> None:
    """Have every text drawn as it is: a $ in a name begins no mathematics."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)


def _save(figure: Any, path: Path) -> Path:
    _as_written(figure)
    figure.savefig(path, dpi=120)
    return path
