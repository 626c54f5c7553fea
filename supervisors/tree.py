"""Supervision trees: what crashes is restarted by a policy, what can't be repaired is escalated, nothing is hidden.

The words are OTP's (strategies, restart types, restart intensity), with one difference: under ``one_for_one`` each
child has a budget of its own, because children share stores, and one outage would spend a common budget at once.

Invariants
  1. Every actor and every supervisor but the root has one parent; names are unique in the whole tree.
  2. A child's restart is granted by its own budget, or by that of the nearest ancestor that has one left: then that
     ancestor's child is restarted as a whole. If the root grants none, the subtree below it stops.
  3. No event looks at more children than it affects.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from dgents.runtime.actor import Cell
from dgents.runtime.arguments import check_choice, check_name, check_text
from dgents.runtime.errors import NameTakenError
from dgents.runtime.ref import Ref, Referred
from dgents.supervisors.policy import Backoff, Intensity, Restart, Strategy

if TYPE_CHECKING:
    from dgents.supervisors.runtime import Runtime

R = TypeVar("R", bound=Ref[Any])


class SiblingCrashed(Exception):
    """A sibling crashed, and the supervisor's strategy restarts this one too."""


class Child:
    """What a supervisor knows of one actor."""

    __slots__ = ("_intensity", "cell", "parent", "restart")

    def __init__(self, parent: Supervisor, cell: Cell, restart: Restart) -> None:
        self.parent = parent
        self.cell = cell
        self.restart = restart
        self._intensity: Intensity | None = None

    @property
    def name(self) -> str:
        return self.cell.name

    def restart_delay(self, cell: Cell, error: BaseException | None) -> float | None:
        """Return how long to wait before the restart after ``error``; None if the actor is not to be restarted."""
        if isinstance(error, SiblingCrashed):
            return 0.0
        if self.restart == "temporary":
            return None
        return self.parent.child_crashed(self, error)

    def attempt(self, now: float) -> int | None:
        if self._intensity is None:
            self._intensity = self.parent.new_intensity()
        return self._intensity.restart(now)

    def begin_anew(self, error: BaseException) -> None:
        """Restart because something above was restarted; the budget begins anew."""
        self._intensity = None
        if self.restart != "temporary":
            self.cell.crash(error)
        elif self.cell.stopping is None:  # it has not failed, so it ends in order: what it acknowledged is flushed
            self.cell.stop(str(error))

    def halt(self, error: BaseException | None) -> None:
        """Stop because what is above could not be restarted; what it has acknowledged is flushed first."""
        if self.cell.stopping is None:
            self.cell.stop(f"its supervisor was given up after {type(error).__name__}: {error}")

    def stopped(self, cell: Cell, error: BaseException | None) -> None:
        """Take note that the actor has stopped for good after ``error``."""
        cell.runtime.emit("escalated", cell.name, error=error, supervisor=self.parent.name)

    def ended(self, cell: Cell) -> None:
        """Take note that the actor is gone."""
        self.parent.remove(self)


class Supervisor:
    """A branch of the tree: starts children, restarts them by its strategy, stops them in reverse order.

    Made by `Runtime.supervisor` or by another supervisor's `supervisor`.

    Args:
        strategy: which children a crash restarts: ``one_for_one`` that child, ``one_for_all`` all of them,
            ``rest_for_one`` that child and those started after it.
        max_restarts: how many restarts are granted within ``within`` seconds: to each child under ``one_for_one``,
            to the group otherwise. One more, and the crash is escalated to the parent.
        within: seconds.
        backoff: how long to wait before each restart.
    """

    def __init__(
        self,
        runtime: Runtime,
        name: str,
        parent: Supervisor | None = None,
        *,
        strategy: Strategy = "one_for_one",
        max_restarts: int = 3,
        within: float = 5.0,
        backoff: Backoff | None = None,
    ) -> None:
        check_choice("strategy", strategy, get_args(Strategy))
        if backoff is not None and not isinstance(backoff, Backoff):
            raise TypeError(f"backoff is {backoff!r}; give a Backoff(first, most)")
        self.name = name
        self.strategy = strategy
        self.parent = parent
        self.depth: int = 0 if parent is None else parent.depth + 1
        self._runtime = runtime
        self._max_restarts = max_restarts
        self._within = within
        self._backoff = backoff if backoff is not None else Backoff(0.05, 5.0)
        self._group = self.new_intensity()
        self._own: Intensity | None = None
        self._children: dict[str, Child | Supervisor] = {}

    def __repr__(self) -> str:
        return f"<Supervisor {self.name!r} {self.strategy} of {len(self._children)}>"

    # What users do with it

    async def spawn(
        self, name: str, agent: Referred[R], *, restart: Restart = "permanent", while_restarting: str = "wait"
    ) -> R:
        """Start an actor as a child and return its ref; see `Runtime.spawn`."""
        return await self._runtime.spawn(
            name, agent, restart=restart, while_restarting=while_restarting, supervisor=self
        )

    async def supervisor(
        self,
        name: str,
        *,
        strategy: Strategy = "one_for_one",
        max_restarts: int = 3,
        within: float = 5.0,
        backoff: Backoff | None = None,
    ) -> Supervisor:
        """Start a supervisor as a child.

        Raises:
            NameTakenError: there is a child of this name.
        """
        self._runtime.check_thread()
        check_text("supervisor", "name", name)
        if name in self._children:
            raise NameTakenError(f"{self.name!r} has a child {name!r} already", hint="give it another name")
        child = Supervisor(
            self._runtime,
            name,
            self,
            strategy=strategy,
            max_restarts=max_restarts,
            within=within,
            backoff=backoff,
        )
        self._children[name] = child
        return child

    async def stop(self, ref: Ref[Any] | Supervisor | str | None = None) -> None:
        """Stop a child, or without an argument all children, newest first, and this supervisor.

        Raises:
            KeyError: there is no such child.
        """
        if ref is not None:
            name = ref.name if isinstance(ref, Ref | Supervisor) else ref
            check_name("stop", name)
            child = self._children[name]
            await (child.stop() if isinstance(child, Supervisor) else self._runtime.stop(name))
            return
        for child in reversed(list(self._children.values())):
            await (child.stop() if isinstance(child, Supervisor) else self._runtime.stop(child.name))
        if self.parent is not None:
            self.parent.remove(self)

    def children(self) -> list[str]:
        """Return the names of the children, in the order in which they were started."""
        return list(self._children)

    # What the tree does

    def adopt(self, cell: Cell, restart: Restart) -> Child:
        """Take an actor as a child."""
        check_choice("restart", restart, get_args(Restart))
        if cell.name in self._children:
            raise NameTakenError(f"{self.name!r} has a child {cell.name!r} already", hint="give it another name")
        child = self._children[cell.name] = Child(self, cell, restart)
        return child

    def remove(self, child: Child | Supervisor) -> None:
        if self._children.get(child.name) is child:
            del self._children[child.name]

    def new_intensity(self) -> Intensity:
        return Intensity(self._max_restarts, self._within)

    def child_crashed(self, child: Child | Supervisor, error: BaseException | None) -> float | None:
        """Decide what a crash of ``child`` restarts; return when, or None if it is to stop."""
        now = self._runtime.loop.time()
        attempt = child.attempt(now) if self.strategy == "one_for_one" else self._group.restart(now)
        if attempt is None:
            return self._escalate(child, error)
        for sibling in self._affected(child):
            sibling.begin_anew(SiblingCrashed(f"{child.name!r} crashed: {error}"))
        return self._backoff.delay(attempt)

    def attempt(self, now: float) -> int | None:
        """Spend one restart of this supervisor as a child of its parent."""
        assert self.parent is not None
        if self._own is None:
            self._own = self.parent.new_intensity()
        return self._own.restart(now)

    def begin_anew(self, error: BaseException) -> None:
        """Restart because something above was restarted; the budgets begin anew."""
        self._own = None
        self._restart_children(error)

    def _restart_children(self, error: BaseException) -> None:
        """Restart all children, with new budgets; what this supervisor has spent of its parent's stays spent."""
        self._group = self.new_intensity()
        for child in list(self._children.values()):
            child.begin_anew(error)

    def halt(self, error: BaseException | None) -> None:
        """Stop all children, newest first: this could not be restarted."""
        for child in reversed(list(self._children.values())):
            child.halt(error)

    def _escalate(self, child: Child | Supervisor, error: BaseException | None) -> float | None:
        """This supervisor's budget is spent: ask the parent to restart it as a whole."""
        if self.parent is None:
            if isinstance(child, Supervisor):
                child.halt(error)
            return None
        self._runtime.emit("escalated", child.name, error=error, supervisor=self.name, to=self.parent.name)
        delay = self.parent.child_crashed(self, error)
        if delay is not None:
            self._restart_children(SiblingCrashed(f"supervisor {self.name!r} was restarted: {error}"))
        return delay

    def _affected(self, crashed: Child | Supervisor) -> Iterator[Child | Supervisor]:
        """Yield the other children that the strategy restarts, newest first."""
        if self.strategy == "one_for_one":
            return
        for child in reversed(list(self._children.values())):
            if child is crashed:
                if self.strategy == "rest_for_one":
                    return
                continue
            yield child

    def lines(self, indent: str = "") -> Iterator[str]:
        """Yield the subtree as text, a line a child."""
        children = list(self._children.values())
        for child in children:
            last = child is children[-1]
            branch, deeper = ("└─ ", "   ") if last else ("├─ ", "│  ")
            if isinstance(child, Supervisor):
                yield f"{indent}{branch}{child.name} ({child.strategy})"
                yield from child.lines(indent + deeper)
            else:
                yield f"{indent}{branch}{child.cell.describe()}"
