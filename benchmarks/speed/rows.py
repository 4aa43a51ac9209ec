"""The rows of the table: a task, who takes part, and the goals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from speed.contenders import CLUSTER, COLD, OURS, SEARCH, STEP, TORCH_SEARCH, WARM, Contender
from speed.data import Problem
from speed.turns import Plan, Result, measure

EXACT = {"scores": 1e-5, "loss": 1e-4, "cotangent": 1e-3, "rows": 1e-5, "inertia": 0.03}
"""How far answers may be apart, as a share of the greatest number in ours: a check that all do the same work."""
INERTIA = 0.005
"""By how much ours may exceed the inertia of the one that it is compared with."""


@dataclass(frozen=True)
class Goal:
    """A figure to be reached, and one to be aimed at: at least, or at most where less is better."""

    must: float
    aim: float

    def verdict(self, value: float) -> str:
        """In a word."""
        sign = 1 if self.aim > self.must else -1
        return "aim" if sign * value >= sign * self.aim else "holds" if sign * value >= sign * self.must else "MISSED"


@dataclass(frozen=True)
class Row:
    """A task, or one task at several sizes."""

    title: str
    problem: Problem
    contenders: tuple[Contender, ...]
    faster: Mapping[str, Goal] = field(default_factory=dict)
    """Times as fast as each of these."""
    memory: Goal | None = None
    """MB of our peak."""
    vary: str | None = None
    values: tuple[int, ...] = ()
    exponent: Goal | None = None
    """Of our growth in what varies."""
    repeats: int | None = None
    slow_repeats: int | None = None
    often: int = 1
    """Times as many repeats as of other rows: of those that take less than a second or two, and waver."""

    def problems(self) -> list[Problem]:
        """One, or one for each value of what varies."""
        return [replace(self.problem, **{self.vary: value}) for value in self.values] if self.vary else [self.problem]

    def scaled(self, by: float) -> Row:
        """Less of all that is large, also of what varies."""
        values = tuple(getattr(problem.scaled(by), self.vary) for problem in self.problems() if self.vary)
        return replace(self, problem=self.problem.scaled(by), values=tuple(dict.fromkeys(values)))

    def on(self, file: Path) -> Row:
        """With a bank from elsewhere in place of the trained one."""
        if self.problem.bank != "trained":
            return self
        rows, dim = np.load(file, mmap_mode="r").shape
        n = min(self.problem.n, rows)
        sizes = {"n": n, "dim": dim, "k": min(self.problem.k, n), "m": min(self.problem.m, n)}
        return replace(self, problem=replace(self.problem, bank=str(file), **sizes))


MILLION, IMAGENET = 1_000_000, 1_281_167
_cluster = Problem(200_000, bank="hierarchical")
_growing = Row("exact search", Problem(), TORCH_SEARCH, repeats=3)

ROWS = {
    "search": Row(
        "exact search",
        Problem(),
        SEARCH,
        {
            "torch matmul + topk": Goal(1.6, 3.0),
            "faiss IndexFlatIP": Goal(5.0, 10.0),
            "numpy matmul + argpartition": Goal(2.5, 5.0),
            "jax matmul + top_k": Goal(1.5, 4.0),
            "one sgemm": Goal(1 / 1.5, 1 / 1.1),
        },
        often=2,
    ),
    "search-trained": Row("exact search", Problem(50_000, bank="trained"), TORCH_SEARCH),
    "step": Row(
        "whole step",
        Problem(bank="hierarchical"),
        STEP,
        {"published arithmetic": Goal(2.0, 5.0)},
        memory=Goal(128, 64),
        often=2,
    ),
    "step-small": Row(
        "whole step, small bank",
        Problem(50_000, batch=128, bank="hierarchical"),
        STEP,
        {"published arithmetic": Goal(1.5, 4.0)},
        often=2,
    ),
    "cluster": Row("cold clustering", _cluster, CLUSTER, {"faiss Clustering": Goal(3.0, 8.0)}),
    "cluster-isotropic": Row(
        "cold clustering", replace(_cluster, bank="isotropic"), COLD, {"faiss Clustering": Goal(1.2, 3.0)}
    ),
    "cluster-trained": Row("cold clustering", Problem(50_000, m=1000, bank="trained"), CLUSTER),
    "cluster-warm": Row(
        "clustering, ours warm, after an epoch's drift",
        replace(_cluster, drift=0.5),
        WARM,
        {"faiss Clustering": Goal(10.0, 40.0)},
    ),
    "grow-m": Row(
        "cold clustering",
        replace(_cluster, clusterings=1),
        COLD,
        vary="m",
        values=(1000, 4000, 16_000),
        exponent=Goal(0.7, 0.5),
        repeats=2,
        slow_repeats=1,
    ),
    "grow-n": replace(_growing, vary="n", values=(62_500, 250_000, MILLION)),
    "grow-k": replace(_growing, vary="k", values=(256, 1024, 4096, 16_384)),
    "grow-batch": replace(_growing, vary="batch", values=(1, 16, 64, 256)),
}
LARGE = {
    f"large-{m}": Row(
        "cold clustering",
        Problem(IMAGENET, m=m, clusterings=1, bank="hierarchical"),
        COLD,
        {"faiss Clustering": Goal(5.0, 20.0)} if m == 10_000 else {},
        repeats=1,
        slow_repeats=1,
    )
    for m in (10_000, 30_000)
}


# Carrying out ---------------------------------------------------------------------------------------------------------


def carry_out(row: Row, plan: Plan) -> dict[str, Any]:
    """Measure a row: plain numbers, to be kept."""
    repeats, slow_repeats = row.repeats or plan.repeats * row.often, row.slow_repeats or plan.slow_repeats
    plan = replace(plan, repeats=repeats, slow_repeats=slow_repeats)
    points = [measure(row.contenders, problem, plan) for problem in row.problems()]
    present = [c for c in row.contenders if c.present]
    return {
        "title": row.title,
        "problem": vars(row.problem) | {"bank": Path(row.problem.bank).name},
        "missing": [c.name for c in row.contenders if not c.present],
        "wrong": [text for results in points for text in disagreements(results)],
        **(
            {"vary": row.vary, "values": list(row.values), "curves": {c.name: curve(row, c, points) for c in present}}
            if row.vary
            else {"contenders": {c.name: facts(row, c, points[0]) for c in present}}
        ),
    }


def disagreements(results: Mapping[str, Result]) -> list[str]:
    """Whose answer is not that of the first of our own, and by how much."""
    answers = {name: result.answers[0] for name, result in results.items() if result.answers}
    ours, *_ = answers.values() or [{}]
    found = []
    for name, answer in answers.items():
        for part in answer.keys() & ours.keys():
            off = float(np.max(np.abs(answer[part] - ours[part])) / np.max(np.abs(ours[part])))
            if not off <= EXACT[part]:  # nor NaN
                found.append(f"{name}: {part} off by {off:.2g}, allowed {EXACT[part]:g}")
    return found


def facts(row: Row, contender: Contender, results: Mapping[str, Result]) -> dict[str, Any]:
    """What is kept of one contender."""
    result = results[contender.name]
    if not result.seconds:
        return {"error": result.error}
    kept: dict[str, Any] = {
        "seconds": spread(result.seconds),
        "repeats": len(result.seconds),
        "peak_extra_mb": peak(result),
        "inertia": mean_inertia(result),
        "libraries": result.libraries,
        "error": result.error,
    }
    if contender.against is None:
        if row.memory and contender.name == OURS and result.peak_extra_mb is not None:
            kept["memory_goal"] = goal(row.memory, row.memory.verdict(result.peak_extra_mb))
        return kept
    ours = results.get(contender.against, Result())
    if ours.seconds:
        kept["against"] = contender.against
        kept["ratio"] = ratio = spread([b / a for a, b in zip(ours.seconds, result.seconds, strict=False)])
        if aimed := row.faster.get(contender.name):
            theirs, mine = mean_inertia(result), mean_inertia(ours)
            worse = theirs is not None and mine is not None and mine > (1 + INERTIA) * theirs
            kept["goal"] = goal(aimed, "MISSED: inertia" if worse else aimed.verdict(ratio[1]))
    return kept


def curve(row: Row, contender: Contender, points: list[dict[str, Result]]) -> dict[str, Any]:
    """What is kept of one contender at several sizes; the exponent is that of the best power law."""
    results = [point[contender.name] for point in points]
    kept: dict[str, Any] = {
        "seconds": [spread(r.seconds) if r.seconds else None for r in results],
        "peak_extra_mb": [peak(r) for r in results],
        "inertia": [mean_inertia(r) for r in results],
        "error": next((r.error for r in results if r.error), None),
    }
    measured = [(value, r.median) for value, r in zip(row.values, results, strict=True) if r.seconds]
    if len(measured) > 1:
        kept["exponent"] = digits(slope(np.log([m for m, _ in measured]), np.log([s for _, s in measured])))
        if row.exponent and contender.name == OURS:
            kept["goal"] = goal(row.exponent, row.exponent.verdict(kept["exponent"]))
    return kept


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """Of the line of least squares."""
    return float(np.polyfit(x, y, 1)[0])


def goal(goal: Goal, verdict: str) -> dict[str, Any]:
    """To be kept."""
    return {**vars(goal), "verdict": verdict}


def spread(values: list[float]) -> tuple[float, float, float]:
    """Least, median and most."""
    return digits(min(values)), digits(median(values)), digits(max(values))


def digits(value: float, many: int = 4) -> float:
    """Of that many significant digits."""
    return float(f"{value:.{many}g}")


def peak(result: Result) -> float | None:
    """In MB, to a tenth."""
    return None if result.peak_extra_mb is None else round(result.peak_extra_mb, 1)


def mean_inertia(result: Result) -> float | None:
    """Of all runs."""
    found = [float(answer["inertia"]) for answer in result.answers if "inertia" in answer]
    return digits(sum(found) / len(found), 8) if found else None
