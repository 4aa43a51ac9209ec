"""What a run folder holds, as far as it can be read."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from la_core import health
from la_core.errors import SettingsError
from la_core.folder import read_metrics
from la_core.report.record import ARRAYS, JSON
from la_core.settings import Settings


@dataclass(frozen=True)
class Contents:
    """What a run folder holds; None or empty where it lacks something."""

    folder: Path
    metrics: list[dict[str, Any]]
    settings: Settings | None = None
    raw_settings: dict[str, Any] = field(default_factory=dict)
    """As the file has them, also where this version does not know them all."""
    status: dict[str, Any] = field(default_factory=dict)
    table: dict[str, Any] = field(default_factory=dict)
    """Rows of accuracies by name: of the embedding and of the layer before it."""
    facts: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    """See :mod:`la_core.report.record`."""
    figures: Path | None = None
    """The folder for the figures as files; without, they are only in the page."""

    @classmethod
    def read(cls, folder: Path) -> Contents:
        """Read what is there."""
        metrics = list(read_metrics(folder))
        try:
            settings = Settings.load(folder / "settings.json")
        except (OSError, ValueError, SettingsError, TypeError):
            settings = None
        raw, status, table = (_json(folder / f"{name}.json") for name in ("settings", "status", "table"))
        facts, arrays = _json(folder / JSON), _arrays(folder / ARRAYS)
        if not (facts and arrays):  # neither says anything without the other
            facts, arrays = {}, {}
        return cls(folder, metrics, settings, raw, status, table, facts, arrays)

    @property
    def name(self) -> str:
        """Of the folder."""
        return _readable(self.folder.resolve().name)

    @property
    def measured(self) -> list[dict[str, Any]]:
        """The records that hold the health of the run."""
        return [r for r in self.metrics if "health" in r]

    def class_name(self, c: int) -> str:
        """As the data have it, or its number."""
        names = self.facts.get("class_names") or []
        return str(names[c]) if 0 <= c < len(names) else str(c)

    def warnings(self) -> dict[str, tuple[list[int], str]]:
        """By name: the epochs at which something was found, and the last sentence about it. Needs the settings."""
        found: dict[str, tuple[list[int], str]] = {}
        if self.settings is None:
            return found
        for record in self.measured:
            for name, sentence in health.warnings(record, self.settings, record["health"]["rows"]).items():
                found[name] = ([*found.get(name, ([], ""))[0], record["epoch"]], sentence)
        return found

    def said(self) -> list[tuple[int, str]]:
        """What the run itself warned of, and at which epoch it began."""
        return [(record["epoch"], sentence) for record in self.measured for sentence in record.get("warnings", ())]


def _json(path: Path) -> dict[str, Any]:
    """What a file holds; nothing where it is missing or cut off."""
    try:
        found = json.loads(_readable(json.dumps(json.loads(path.read_text()), ensure_ascii=False)))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _readable(text: str) -> str:
    """With a ? for what is no Unicode, as in the names of folders that are not UTF-8: it can be drawn and written."""
    return text.encode("utf-8", "replace").decode()


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in file}
    except Exception:  # missing or cut off: the page says what it lacks
        return {}
