"""Processes that are killed. They are forked from one that has everything imported, so that one costs milliseconds.

``apart`` starts that process: forking the one that runs the tests, with the threads of three frameworks, is not safe.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
import warnings
from importlib import import_module
from pathlib import Path


def apart(law, *arguments, timeout=600):
    """Call ``module:function`` with plain arguments in a process of its own; what it returns. It may fork.

    Raises AssertionError with all that it said where it raises anything. Warnings are errors there, as here.
    """
    command = [sys.executable, __file__, law, json.dumps([str(a) if isinstance(a, Path) else a for a in arguments])]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def killed(work, after, begun=False):
    """``work(tell)`` in a forked process, killed by SIGKILL after so many seconds unless it ends before.

    With ``begun`` they count from when it first tells something. Returns its exit status, negative for a signal, and
    what it told: plain things, each arrived as a whole.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            work(lambda told: os.write(writing, (json.dumps(told) + "\n").encode()))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    content, deadline = b"", time.monotonic() + (300 if begun else after)
    with os.fdopen(reading, "rb", buffering=0) as stream:
        while (left := deadline - time.monotonic()) > 0 and select.select([stream], [], [], left)[0]:
            if not (chunk := stream.read(65536)):
                break
            if begun and not content:
                deadline = time.monotonic() + after
            content += chunk
        else:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        content += stream.read()
    return os.waitstatus_to_exitcode(status), [json.loads(line) for line in content.split(b"\n")[:-1]]


if __name__ == "__main__":
    warnings.simplefilter("error", UserWarning)
    module, _, name = sys.argv[1].partition(":")
    result = getattr(import_module(module), name)(*json.loads(sys.argv[2]))
    print(json.dumps(result))
