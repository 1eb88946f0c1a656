"""The same few examples each time, or many new ones with `FUZZ_EXAMPLES=20000`."""

import os

from hypothesis import HealthCheck, settings

MANY = os.environ.get("FUZZ_EXAMPLES")


def examples(few):
    """A decorator for a test under `given`."""
    return settings(max_examples=int(MANY or few), derandomize=MANY is None, database=None, deadline=None,
                    suppress_health_check=[HealthCheck.function_scoped_fixture])
