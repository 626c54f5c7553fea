"""What all agents that wrap another have in common: they describe the same state, kept a little differently."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dgents.runtime.arguments import check_agent
from dgents.runtime.contract import Agent

if TYPE_CHECKING:
    from dgents.runtime.contract import Backend, Resources
    from dgents.runtime.ref import Ref


class Wrapper:
    """An agent around another one; what it does not change, it passes through.

    Wrappers nest in any order: the innermost agent has the store, each layer adds one thing.
    """

    def __init__(self, inner: Agent) -> None:
        check_agent(type(self).__name__, inner)
        self.inner = inner

    if TYPE_CHECKING:

        @property
        def ref_type(self) -> type[Ref[Any]]: ...

        def backend(self, name: str, resources: Resources) -> Backend: ...

    def __getattr__(self, name: str) -> Any:
        # Only for what the actor asks of a description (schema, migrations, local, initial, ref_type, ...).
        if name.startswith("_") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.inner!r})"
