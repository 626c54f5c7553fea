"""A checker of concurrent histories: is there an order of the operations that a single actor could have done?

Source: Wing and Gong, "Testing and verifying concurrent objects", 1993, with Lowe's memory of the configurations that
were tried ("Testing for linearizability", 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

FOREVER = float("inf")


@dataclass
class Operation:
    """One call: when it began and ended (`FOREVER`: no reply came), what was asked and what was answered."""

    begin: float
    end: float
    asked: Any
    answer: Any = None


def linearizable(
    history: Sequence[Operation], step: Callable[[Hashable, Operation], tuple[bool, Hashable]], initial: Hashable
) -> bool:
    """Say whether the history has an order that keeps real time and in which each ``step`` gives its answer.

    Args:
        step: ``step(state, operation) -> (whether it may answer so, the state after it)``.
    """
    operations = sorted(history, key=lambda operation: operation.begin)
    answered = sum(1 << n for n, operation in enumerate(operations) if operation.end != FOREVER)
    tried: set[tuple[int, Hashable]] = set()
    stack: list[tuple[int, Hashable]] = [(0, initial)]
    while stack:
        done, state = stack.pop()
        if done & answered == answered:
            return True
        if (done, state) in tried:
            continue
        tried.add((done, state))
        first_end = min(operation.end for n, operation in enumerate(operations) if not done >> n & 1)
        for n, operation in enumerate(operations):
            if operation.begin > first_end:
                break
            if not done >> n & 1:
                possible, after = step(state, operation)
                if possible:
                    stack.append((done | 1 << n, after))
    return False
