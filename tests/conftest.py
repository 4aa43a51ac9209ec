"""Test settings. Array libraries and how to reach them: ``variants.py``. What is drawn: ``strategies.py``."""

import os
import signal

from hypothesis import settings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a shell; children would ignore it, too
    signal.signal(signal.SIGINT, signal.default_int_handler)

examples = int(os.environ.get("LA_CORE_EXAMPLES", "25"))
settings.register_profile("la-core", deadline=None, max_examples=examples, derandomize="CI" in os.environ)
settings.load_profile("la-core")
