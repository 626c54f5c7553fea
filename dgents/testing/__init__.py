"""A conformance kit for concurrent writers: does a store, a cache or an agent framework lose what it was told?

Anything can be examined that many tasks can read and change: put a `Client` before it, and every change that the kit
makes ends in one of four ways. It is **applied**; or **refused**, so that its caller knows; or **lost**: acknowledged,
and not in the state; or it is there **twice**. Only the last two are faults.

Example:
    >>> report = await concurrent_writers(partial(dgent_client, dgents.VolatileAgent), workloads=IN_PROCESS)
    >>> report.check()
    >>> print(report["counter"])
    counter: 100 asked, 100 applied, 0 refused, 0 lost, 0 twice
"""

from dgents.testing.client import Add, Client, MakeClient
from dgents.testing.dgent_client import dgent_client
from dgents.testing.kit import IN_PROCESS, WORKLOADS, concurrent_writers
from dgents.testing.lives.kit import BrokenPromise, Lived, matrix
from dgents.testing.report import Outcome, Report

__all__ = [
    "IN_PROCESS",
    "WORKLOADS",
    "Add",
    "BrokenPromise",
    "Client",
    "Lived",
    "MakeClient",
    "Outcome",
    "Report",
    "concurrent_writers",
    "dgent_client",
    "matrix",
]
