"""Size budgets: the deeper an actor in the tree, the smaller its state may be."""

from __future__ import annotations

from typing import Any

from dgents.runtime.arguments import check_count, is_number
from dgents.runtime.contract import Agent
from dgents.supervisors.wrapper import Wrapper


class EntropyConstrainedAgent(Wrapper):
    """Refuse states larger than a share of ``max_size_bytes``, before anything is written.

    Args:
        backend: the agent that keeps the state.
        budget: the share, more than 0 and at most 1; None: by the actor's depth in the supervision tree,
            ``1 / (depth + 1)``, so a child of a nested supervisor inherits a smaller one.
        max_size_bytes: the size at budget 1, in bytes of the encoded state.

    A state over its budget is refused with `StateTooLargeError`.
    """

    def __init__(self, backend: Agent, budget: float | None, max_size_bytes: int = 1_000_000) -> None:
        super().__init__(backend)
        if budget is not None and not (is_number(budget) and 0 < budget <= 1):
            raise ValueError(f"budget is {budget!r}; give a share, more than 0 and at most 1, or None")
        check_count("max_size_bytes", max_size_bytes, of="number of bytes")
        self.budget = budget
        self.max_size_bytes = max_size_bytes

    @classmethod
    def at_depth(cls, backend: Agent, depth: int, max_size_bytes: int = 1_000_000) -> EntropyConstrainedAgent:
        """Return the agent with the budget of a depth: ``1 / (depth + 1)``."""
        check_count("depth", depth, least=0)
        return cls(backend, 1 / (depth + 1), max_size_bytes)

    def size_limit(self, depth: int) -> tuple[int, float]:
        """Return the limit in bytes, and the budget, of an actor at ``depth``; the smallest of nested ones."""
        budget = self.budget if self.budget is not None else 1 / (depth + 1)
        limit = int(self.max_size_bytes * budget)
        deeper: Any = getattr(self.inner, "size_limit", None)
        return min((limit, budget), deeper(depth)) if deeper is not None else (limit, budget)

    def backend(self, name: str, resources: Any) -> Any:
        """Make the backend of the actor ``name``: that of the agent inside."""
        return self.inner.backend(name, resources)
