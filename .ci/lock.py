"""Write .ci/requirements.txt anew: the SHA-256 of every file that CI installs, at the versions of constraints.txt.

python .ci/lock.py      with CPython 3.11 on Linux x86-64, where CI runs; say in the commit where the files came from
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
HEAD = """\
# SHA-256 of the files that CI installs before anything else, at the versions of constraints.txt: wheels for CPython
# 3.11 on Linux x86-64, or for any platform. Written by .ci/lock.py; the hashes are those of the public index, pypi.org.
# torch is not here: its CPU wheel comes from another place than the index, and which one is the choice of whoever runs
# CI; constraints.txt pins its version. Benchmarks are not part of CI.
"""

BESIDE = ["triton==3.7.1"]
"""What interprets GPU kernels on a CPU. Not in constraints.txt: a PyTorch for GPUs brings the version that it needs."""


def pins() -> list[str]:
    """What CI installs, torch aside."""
    text = (HERE.parent / "constraints.txt").read_text().partition("# Benchmarks")[0]
    return [line for line in text.splitlines() if line and not line.startswith(("#", "torch=="))] + BESIDE


def main() -> None:
    """Ask pip what it would install, and from which files."""
    with tempfile.TemporaryDirectory() as folder:
        report, wanted = Path(folder) / "report.json", Path(folder) / "pins.txt"
        wanted.write_text("\n".join(pins()))
        command = ["install", "--dry-run", "--ignore-installed", "--no-deps", "--only-binary=:all:", "-qq"]
        call = [sys.executable, "-m", "pip", *command, "--report", str(report), "-r", str(wanted)]
        subprocess.run(call, check=True)
        items = json.loads(report.read_text())["install"]
    hashes = {
        item["metadata"]["name"].lower().replace("_", "-"): item["download_info"]["archive_info"]["hashes"]
        for item in items
    }
    lines = [f"{pin} --hash=sha256:{hashes[pin.partition('==')[0]]['sha256']}\n" for pin in pins()]
    (HERE / "requirements.txt").write_text(HEAD + "".join(lines))


if __name__ == "__main__":
    main()
