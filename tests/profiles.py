"""How much to test: SEPCONV_TEST_PROFILE is dev (the default), ci or nightly.

The profiles differ in the number of hypothesis examples, and what takes minutes or many gigabytes runs in
nightly only. ci repeats the same examples each time; dev and nightly search for new ones.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

NAME = os.environ.get("SEPCONV_TEST_PROFILE", "dev")

# The `capability` fixture stays as it is for all examples of a test, as it should.
_SUPPRESSED = (HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large)
settings.register_profile("dev", max_examples=50, deadline=None, suppress_health_check=_SUPPRESSED)
settings.register_profile(
    "ci", settings.get_profile("dev"), max_examples=150, derandomize=True, print_blob=True
)
settings.register_profile("nightly", settings.get_profile("dev"), max_examples=5000, print_blob=True)
settings.load_profile(NAME)

nightly_only = pytest.mark.skipif(
    NAME != "nightly", reason="takes minutes or gigabytes: runs with SEPCONV_TEST_PROFILE=nightly"
)
