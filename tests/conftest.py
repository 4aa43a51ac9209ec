"""Test settings. Array libraries and how to reach them: ``variants.py``. What is drawn: ``strategies.py``."""

import os

from hypothesis import settings

examples = int(os.environ.get("LA_CORE_EXAMPLES", "25"))
settings.register_profile("la-core", deadline=None, max_examples=examples, derandomize="CI" in os.environ)
settings.load_profile("la-core")
