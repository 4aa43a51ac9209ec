"""The long forms: ``make soak``, or ``PYTHONPATH=tests python -m soak --help``. Prints one line of figures for each.

kills     SIGKILL at random instants of whole runs; each must end as the run that nobody killed, to the bit
writers   SIGKILL at random instants of a process that only saves
calls     SIGKILL before the n-th system call of a save with rotation, n = 1, 2, ..., by strace where it may trace
power     power loss at every operation of a save, and many ways in which the disk may be left
mutants   checkpoints with one thing changed
processes runs of 1 to 4 processes; and one of 2 or 4 that is killed, hangs, raises or gives a wrong shape, in any phase
devices   the same runs on 2, 4 and 8 devices of JAX
steps     NaN and infinity in embeddings and gradients, at many steps, on every library
stored    runs with the bank in half precision or in a file, stopped at every step
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from killing import apart

TESTS = Path(__file__).parent
CALLS = "openat,write,fsync,rename,unlink,rmdir,mkdir,close"
SAVER = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_checkpoint import sample
from la_core.checkpoint import Checkpoints
checkpoints = Checkpoints(Path(sys.argv[1]))
checkpoints.latest()
print("ready", flush=True)
sys.stdin.readline()
checkpoints.save(sample(2))
print("saved", flush=True)
"""


def kills(options, folder, name):
    """Runs on one backend."""
    count, killed = apart(
        *("test_resume:law_killed_runs_end_as_the_whole_one", folder, name, options.runs, options.seed, options.least),
        timeout=36_000,
    )
    return f"{killed} kills over {count} runs on {name}: all ended to the bit"


def writers(options, folder):
    """A process that saves as fast as it can."""
    apart("test_checkpoint:law_a_killed_writer_loses_nothing", folder, options.kills, options.seed, timeout=36_000)
    return f"{options.kills} kills of a writer: 0 unreadable, 0 acknowledged checkpoints lost"


def calls(options, folder):
    """Before each system call of a save with rotation. Says where tracing is not allowed."""
    from test_checkpoint import Checkpoints, assert_whole, sample

    if shutil.which("strace") is None:
        return "system calls: not tried, for strace is not installed"
    tried = fired = 0
    for call in CALLS.split(","):
        for n in range(1, 400):
            place = Path(folder) / f"{call}-{n}"
            before = Checkpoints(place)
            place.parent.mkdir(exist_ok=True)
            for number in range(2):
                before.save(sample(number))
            told, traced = _traced([sys.executable, "-c", SAVER, str(place), str(TESTS)], call, n)
            if "attached" not in traced:
                return f"system calls: not tried, for strace cannot trace here: {traced.strip()[-200:]}"
            tried += 1
            found = Checkpoints(place).latest()
            assert_whole(found)
            assert found.place.number == 2 or not told
            shutil.rmtree(place)
            if told:
                break
            fired += 1
    return f"system calls: {tried} injections, {fired} of them fired: 0 acknowledged checkpoints lost"


def _traced(command, call, n):
    """What a saver tells that is killed before that call of its save, and what strace says."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as saver:
        assert saver.stdout.readline() == "ready\n"
        trace = ["strace", "-p", str(saver.pid), "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={n}"]
        with subprocess.Popen(trace, stderr=subprocess.PIPE, text=True) as tracer:
            said = tracer.stderr.readline()
            saver.stdin.write("\n")
            saver.stdin.close()
            told = saver.stdout.read()
            saver.wait()
            tracer.wait()
    return told, said


def power(options, folder):
    """Every operation, and many disks for each."""
    from test_checkpoint import law_a_crash_loses_nothing_that_was_acknowledged as law

    told = [law(before, options.disks) for before in (0, 1, 2)]
    points, disks = (sum(column) for column in zip(*told, strict=True))
    return f"power loss at {points} operations of three saves, {disks} disks looked at: nothing acknowledged was lost"


def mutants(options, folder):
    """One checkpoint, damaged over and over."""
    from test_checkpoint import law_a_mutant_is_refused_or_the_same as law

    refused = law(Path(folder), options.mutants, np.random.default_rng(options.seed))
    same = options.mutants - refused
    return f"{options.mutants} mutants: {refused} refused with CheckpointError, {same} unchanged, 0 loaded wrong"


def processes(options, folder):
    """Every kind of run by every number of processes; every fault in every phase, in both layouts."""
    import test_processes as tests
    from teams import TIMEOUT
    from teams import warm as begun

    kinds, layouts = ("plain", "two views", "lists", "nce"), ("replicated", "sharded")
    grid = [(kind, dtype, layout) for kind in kinds for dtype in tests.TOLERANCE for layout in layouts]
    cases = [(*case, [2, 3, 4], 20) for case in grid if case[0] != "lists" or case[2] == "replicated"]
    warm, late = begun("test_processes"), []
    for case in cases:
        warm("law_any_number_of_processes_makes_the_same_run", [case], False)
    for number in range(len(layouts) * 2 * len(tests.PHASES) * len(tests.FAULTS)):
        rest, fault = divmod(number, len(tests.FAULTS))
        rest, phase = divmod(rest, len(tests.PHASES))
        layout, size = layouts[rest % 2], (2, 4)[rest // 2]
        place, name, what = folder / str(number), list(tests.PHASES)[phase], tests.FAULTS[fault]
        late.append(warm("law_a_failing_process_is_an_error_on_all_others", place, name, what, layout, size))
    warm.close()
    return (
        f"{3 * len(cases)} runs of 2, 3 and 4 processes: all that of one, in tier 1; {len(late)} faults, all fired: "
        f"every other process raised, the last after {max(late):.1f} s of {TIMEOUT}, and every run went on"
    )


def devices(options, folder):
    """Every kind of run on every number of devices, in both layouts; ragged batches."""
    import test_jax_devices as tests

    warm, count = tests.eight_devices(), 0
    for kind in ("plain", "two views", "lists", "nce"):
        for dtype in tests.TOLERANCE:
            for layout in ("replicated", "sharded")[: 1 if kind == "lists" else 2]:
                warm("law_any_number_of_devices_makes_the_same_run", kind, dtype, layout, [2, 4, 8], 20)
                count += 3
    warm.close()
    return f"{count} runs on 2, 4 and 8 devices: all that of one, in tier 1"


def steps(options, folder):
    """Every kind of run, every place, every value; the steps are drawn."""
    import warnings

    from runs import KINDS
    from test_not_finite import PLACES
    from test_not_finite import law_a_step_that_is_not_finite_never_was as law

    warnings.filterwarnings("ignore", category=RuntimeWarning)
    rng, count = np.random.default_rng(options.seed), 0
    for name in options.backends:
        for kind in KINDS.values():
            for place in PLACES:
                for value in (np.nan, np.inf, -np.inf):
                    chosen = [3 * epoch + int(rng.integers(1, 4)) for epoch in range(kind.epochs)]
                    law(name, place, value, replace(kind, on_not_finite="skip", health_every=0), chosen)
                    count += len(chosen)
    return f"{count} steps that were not finite: bank, weights and statistics as before each, and finite"


def stored(options, folder):
    """Stopped after each step in turn, and gone on with: to the bit."""
    from runs import KINDS, go, outcome, stopped
    from test_half_bank import STORED

    count = 0
    ways = [(name, {"bank_dtype": dtype}) for name, dtype in STORED if name in options.backends]
    ways += [("numpy", {"bank_store": "file"}), ("numpy", {"bank_store": "file", "bank_dtype": "float16"})]
    for name, way in ways:
        for kind in KINDS.values():
            settings = replace(kind, **way)
            place = Path(folder) / f"whole-{count}"
            whole = outcome(go(name, place, settings=settings), place)
            for after in range(1, 15, 1 if name == "numpy" else 4):
                place = Path(folder) / str(count)
                stopped(name, place, after, settings=settings)
                assert outcome(go(name, place, settings=settings), place) == whole
                count += 1
    return f"{count} runs with the bank in half precision or in a file, stopped once each: all ended to the bit"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help="of those above; by default all")
    parser.add_argument("--backends", nargs="+", default=["numpy", "torch", "jax"])
    parser.add_argument("--runs", type=int, default=20, help="on each backend")
    parser.add_argument("--least", type=int, default=10, help="kills of each of them, at least")
    parser.add_argument("--kills", type=int, default=200, help="of a writer")
    parser.add_argument("--mutants", type=int, default=20_000)
    parser.add_argument("--disks", type=int, default=1000, help="for each operation")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    jobs = {
        "writers": writers, "calls": calls, "power": power, "mutants": mutants, "processes": processes,
        "devices": devices, "steps": steps, "stored": stored,
    }  # fmt: skip
    for what in options.what or ["kills", *jobs]:
        for name in options.backends if what == "kills" else [""]:
            began = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                place = Path(folder) / "place"
                place.mkdir()
                said = kills(options, place, name) if what == "kills" else jobs[what](options, place)
            print(f"{said} ({time.monotonic() - began:.0f} s, seed {options.seed})", flush=True)


if __name__ == "__main__":
    main()
