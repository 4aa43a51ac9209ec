"""Test settings. Array libraries and how to reach them: ``variants.py``. What is drawn: ``strategies.py``."""

import os

from hypothesis import settings

settings.register_profile("la-core", deadline=None, max_examples=25, derandomize="CI" in os.environ)
settings.load_profile("la-core")
