"""The suites by name. A suite is a module with ``NAME``, ``TITLE``, and ``run(bench)``, sync or async."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol, cast

from dgents.benchmarks.bench import Bench

# In the order in which they run: what can be cut short where time is up comes last.
# By module, so that one suite can run where another one's requirements are not installed.
MODULES = {
    "lost-updates": "dgents.benchmarks.lost_updates",
    "latency": "dgents.benchmarks.latency",
    "throughput": "dgents.benchmarks.throughput",
    "peers": "dgents.benchmarks.side_by_side",
    "writers": "dgents.benchmarks.writers",
    "scale": "dgents.benchmarks.scale",
    "durability": "dgents.benchmarks.durability",
    "limits": "dgents.benchmarks.limits",
}


class Suite(Protocol):
    """What a suite's module holds. `run` measures, and adds rows to the bench; it may be async."""

    NAME: str
    TITLE: str

    def run(self, bench: Bench) -> Any: ...


def find(names: Sequence[str] = ()) -> list[Suite]:
    """Return the suites of these names in their order, each once; all of them if there are no names.

    Raises:
        ValueError: there is no such suite; the message lists those that there are.
    """
    for name in names:
        if name not in MODULES:
            raise ValueError(f"there is no suite {name!r}; there are: {', '.join(MODULES)}")
    return [cast(Suite, import_module(MODULES[name])) for name in dict.fromkeys(names or MODULES)]
