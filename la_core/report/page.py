"""A run folder as one HTML page: opens from disk, asks nothing of any network, and runs no script."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from html import escape
from pathlib import Path

from la_core.errors import RunFolderError
from la_core.report.contents import Contents
from la_core.report.figures import need_matplotlib
from la_core.report.sections import SECTIONS, verdict
from la_core.report.style import STYLE

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""What a browser may load for the page: nothing that is not in it."""


def report(run_folder: str | Path, output: str | Path | None = None) -> Path:
    """Write the page of a run, and its figures as PNG and SVG under ``figures`` in the run folder.

    Parameters
    ----------
    run_folder
        Of :func:`la_core.train`, finished or not. What it lacks is named on the page, with how to record it.
    output
        The page; by default ``report.html`` in the run folder. Where that cannot be written, a page elsewhere has the
        figures all the same, and a warning says that they are not in files.

    Returns
    -------
    Path
        Of the page.

    Raises
    ------
    RunFolderError
        No run folder, or one that cannot be written.
    DataError
        matplotlib is not installed.
    """
    need_matplotlib()
    folder = Path(run_folder)
    contents = Contents.read(folder)
    path = folder / "report.html" if output is None else Path(output)
    try:
        contents = replace(contents, figures=_for_figures(folder, output is not None))
        path.write_text(page(contents), encoding="utf-8")
    except OSError as error:
        raise RunFolderError(f"the report cannot be written: {error}") from error
    return path


def _for_figures(folder: Path, spare: bool) -> Path | None:
    """Where they are written; None, with a warning, where that cannot be and they can be spared."""
    figures = folder / "figures"
    try:
        figures.mkdir(exist_ok=True)
        if not os.access(figures, os.W_OK):
            raise PermissionError(f"{figures} cannot be written")
    except OSError as error:
        if not spare:
            raise
        warnings.warn(f"the figures are in the page alone, not in files: {error}", stacklevel=3)
        return None
    return figures


def page(contents: Contents) -> str:
    """The whole page; its figures are written on the way."""
    body = "".join(
        f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{title}</h2>'
        f"{make(contents)}</section>"
        for name, (title, make) in SECTIONS.items()
    )
    links = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, (title, _) in SECTIONS.items())
    title = f"la-core run {escape(contents.name)}"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{title}</title><style>{STYLE}</style></head>'
        f'<body><a class="skip" href="#main">Skip to the results</a><header><h1>{title}</h1>{verdict(contents)}'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header><main id="main">{body}</main></body></html>\n'
    )
