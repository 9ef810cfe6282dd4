"""How much the tests of this folder do: a bounded form in every run, the long one when asked for.

`SECURITY_TESTS=long` asks for it; see CONTRIBUTING.md. What is drawn at random is drawn from a
seed, which each run prints and `SECURITY_SEED` sets, so that what failed can be seen again.
"""

from __future__ import annotations

import os
import random

import pytest

LONG = os.environ.get("SECURITY_TESTS") == "long"

SEED = int(os.environ.get("SECURITY_SEED") or random.SystemRandom().randrange(2**32))


def count(quick: int, long: int) -> int:
    """How many there are to be in this run."""
    return long if LONG else quick


def seeded(purpose: str) -> random.Random:
    """Give the random numbers for one purpose; the same in each run with this seed."""
    print(f"SECURITY_SEED={SEED}")
    return random.Random(f"{SEED} {purpose}")


patient = pytest.mark.timeout(count(180, 6 * 3600))
"""For tests that take long by what they do, more so where coverage is measured."""
