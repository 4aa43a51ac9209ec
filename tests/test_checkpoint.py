"""What was acknowledged is there after any crash; what is read back is what was written, or an error of one kind."""

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from killing import apart, killed
from planting import mutated
from storages import ROOT, Disk, Stop, fail_at, stop_at

from la_core import checkpoint
from la_core.checkpoint import KEEP, Checkpoint, Checkpoints, Place
from la_core.errors import CheckpointError
from la_core.storage import Storage
from la_core.tensors import encode

FOLDER = ROOT / "checkpoints"


def sample(number, epoch=0):
    """A small checkpoint: its arrays are a function of its place."""
    rng = np.random.default_rng([epoch, number])
    arrays = {
        "state": {"bank": rng.random((7, 3), dtype=np.float32), "labels": rng.integers(0, 5, (2, 7))},
        "encoder": {"w": rng.random((3, 4)).T, "steps": np.array(number)},
        "training": {},
    }
    return Checkpoint(Place(epoch, number), {"step": number}, arrays, [{"loss": 0.1 * number}] * epoch)


def assert_whole(found):
    """The very one that was saved at its place."""
    wanted = sample(found.place.number, found.place.epoch)
    assert found.arrays.keys() == wanted.arrays.keys()
    for part, arrays in wanted.arrays.items():
        assert found.arrays[part].keys() == arrays.keys()
        for name, x in arrays.items():
            assert found.arrays[part][name].dtype == x.dtype
            np.testing.assert_array_equal(found.arrays[part][name], x)
    assert found.facts["step"] == found.place.number
    assert found.history == wanted.history


def on(disk, run="a run"):
    checkpoints = Checkpoints(FOLDER, disk)
    checkpoints.run = run
    return checkpoints


def saved(count, at=None):
    """A disk with so many checkpoints, and the one who wrote them."""
    disk = Disk()
    checkpoints = on(disk)
    for number in range(count):
        checkpoints.save(sample(number))
    disk.at, disk.count = at, 0
    return disk, checkpoints


# As it is meant -------------------------------------------------------------------------------------------------------


def test_the_newest_two_stay_and_are_what_was_saved(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.latest() is None
    for epoch, number in ((0, 0), (0, 7), (1, 0), (1, 2)):
        assert checkpoints.save(sample(number, epoch)).name == Place(epoch, number).name
        found = Checkpoints(tmp_path / "checkpoints").latest()
        assert found.place == (epoch, number)
        assert_whole(found)
    assert checkpoints.places() == [(1, 0), (1, 2)]
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_any_program_can_read_it(tmp_path):
    path = Checkpoints(tmp_path / "checkpoints").save(sample(3))
    load_file = pytest.importorskip("safetensors.numpy").load_file
    np.testing.assert_array_equal(load_file(path / "encoder.safetensors")["w"], sample(3).arrays["encoder"]["w"])
    manifest = json.loads((path / "manifest.json").read_text())
    for name, (size, digest) in manifest["files"].items():
        content = (path / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (size, digest)
    assert (path / "COMMITTED").read_text().strip() == hashlib.sha256((path / "manifest.json").read_bytes()).hexdigest()


def test_the_same_place_again_changes_nothing_and_a_damaged_one_is_put_aside(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    path = checkpoints.save(sample(1))
    before = {file: file.stat().st_mtime_ns for file in path.iterdir()}
    assert checkpoints.save(sample(1)) == path
    assert {file: file.stat().st_mtime_ns for file in path.iterdir()} == before
    (path / "state.safetensors").write_bytes(b"rot")
    checkpoints.save(sample(1))
    assert_whole(checkpoints.latest())
    assert (tmp_path / "checkpoints" / f"{path.name}.damaged-1" / "state.safetensors").read_bytes() == b"rot"


def test_only_what_the_run_wrote_is_deleted(tmp_path):
    folder = tmp_path / "checkpoints"
    other = Checkpoints(folder)
    other.save(sample(0))
    (folder / "epoch-00000-step-000001").mkdir()  # of somebody, and none
    (folder / "notes.txt").write_text("mine")
    (folder / ".hidden").mkdir()
    ours = Checkpoints(folder)
    path = ours.save(sample(2))
    (path / "why.txt").write_text("I like this one")
    for number in range(3, 9):
        ours.save(sample(number))
    there = {file.name for file in folder.iterdir()}
    kept = {Place(0, n).name for n in (0, 1, 2, 7, 8)}
    assert there == kept | {"notes.txt", ".hidden"}
    assert (path / "why.txt").read_text() == "I like this one"


def test_the_last_good_one_stays_while_newer_ones_are_damaged(tmp_path):
    folder = tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder)
    for number in range(4):
        path = checkpoints.save(sample(number))
    (path / "encoder.safetensors").unlink()
    again = Checkpoints(folder)
    with pytest.warns(UserWarning, match=r"encoder.safetensors is missing; going back to epoch-00000-step-000002"):
        assert_whole(again.latest())
    again.save(sample(3))
    assert Checkpoints(folder).latest().place == (0, 3)
    assert (0, 2) in again.places()


def test_a_newer_format_is_never_passed_over(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(sample(0))
    forge(checkpoints.save(sample(1)), lambda manifest: manifest | {"format": 2})
    with pytest.raises(CheckpointError, match="format 2, and this version of la-core reads up to 1"):
        checkpoints.latest()


def test_where_all_are_damaged_nothing_begins_anew(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for number in range(2):
        (checkpoints.save(sample(number)) / "COMMITTED").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be used: .*step-000001/COMMITTED is missing"):
        checkpoints.latest()


# Crashes: every operation of a save is one --------------------------------------------------------------------------


def law_a_crash_loses_nothing_that_was_acknowledged(before=KEEP, loss=12):
    """Stop before each operation of a save with rotation; then look at every disk that may be left.

    Returns how many crash points there were, and how many disks were looked at.
    """
    looked = 0
    for n in range(1, 200):
        disk, checkpoints = saved(before, stop_at(n))
        try:
            checkpoints.save(sample(before))
            acknowledged, over = before, True
        except Stop:
            acknowledged, over = before - 1, False
        for left in disk.after_power_loss(loss):
            looked += 1
            found = on(left).latest()
            if found is None:
                assert acknowledged < 0
            else:
                assert acknowledged <= found.place.number <= before, f"{disk.log[-1]} lost {acknowledged}"
                assert_whole(found)
            again = on(left)
            again.latest()
            again.save(sample(before + 1))  # whatever is left, the run goes on
            assert_whole(on(left).latest())
        if over:
            return n, looked
    raise AssertionError("a save has no end")


@pytest.mark.parametrize("before", [0, 1, KEEP])
def test_a_crash_loses_nothing_that_was_acknowledged(before):
    points, looked = law_a_crash_loses_nothing_that_was_acknowledged(before)
    assert points > 20
    assert looked > 20 * 12


def law_a_failing_disk_is_told_and_loses_nothing(code):
    """Each operation of a save fails once, or from then on: the error is ours, and the run can go on."""
    for n in range(1, 200):
        disk, checkpoints = saved(KEEP, fail_at(n, code))
        told = ""
        try:
            checkpoints.save(sample(KEEP))
        except CheckpointError as error:
            told = str(error)
        assert not told or ("cannot be written" in told and "planned" in told)
        over, disk.at = disk.count < n, None
        found = on(disk).latest()
        assert_whole(found)
        assert found.place.number == KEEP or told
        assert found.place.number >= KEEP - 1
        on(disk).save(sample(KEEP + 1))
        assert_whole(on(disk).latest())
        if over:
            return n
    raise AssertionError("a save has no end")


@pytest.mark.filterwarnings("ignore:old checkpoints .* cannot be deleted")
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EACCES])
def test_a_failing_disk_is_told_and_loses_nothing(code):
    assert law_a_failing_disk_is_told_and_loses_nothing(code) > 20


def test_what_cannot_be_deleted_is_a_warning_and_no_failure():
    disk, checkpoints = saved(KEEP)
    disk.at = lambda count, what: fail_at(count, errno.EACCES)(count, what) if what == "remove" else None
    with pytest.warns(UserWarning, match="cannot be deleted: .*planned"):
        checkpoints.save(sample(KEEP))
    assert_whole(on(disk).latest())


BUGS = {
    "in place": (Checkpoints.save, 'staged = self.folder / f".{path.name}.part"', "staged = path"),
    "files not synced": (Checkpoints._write, "disk.sync(file)", "pass"),
    "folder not synced": (Checkpoints.save, "disk.sync_folder(staged)", "pass"),
    "rename not synced": (
        Checkpoints.save,
        "disk.rename(staged, path)\n        disk.sync_folder(self.folder)",
        "disk.rename(staged, path)",
    ),
    "parent not synced": (Checkpoints._settle, "self._storage.sync_folder(self.folder.parent)", "pass"),
    "rotated too early": (
        Checkpoints.save,
        "disk.rename(staged, path)",
        "self._good = [checkpoint.place] * KEEP\n        self._rotate()\n        disk.rename(staged, path)",
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of a damaged one, which the real writer never leaves
@pytest.mark.parametrize("bug", BUGS)
def test_the_power_loss_catches_a_planted_bug(bug, monkeypatch):
    function, right, wrong = BUGS[bug]
    monkeypatch.setattr(function, "__code__", mutated(function, right, wrong))
    with pytest.raises((AssertionError, CheckpointError)):
        list(map(law_a_crash_loses_nothing_that_was_acknowledged, (0, KEEP)))


def test_a_failing_disk_catches_a_swallowed_error(monkeypatch):
    wrong = mutated(Checkpoints.save, "with suppress(OSError):\n            self._delete(staged)", "return path")
    monkeypatch.setattr(Checkpoints.save, "__code__", wrong)
    with pytest.raises(AssertionError):
        law_a_failing_disk_is_told_and_loses_nothing(errno.ENOSPC)


def write_for_ever(folder, tell):
    """Save one checkpoint after the other, and tell of each that is acknowledged."""
    checkpoints = Checkpoints(folder)
    found = checkpoints.latest()
    number = found.place.number if found else -1
    while True:
        number += 1
        checkpoints.save(sample(number))
        tell(number)


def law_a_killed_writer_loses_nothing(folder, count, seed):
    """SIGKILL at random instants. A warning of a damaged one is an error here, as everywhere in the tests."""
    folder, rng = Path(folder), np.random.default_rng(seed)
    for _ in range(count):
        _, told = killed(lambda tell: write_for_ever(folder, tell), rng.uniform(0.005, 0.25))
        found = Checkpoints(folder).latest()
        assert not told or (found is not None and found.place.number >= told[-1])
        if found is not None:
            assert_whole(found)


def test_killed_writers_lose_nothing(tmp_path):
    apart("test_checkpoint:law_a_killed_writer_loses_nothing", tmp_path / "checkpoints", 25, 0)


def test_killed_writers_that_write_in_place_are_caught(tmp_path):
    with pytest.raises(AssertionError, match=r"CheckpointError|UserWarning"):
        apart("test_checkpoint:law_a_killed_writer_in_place", tmp_path / "checkpoints", 25, 0)


def law_a_killed_writer_in_place(folder, count, seed):
    function, right, wrong = BUGS["in place"]
    function.__code__ = mutated(function, right, wrong)
    law_a_killed_writer_loses_nothing(folder, count, seed)


# Damage -------------------------------------------------------------------------------------------------------------


def contents(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def mutants(files, count, rng):
    """Files of a checkpoint with one thing changed in one of them: (what, name, content or None for missing)."""
    names = sorted(files)
    for i in range(count):
        name = names[i % len(names)]
        content = bytearray(files[name])
        at, to = sorted(int(x) for x in rng.integers(0, max(len(content), 1), 2))
        what = ("bit", "byte", "cut", "more", "zeros", "swap", "missing", "header")[int(rng.integers(8))]
        if what == "bit" and content:
            content[at] ^= 1 << int(rng.integers(8))
        elif what == "byte" and content:
            content[at] = int(rng.integers(256))
        elif what == "cut":
            del content[at:]
        elif what == "more":
            content[at:at] = rng.bytes(1 + at % 9)
        elif what == "zeros":
            content[at : to + 1] = bytes(len(content[at : to + 1]))
        elif what == "swap":
            content = content[to:] + content[at:to] + content[:at]
        elif what == "header" and content:
            content[:8] = int(rng.integers(2**63)).to_bytes(8, "little")
        yield what, name, None if what == "missing" else bytes(content)


def law_a_mutant_is_refused_or_the_same(tmp_path, count, rng):
    """How many of the mutants were refused. A wrong one that loads, or another error, fails."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    path = checkpoints.save(sample(5))
    files, refused = contents(path), 0
    for what, name, content in mutants(files, count, rng):
        if content is None:
            (path / name).unlink()
        else:
            (path / name).write_bytes(content)
        found, told = None, ""
        try:
            found = checkpoints.load(Place(0, 5))
        except CheckpointError as error:
            told = str(error)
            refused += 1
        if found is None:
            assert str(path) in told, f"{what} of {name}: it names no file"
        else:
            assert content == files[name], f"{what} of {name} was loaded"
            assert_whole(found)
        (path / name).write_bytes(files[name])
    return refused


def test_a_mutant_is_refused_or_the_same(tmp_path):
    assert law_a_mutant_is_refused_or_the_same(tmp_path, 1500, np.random.default_rng(1)) > 1200


def test_mutants_catch_a_digest_that_is_not_compared(tmp_path, monkeypatch):
    wrong = mutated(Checkpoints._content, "found != digest", "False")
    monkeypatch.setattr(Checkpoints._content, "__code__", wrong)
    with pytest.raises(AssertionError, match="was loaded"):
        law_a_mutant_is_refused_or_the_same(tmp_path, 600, np.random.default_rng(1))


# Forgeries: digests that fit ------------------------------------------------------------------------------------------


def forge(path, change=lambda manifest: manifest, text=None, **files):
    """Change a checkpoint and make its digests fit, as somebody who means harm would."""
    manifest = json.loads((path / "manifest.json").read_text())
    for name, content in files.items():
        file = {"state": "state.safetensors", "metrics": "metrics.jsonl"}[name]
        (path / file).write_bytes(content)
        manifest["files"][file] = [len(content), hashlib.sha256(content).hexdigest()]
    content = json.dumps(change(manifest)).encode() if text is None else text
    (path / "manifest.json").write_bytes(content)
    (path / "COMMITTED").write_text(hashlib.sha256(content).hexdigest() + "\n")


def tensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def named(name):
    return lambda manifest: manifest | {"files": manifest["files"] | {name: [1, "0" * 64]}}


FORGERIES = {
    "no table": {"text": b"[]"},
    "deep": {"text": b"[" * 100_000},
    "a name twice": {"text": b'{"format": 1, "format": 1}'},
    "NaN": {"text": b'{"format": NaN}'},
    "infinity": {"text": b'{"format": 1e999}'},
    "a long number": {"text": b'{"format": ' + b"9" * 100_000 + b"}"},
    "no UTF-8": {"text": b"\xff\xfe{}"},
    "too long": {"text": b" " * (checkpoint.MOST_MANIFEST + 1)},
    "format 0": {"change": lambda m: m | {"format": 0}},
    "format true": {"change": lambda m: m | {"format": True}},
    "another place": {"change": lambda m: m | {"place": [3, 3]}},
    "no place": {"change": lambda m: m | {"place": [1.5, None]}},
    "facts of a string": {"change": lambda m: m | {"facts": "os.system"}},
    "a path": {"change": named("../../escape")},
    "an absolute path": {"change": named("/etc/passwd")},
    "a pickle": {"change": named("state.pkl")},
    "a size of the moon": {"change": lambda m: m | {"files": m["files"] | {"state.safetensors": [2**47, "0" * 64]}}},
    "a size that is none": {"change": lambda m: m | {"files": m["files"] | {"state.safetensors": [-1, "0" * 64]}}},
    "a digest that is none": {"change": lambda m: m | {"files": m["files"] | {"state.safetensors": [1, "../x"]}}},
    "no state": {"change": lambda m: m | {"files": {"metrics.jsonl": m["files"]["metrics.jsonl"]}}},
    "more to say": {"change": lambda m: m | {"import": "os"}},
    "metrics of lists": {"metrics": b"[]\n"},
    "metrics of nothing": {"metrics": b"\x80\x04."},
    "metrics deep": {"metrics": b"[" * 100_000 + b"\n"},
    "a pickle inside": {"state": b"\x80\x04cos\nsystem\n(S'true'\ntR."},
    "empty": {"state": b""},
    "a header beyond the end": {"state": (2**40).to_bytes(8, "little") + b"{}"},
    "a header of lists": {"state": tensors(b"[]")},
    "a header deep": {"state": tensors(b'{"a":' * 50_000)},
    "an object dtype": {"state": tensors({"bank": entry("O")}, bytes(8))},
    "a dtype that is none": {"state": tensors({"bank": entry(["F32"])}, bytes(8))},
    "a shape that overflows": {"state": tensors({"bank": entry(shape=(2**40, 2**40))}, bytes(8))},
    "a shape of very many": {"state": tensors({"bank": entry(shape=[1] * 10_000, offsets=(0, 4))}, bytes(4))},
    "a negative shape": {"state": tensors({"bank": entry(shape=(-2,))}, bytes(8))},
    "a shape of floats": {"state": tensors({"bank": entry(shape=(2.0,))}, bytes(8))},
    "beyond the end": {"state": tensors({"bank": entry(shape=(4,), offsets=(0, 16))}, bytes(8))},
    "overlapping": {"state": tensors({"a": entry(), "b": entry()}, bytes(8))},
    "a gap": {"state": tensors({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20))},
    "bytes of nobody": {"state": tensors({"a": entry()}, bytes(16))},
    "an entry with more": {"state": tensors({"a": entry() | {"call": "os"}}, bytes(8))},
    "booleans of 2": {"state": tensors({"a": entry("BOOL", (2,), (0, 2))}, b"\x02\x02")},
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forgery_is_refused_at_once(tmp_path, forgery):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    forge(checkpoints.save(sample(5)), **FORGERIES[forgery])
    began = time.perf_counter()
    with pytest.raises(CheckpointError):
        checkpoints.load(Place(0, 5))
    assert time.perf_counter() - began < 1


def test_what_is_no_file_is_not_opened(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    path = checkpoints.save(sample(5))
    file = path / "state.safetensors"
    content = file.read_bytes()
    (tmp_path / "elsewhere").write_bytes(content)
    for make in (lambda: file.symlink_to(tmp_path / "elsewhere"), lambda: os.mkfifo(file), file.mkdir):
        file.unlink()
        make()
        with pytest.raises(CheckpointError, match=r"state.safetensors cannot be read"):
            checkpoints.load(Place(0, 5))
        file.rmdir() if file.is_dir() and not file.is_symlink() else file.unlink()
        file.write_bytes(content)
    assert_whole(checkpoints.load(Place(0, 5)))
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        checkpoints.load(Place(0, 5))


AUDIT = """
import resource, sys
import la_core
from la_core.checkpoint import Checkpoints, Place
from la_core.errors import CheckpointError
from pathlib import Path
folder = Path(sys.argv[1])
seen = []
armed = True
def hook(event, arguments):
    if armed:
        seen.append((event, str(arguments[:1])[:100]))
sys.addaudithook(hook)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for place in Checkpoints(folder).places():
    try:
        Checkpoints(folder).load(place)
    except CheckpointError:
        pass
armed = False
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(grown)
for event, what in seen:
    print(event, what)
"""


def audited(folder):
    """KiB by which loading all checkpoints in a folder makes a fresh process grow, and the audit events of it."""
    done = subprocess.run([sys.executable, "-c", AUDIT, str(folder)], capture_output=True, text=True, check=True)
    grown, *events = done.stdout.splitlines()
    return int(grown), events


def test_loading_imports_runs_and_reaches_nothing(tmp_path):
    folder = tmp_path / "checkpoints"
    writer = Checkpoints(folder)
    paths = []
    for number in range(len(FORGERIES) + 1):
        writer._good = []  # all of them stay
        paths.append(writer.save(sample(number)))
    for path, forgery in zip(paths[1:], FORGERIES.values(), strict=True):
        forge(path, **forgery)
    grown, events = audited(folder)
    assert grown < 64 * 1024
    assert {event.split()[0] for event in events} <= {"open", "os.listdir", "os.scandir"}
    opened = [event for event in events if event.startswith("open")]
    assert len(opened) > len(FORGERIES)
    assert all(str(folder) in event or re.fullmatch(r"open \(\d+,\)", event) for event in opened)  # or a descriptor


def test_the_audit_sees_a_load_that_imports(tmp_path, monkeypatch):
    Checkpoints(tmp_path / "checkpoints").save(sample(0))
    monkeypatch.setitem(
        globals(), "AUDIT", AUDIT.replace("        Checkpoints(folder).load(place)", "        import wave")
    )
    assert any(event.startswith("import") for event in audited(tmp_path / "checkpoints")[1])


# The disk -------------------------------------------------------------------------------------------------------------


def test_the_real_disk_and_the_one_in_memory_do_the_same(tmp_path):
    """One program of operations on both: what they tell, and what they hold."""

    def told(storage, root):
        log = [storage.names(root / "a"), storage.is_folder(root / "a")]
        storage.make_folder(root / "a")
        file = storage.create(root / "a" / "x")
        storage.write(file, memoryview(b"12345"))
        storage.write(file, memoryview(b""))
        storage.write(file, b"678")
        storage.sync(file)
        storage.close(file)
        storage.sync_folder(root / "a")
        log += [bytes(storage.read(root / "a" / "x", 8)), storage.names(root / "a")]
        for call in (
            lambda: storage.create(root / "a" / "x"),
            lambda: storage.read(root / "a" / "x", 7),
            lambda: storage.read(root / "a" / "y", 7),
            lambda: storage.remove_folder(root / "a"),
        ):
            with pytest.raises(OSError) as caught:  # noqa: PT011  (its number is compared)
                call()
            log.append(caught.value.errno)
        storage.rename(root / "a", root / "b")
        log += [storage.is_folder(root / "a"), storage.names(root / "b")]
        storage.remove(root / "b" / "x")
        storage.remove_folder(root / "b")
        return [*log, storage.names(root)]

    assert told(Storage(), tmp_path) == told(Disk(), ROOT)


def test_arrays_of_every_layout_are_saved_as_they_read(tmp_path):
    base = np.arange(24.0).reshape(4, 6)
    layouts = {
        "fortran": np.asfortranarray(base), "transposed": base.T, "strided": base[::2, ::3], "reversed": base[::-1],
        "broadcast": np.broadcast_to(base[0], (3, 6)), "big": base.astype(">f8"), "none": base[:0],
        "one": np.array(3.0),
    }  # fmt: skip
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(Checkpoint(Place(0, 0), {}, {"state": layouts}))
    found = checkpoints.load(Place(0, 0)).arrays["state"]
    for name, x in layouts.items():
        np.testing.assert_array_equal(found[name], x)
        assert found[name].dtype == np.float64
    assert encode(layouts)[0].nbytes % 8 == 0
