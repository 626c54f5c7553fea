"""The seed of a random test: printed, so that a failure can be repeated with DGENTS_SEED."""

from __future__ import annotations

import os
import random


def seeded() -> random.Random:
    """Return a source of chance whose seed is in the test's output."""
    seed = int(os.environ.get("DGENTS_SEED") or random.SystemRandom().randrange(2**32))
    print(f"DGENTS_SEED={seed}")
    return random.Random(seed)
