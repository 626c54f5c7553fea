"""Lifting states that older programs stored, one schema version at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from dgents.runtime.errors import StateSerializationError

Migration: TypeAlias = Callable[[Any], Any]


class Migrations:
    """The functions that lift a state, as dicts and lists, from one schema version to the next.

    Args:
        steps: each function under the version that it lifts from. Versions start at 1; ``version`` is the one
            after the last step.
        actor: the name of the actor, for error messages.

    Raises:
        TypeError: they are no functions by versions.
        ValueError: the steps have a gap.
    """

    def __init__(self, steps: Mapping[int, Migration] | None, actor: str | None) -> None:
        self.steps = _checked(steps)
        self.version = 1 + max(self.steps, default=0)
        self.actor = actor
        known = sorted(self.steps)
        if known and (known[0] < 1 or known != list(range(known[0], self.version))):
            raise ValueError(f"migrations from the schema versions {known} must follow one another, from 1 or later")

    def lift(self, tree: Any, version: int) -> Any:
        """Return ``tree``, of schema version ``version``, as of the current one: each step once, in order.

        Raises:
            StateSerializationError: a newer schema wrote it, or a step is missing or fails.
        """
        if version > self.version:
            message = f"its schema version is {version}; this program knows versions up to {self.version}"
            raise self._error(message, hint="run the newer program, or give the agent its migrations")
        for step in range(version, self.version):
            if step not in self.steps:
                message = f"no migration lifts it from schema version {step} to {step + 1}"
                raise self._error(message, hint=f"give the agent migrations={{{step}: fn, ...}}")
            try:
                tree = self.steps[step](tree)
            except MemoryError:
                raise
            except Exception as error:
                raise self._error(f"its migration from schema version {step} failed: {error!r}") from error
            if tree is None:
                raise self._error(f"its migration from schema version {step} returned None", hint="return the state")
        return tree

    def _error(self, message: str, hint: str | None = None) -> StateSerializationError:
        of = f" of {self.actor!r}" if self.actor else ""
        return StateSerializationError(f"the state{of} can't be read: {message}", hint=hint, actor=self.actor)


def _checked(steps: Any) -> dict[int, Migration]:
    if steps is None:
        return {}
    if not isinstance(steps, Mapping):
        raise TypeError(f"migrations is {type(steps).__name__}; give functions by schema version: {{1: fn}}")
    for version, step in steps.items():
        if type(version) is not int:
            raise TypeError(f"migrations: {version!r} is no schema version; give whole numbers: {{1: fn}}")
        if not callable(step):
            raise TypeError(f"migrations: the step from version {version} is {type(step).__name__}; give a function")
    return dict(steps)
