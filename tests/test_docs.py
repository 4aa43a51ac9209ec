"""What the README and the guides show runs: each of their python blocks, by itself."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "docs" / "encoders.md"]


def blocks(text):
    """Every python block of a Markdown text, moved to its own line, so that an error names the line."""
    for match in re.finditer(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, match.start(1))
        yield pytest.param("\n" * line + match[1], id=f"line {line + 1}")


def run(code, name):
    exec(compile(code, name, "exec"), {"__name__": "readme"})


CODE = [
    pytest.param(page, *block.values, id=f"{page.name} {block.id}")
    for page in PAGES
    for block in blocks(page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize(("page", "code"), CODE)
def test_every_block_runs_on_its_own(page, code, tmp_path, monkeypatch):
    needs = {"torch": r"import torch|backends\.torch", "jax": r"import jax|backends\.jax", "safetensors": "export"}
    for package, sign in needs.items():
        if re.search(sign, code):
            pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    run(code, str(page))


def test_a_broken_block_is_caught_on_its_line():
    text = "A text.\n\n```python\nx = 1\n```\n\n```\nnot python\n```\n\n```python\ny = 2\nassert x == 1\n```\n"
    first, second = blocks(text)
    run(*first.values, "text.md")
    with pytest.raises(NameError, match="'x'") as error:  # the first block's x is not there
        run(*second.values, "text.md")
    assert error.traceback[-1].lineno + 1 == 13
