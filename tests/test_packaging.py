"""What is built and installed is what the repository promises, seen from outside the repository."""

import email
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
NOT_SOURCES = shutil.ignore_patterns(
    ".git", ".venv", "build", "dist", "runs", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis"
)


def run(*command, cwd, **env):
    # -W: what a build tool warns of is its own affair. -P: the working directory is not on the path.
    done = subprocess.run(
        [sys.executable, "-P", *command],
        cwd=cwd,
        env={**os.environ, "PYTHONWARNINGS": "", **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, the wheel made from it, and the wheel made from the tree: all from a copy of the tree."""
    tmp = tmp_path_factory.mktemp("packaging")
    tree = shutil.copytree(ROOT, tmp / "tree", ignore=NOT_SOURCES)
    run("-m", "build", "--no-isolation", "--outdir", str(tmp / "dist"), cwd=tree)
    run("-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp / "direct"), cwd=tree)
    (sdist,), (wheel,) = (tmp / "dist").glob("*.tar.gz"), (tmp / "dist").glob("*.whl")
    (direct,) = (tmp / "direct").glob("*.whl")
    return SimpleNamespace(tree=tree, sdist=sdist, wheel=wheel, direct=direct)


def contents(wheel):
    """Names and bytes of the files of a wheel; RECORD is only their hashes once more."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/RECORD")}


def dist_info(wheel, name):
    (text,) = [data for path, data in contents(wheel).items() if path.endswith(f".dist-info/{name}")]
    return text.decode()


def entry_points(wheel):
    parser = ConfigParser()
    parser.read_string(dist_info(wheel, "entry_points.txt"))
    return dict(parser["la_core.backends"])


def modules(folder, prefix):
    return {f"{prefix}/{path.relative_to(folder).as_posix()}" for path in folder.rglob("*.py")}


def misplaced(wheel, tree):
    """Files that a wheel lacks or has too many, metadata aside."""
    files = {name for name in contents(wheel) if ".dist-info/" not in name}
    expected = modules(tree / "la_core", "la_core") | modules(tree / "backends", "la_core/backends")
    return files ^ (expected | {"la_core/py.typed"})


def test_the_wheel_holds_the_package_and_nothing_else(built):
    assert not misplaced(built.wheel, built.tree)


def test_a_wheel_with_a_stray_top_level_is_caught(built, tmp_path):
    tree = shutil.copytree(built.tree, tmp_path / "tree", ignore=NOT_SOURCES)
    project = tree / "pyproject.toml"
    text = project.read_text(encoding="utf-8")
    planted = text.replace('  "la_core.backends",\n', '  "backends",\n')
    assert planted != text
    project.write_text(planted, encoding="utf-8")
    run("-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path), cwd=tree)
    (wheel,) = tmp_path.glob("*.whl")
    assert {"backends/numpy.py", "la_core/backends/numpy.py"} <= misplaced(wheel, tree)


def test_the_wheel_carries_the_licence(built):
    assert dist_info(built.wheel, "licenses/LICENSE") == (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_the_wheel_made_from_the_sdist_is_the_wheel_made_from_the_tree(built):
    assert contents(built.wheel) == contents(built.direct)


def test_the_sdist_can_be_tested_and_read(built):
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    folders = ("la_core", "backends", "tests", "examples", "benchmarks", "docs", ".ci")
    expected = {
        path.relative_to(built.tree).as_posix()
        for folder in folders
        for path in (built.tree / folder).rglob("*")
        if path.is_file()
    }
    top = {"pyproject.toml", "Makefile", "constraints.txt", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md"}
    top |= {"SECURITY.md"}
    assert expected | top <= names
    assert not [name for name in names if "__pycache__" in name]


def test_the_core_needs_three_packages(built):
    metadata = email.message_from_string(dist_info(built.wheel, "METADATA"))
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist")]
    assert {r.name for r in requirements if r.marker is None} == {"numpy", "array-api-compat", "array-api-extra"}
    assert all("extra ==" in str(r.marker) for r in requirements if r.marker is not None)


def test_every_entry_point_has_its_module_and_its_extra(built):
    files = contents(built.wheel)
    extras = email.message_from_string(dist_info(built.wheel, "METADATA")).get_all("Provides-Extra")
    found = entry_points(built.wheel)
    assert {"numpy", "torch"} <= set(found)
    for name, target in found.items():
        module, _, attribute = target.partition(":")
        path = module.replace(".", "/")
        source = files[path + ".py"] if path + ".py" in files else files[path + "/__init__.py"]
        assert attribute.encode() in source
        assert name == "numpy" or name in extras, f"pip install 'la-core[{name}]' would add nothing"


def test_the_installed_wheel_works_outside_the_repository(built, tmp_path):
    target = tmp_path / "site"
    run(
        *("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"),
        *("--target", str(target), str(built.wheel)),
        cwd=tmp_path,
    )
    program = """
import importlib.util, sys
import la_core
numpy = la_core.backend("numpy")
print(la_core.__file__, sys.modules[type(numpy).__module__].__file__, type(numpy).__module__, sep="\\n")
assert importlib.util.find_spec("backends") is None
"""
    core, backend, name = run("-c", program, cwd=tmp_path, PYTHONPATH=str(target)).splitlines()
    assert Path(core) == target / "la_core" / "__init__.py"
    assert Path(backend) == target / "la_core" / "backends" / "numpy.py"
    assert name == "la_core.backends.numpy"


@pytest.mark.parametrize("framework", ["numpy", "torch", "jax"])
def test_every_framework_is_there(framework):
    """Where CI is set a missing framework fails here; elsewhere the skip is reported."""
    if not os.environ.get("CI"):
        pytest.importorskip(framework)
    import_module(f"la_core.backends.{framework}")
    assert "backends" not in sys.modules, "the backends were imported under two names"


def test_ci_holds_what_it_installs_to_hashes():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8").partition("# Benchmarks")[0]
    pins = {line for line in text.splitlines() if line and not line.startswith("#")}
    lines = (ROOT / ".ci" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    locked = [line.partition(" --hash=sha256:") for line in lines if not line.startswith("#")]
    pins = {pin for pin in pins if not pin.startswith("torch==")}
    (beside,) = {pin for pin, _, _ in locked} - pins
    assert beside.startswith("triton==")  # interprets kernels; constraints.txt leaves it to a PyTorch for GPUs
    assert {pin for pin, _, _ in locked} == pins | {beside}, "run .ci/lock.py"
    assert all(len(digest) == 64 and set(digest) <= set("0123456789abcdef") for _, _, digest in locked)


def test_make_and_ci_pin_what_they_install():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all([s.operator for s in pin.specifier] == ["=="] for pin in pins)
    pinned = {pin.name: pin.specifier for pin in pins}
    assert len(pinned) == len(pins)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    groups = project["dependency-groups"].values()
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    for extra in ("torch", "jax", "demo", "export"):
        wanted += project["project"]["optional-dependencies"][extra]
    wanted += [line for group in groups for line in group if isinstance(line, str)]
    for requirement in map(Requirement, wanted):
        (pin,) = pinned[requirement.name]
        assert requirement.specifier.contains(pin.version), (
            f"constraints.txt pins {requirement.name} outside {requirement}"
        )
