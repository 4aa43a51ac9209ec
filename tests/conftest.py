"""Test settings. Array libraries and how to reach them: ``variants.py``. What is drawn: ``strategies.py``."""

import importlib
import os
import signal
from importlib.util import find_spec

import pytest
from hypothesis import settings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a shell; children would ignore it, too
    signal.signal(signal.SIGINT, signal.default_int_handler)

examples = int(os.environ.get("LA_CORE_EXAMPLES", "25"))
settings.register_profile("la-core", deadline=None, max_examples=examples, derandomize="CI" in os.environ)
settings.load_profile("la-core")

if find_spec("triton"):  # before anything of PyTorch imports it, for its own functions take sides then
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        importlib.import_module("triton.language")
