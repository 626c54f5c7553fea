"""Other libraries before the kit for concurrent writers (`dgents.testing`), each through its own interface.

A module holds ``CASES``. It imports its library at the top: where that is not installed, the module can't be imported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dgents.testing import MakeClient


@dataclass(frozen=True)
class Case:
    """One way of changing a value that a library offers.

    Attributes:
        call: the call that is put to the test.
        make: makes what opens the client, given an empty directory.
        writers, each: how many tasks change the value, and how often.
        safe: whether the library promises that nothing is lost, so that a loss would be an error of this suite.
        stale: whether ``write`` is a way of changing the value too, so that a stale one can be put to the test.
    """

    name: str
    call: str
    make: Callable[[Path], MakeClient]
    writers: int = 20
    each: int = 1
    safe: bool = False
    stale: bool = False
