"""Caches that write behind, for tests that tell them when to flush."""

from __future__ import annotations

from typing import Any

import dgents


def behind(agent: Any, *, initial: Any = None, ttl: float | None = None, **flush: Any) -> dgents.CachedAgent:
    """Describe a cache that flushes when it is told to."""
    memory: dgents.VolatileAgent[Any] = dgents.VolatileAgent() if initial is None else dgents.VolatileAgent(initial)
    options = dgents.Flush(**{"max_delay": 3600, **flush})
    return dgents.CachedAgent(memory, agent, policy="write-behind", ttl=ttl, flush=options)
