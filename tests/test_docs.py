"""What the documents promise runs, and no file names a place that a reader does not have."""

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOT_SOURCES = {".git", ".venv", "build", "dist", "runs", "__pycache__", ".hypothesis"}
BINARY = {".npz", ".npy", ".png", ".jpg", ".gz", ".whl", ".pyc"}

FORBIDDEN = re.compile("|".join(["/wo" + "rk/", r"\.\./sha" + "red", r"(?<!\w)\.libr" + r"ary\b", "/tmp/e" + "nv"]))


def blocks(text):
    """Every python block of a Markdown text, moved to its own line, so that an error names the line."""
    for match in re.finditer(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, match.start(1))
        yield pytest.param("\n" * line + match[1], id=f"line {line + 1}")


def run(code, name):
    exec(compile(code, name, "exec"), {"__name__": "readme"})


def forbidden(root):
    """Where a text file under ``root`` names a forbidden place."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f not in NOT_SOURCES and not f.endswith(("_cache", ".egg-info"))]
        for path in (Path(folder, name) for name in files if Path(name).suffix not in BINARY):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            found += [f"{path}:{n}: {line.strip()}" for n, line in enumerate(lines, start=1) if FORBIDDEN.search(line)]
    return found


@pytest.mark.parametrize("code", [*blocks((ROOT / "README.md").read_text(encoding="utf-8"))])
def test_every_block_of_the_readme_runs_on_its_own(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(code, str(ROOT / "README.md"))


def test_no_file_names_a_place_outside_the_project():
    found = forbidden(ROOT)
    assert not found, "\n".join(found)


def test_a_broken_block_is_caught_on_its_line():
    text = "A text.\n\n```python\nx = 1\n```\n\n```\nnot python\n```\n\n```python\ny = 2\nassert x == 1\n```\n"
    first, second = blocks(text)
    run(*first.values, "text.md")
    with pytest.raises(NameError, match="'x'") as error:  # the first block's x is not there
        run(*second.values, "text.md")
    assert error.traceback[-1].lineno + 1 == 13


@pytest.mark.parametrize("word", ["see /wo" + "rk/notes", "../sha" + "red", "a .libr" + "ary folder"])
def test_a_forbidden_place_is_caught(word, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "log.txt").write_text(word)
    (tmp_path / "Makefile").write_text("all:\n")
    assert not forbidden(tmp_path)
    (tmp_path / "Makefile").write_text(f"all:\n# {word}\n")
    (found,) = forbidden(tmp_path)
    assert "Makefile:2" in found
