"""What was measured, as a plain table and as a picture; and on what machine."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from speed.contenders import OURS
from speed.turns import cpu

PACKAGES = "la-core", "numpy", "torch", "jax", "jaxlib", "faiss-cpu", "scikit-learn"
SLOWEST_IN_MS = 10.0
"""Seconds up to which a row is in milliseconds."""


def about(threads: int) -> dict[str, Any]:
    """Where and with what."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu("model name") or platform.processor(),
        "avx512": "avx512f" in cpu("flags").split(),
        "threads": threads,
        "python": platform.python_version(),
        "versions": versions,
    }


def table(kept: Mapping[str, Any]) -> str:
    """All rows that were measured, one after the other."""
    lines = [
        where(kept["about"]),
        "Median (least to most) of the repeats, which take turns. Peak: MB above what a process holds between its",
        "runs. Faster: how many times our time it takes. Inertia: above the least of the row.",
    ]
    for name, row in kept["rows"].items():
        lines += ["", f"{name}: {heading(row)}", *(growth if "vary" in row else comparison)(row)]
        if row.get("about", kept["about"]) != kept["about"]:
            lines += [f"  measured {where(row['about'])}"]
        lines += [f"  WRONG: {text}" for text in row["wrong"]]
        lines += [f"  not installed: {text}" for text in row["missing"]]
    return "\n".join(lines)


def where(about: Mapping[str, Any]) -> str:
    """When, on what, and with what."""
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items() if number)
    return f"{about['date']}, {about['cpu']}, {about['threads']} threads, Python {about['python']}, {versions}"


def heading(row: Mapping[str, Any]) -> str:
    """The task and its sizes, save what varies."""
    problem, vary = row["problem"], row.get("vary")
    names = {"n": "N", "dim": "D"}
    names |= {"m": "m", "clusterings": "H"} if "clustering" in row["title"] else {"batch": "B", "k": "k"}
    names |= {"clusterings": "H"} if "step" in row["title"] else {}
    sizes = ", ".join(f"{short} = {thousands(problem[key])}" for key, short in names.items() if key != vary)
    return f"{row['title']}, {problem['bank']} bank, {sizes}"


def thousands(number: int) -> str:
    """Such as 1 000 000."""
    return f"{number:,}".replace(",", " ")


def comparison(row: Mapping[str, Any]) -> Iterator[str]:
    """The contenders of a row."""
    found = row["contenders"]
    slowest = max((c["seconds"][1] for c in found.values() if "seconds" in c), default=0.0)
    unit, scale = ("ms", 1e3) if slowest < SLOWEST_IN_MS else ("s", 1.0)
    least = min((c["inertia"] for c in found.values() if c.get("inertia")), default=None)
    yield f"  {'':<28}{unit:>24}{'peak':>7}" + (f"{'inertia':>9}" if least else "") + f"{'faster':>26}  goal"
    for name, c in found.items():
        if "seconds" not in c:
            yield f"  {name:<28}failed: {last_line(c['error'])}"
            continue
        line = f"  {name:<28}{spread([scale * s for s in c['seconds']]):>24}"
        line += f"{'-' if c['peak_extra_mb'] is None else round(c['peak_extra_mb']):>7}"
        if least:
            line += f"{'+' + format(c['inertia'] / least - 1, '.2%'):>9}"
        line += f"{spread(c['ratio'], 'x') if 'ratio' in c else '':>26}"
        if goal := c.get("goal"):
            line += f"  {goal['must']:.3g}x, aim {goal['aim']:.3g}x: {goal['verdict']}"
        if goal := c.get("memory_goal"):
            line += f"  peak {goal['must']:g} MB, aim {goal['aim']:g}: {goal['verdict']}"
        yield line.rstrip()
        if c["error"]:
            yield f"  {'':<28}then failed: {last_line(c['error'])}"


def growth(row: Mapping[str, Any]) -> Iterator[str]:
    """The curves of a row, in seconds, and their exponents."""
    yield f"  {row['vary'] + ' =':<28}" + "".join(f"{thousands(value):>12}" for value in row["values"])
    for name, c in row["curves"].items():
        cells = ("-" if s is None else format(s[1], ".3g") for s in c["seconds"])
        line = f"  {name + ', s':<28}" + "".join(f"{cell:>12}" for cell in cells)
        line += f"   exponent {c['exponent']:.2f}" if "exponent" in c else ""
        if goal := c.get("goal"):
            line += f", at most {goal['must']:g}, aim {goal['aim']:g}: {goal['verdict']}"
        yield line
        if c["error"]:
            yield f"  {'':<28}failed: {last_line(c['error'])}"


def last_line(text: str) -> str:
    """Of an error."""
    return text.strip().splitlines()[-1]


def spread(values: list[float], unit: str = "") -> str:
    """Median (least to most), with as many digits as tell something."""
    least, middle, most = ((f"{v:.0f}" if v >= 100 else f"{v:.3g}") for v in values)
    return f"{middle}{unit} ({least} to {most})"


def draw(kept: Mapping[str, Any], path: Path) -> None:
    """Bars: how many times our time the others take. Curves: how times grow."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    rows = kept["rows"]
    bars = [
        (f"{name}: {contender}", c)
        for name, row in rows.items()
        for contender, c in row.get("contenders", {}).items()
        if "ratio" in c and not contender.startswith("la_core")
    ]
    curves = [row for row in rows.values() if "vary" in row]
    figure = Figure(figsize=(12 if curves else 7.2, max(5.0, 0.28 * len(bars) + 1.5)), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(3, 2)) if curves else (figure, figure)
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    if bars:
        axis = left.subplots()
        for place, (_, c) in enumerate(reversed(bars)):
            least, middle, most = c["ratio"]
            axis.barh(place, middle - 1, left=1, color="#2b6cb0")
            axis.plot([least, most], [place, place], color="#222222")
            if goal := c.get("goal"):
                axis.plot([goal["must"]] * 2, [place - 0.4, place + 0.4], color="#c05621", label="at least")
                axis.plot([goal["aim"]] * 2, [place - 0.4, place + 0.4], color="#2a9d5c", label="aim")
        axis.set_yticks(range(len(bars)), [label for label, _ in reversed(bars)], fontsize=8)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(plain)
        axis.xaxis.set_minor_formatter(plain)
        axis.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axis.tick_params(axis="x", labelsize=8, which="both")
        axis.axvline(1, color="#222222", linewidth=0.8)
        axis.set_xlabel("times as long as la_core")
        handles = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        if handles:
            left.legend(handles.values(), handles, frameon=False, fontsize=8, loc="outside upper center", ncols=2)
    if curves:
        for axis, row in zip(right.subplots(len(curves), 1, squeeze=False)[:, 0], curves, strict=True):
            for name, c in row["curves"].items():
                seconds = [float("nan") if s is None else s[1] for s in c["seconds"]]
                style = {"color": "#2b6cb0" if name == OURS else "#777777", "label": name}
                axis.loglog(row["values"], seconds, "o-", markersize=3, **style)
            axis.set_xticks(row["values"], [thousands(value) for value in row["values"]])
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.set_title(row["title"], fontsize=8)
            axis.set_xlabel(row["vary"], fontsize=8)
            axis.set_ylabel("seconds", fontsize=8)
            axis.tick_params(labelsize=7, which="both")
            axis.legend(frameon=False, fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
