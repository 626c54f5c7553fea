"""One call that runs every workload."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import anyio

from dgents.testing.client import MakeClient
from dgents.testing.processes import processes
from dgents.testing.report import Report
from dgents.testing.workloads import appends, bank, counter, stale

_WORKLOADS: dict[str, Callable[[MakeClient, int, int], Any]] = {
    "appends": appends,
    "counter": counter,
    "bank": bank,
    "stale": stale,
    "processes": processes,
}
WORKLOADS = tuple(_WORKLOADS)
IN_PROCESS = tuple(name for name in WORKLOADS if name != "processes")


async def concurrent_writers(
    make_client: MakeClient,
    *,
    workloads: Sequence[str] | None = None,
    writers: int = 20,
    each: int = 5,
    timeout: float = 120.0,
) -> Report:
    """Let many writers change the same values at the same time, and report what became of each change.

    Args:
        make_client: opens the client; what it opens must be empty the first time, and is opened again for each
            workload. For the workload ``processes`` it must be picklable, and lead every process to the same state.
        workloads: some of `WORKLOADS`; all of them if left out. State in memory is for `IN_PROCESS`.
        writers: how many tasks write; in ``processes`` they are shared out to two processes.
        each: how many changes a writer makes; a stale writer makes one.
        timeout: seconds for one workload.

    Raises:
        ValueError: there is no such workload.
        TimeoutError: a workload was not done in time.
    """
    chosen = tuple(_WORKLOADS if workloads is None else workloads)
    for workload in chosen:
        if workload not in _WORKLOADS:
            raise ValueError(f"there is no workload {workload!r}; there are: {', '.join(_WORKLOADS)}")
    outcomes = []
    for workload in chosen:
        with anyio.fail_after(timeout):
            outcomes.append(await _WORKLOADS[workload](make_client, writers, each))
    return Report(tuple(outcomes))
