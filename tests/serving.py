"""A process of its own that calls laws by name, with plain arguments: one line of JSON in, one out."""

import json
import os
import subprocess
import sys
from pathlib import Path


class Warm:
    """A Python process of these arguments and variables that serves until it is closed."""

    def __init__(self, *arguments, **variables):
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, law, *arguments):
        """What the law of that name returns, of plain arguments. AssertionError with all that it said if it fails."""
        plain = [str(a) if isinstance(a, Path) else a for a in arguments]
        self._process.stdin.write(json.dumps([law, plain]) + "\n")
        self._process.stdin.flush()
        ok, result = json.loads(self._process.stdout.readline())
        assert ok, result
        return result

    def close(self):
        """End it: nothing of it is needed any more."""
        self._process.kill()
        self._process.communicate()
