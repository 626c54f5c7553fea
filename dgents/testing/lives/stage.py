"""One life of an actor: a runtime, the steps, and a look at what is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Any

import anyio
from anyio.abc import TaskGroup

import dgents
from dgents.runtime.errors import StorageError
from dgents.runtime.phase import Phase
from dgents.testing.lives.deadline import situation, within
from dgents.testing.lives.explain import Found
from dgents.testing.lives.faults import Faults, FaultyRuntime
from dgents.testing.lives.leaving import cancelled_at
from dgents.testing.lives.operations import DEFAULT, call, empty, normal
from dgents.testing.lives.record import Record, Recorder, Violation
from dgents.testing.lives.script import Options, Step
from dgents.testing.lives.watcher import Watcher

Make = Callable[[Options, Faults], Any]
_SIBLING = "sibling"
_ALL = 1 << 30
_QUICK = dgents.Backoff(0.0005, 0.004)


class Stage:
    """A runtime with the actor of one script, and what is done to it."""

    def __init__(self, make: Make, name: str, options: Options, recorder: Recorder, deadline: float) -> None:
        self.events: list[dgents.Event] = []
        self.faults = Faults()
        self.is_durable = False  # its state outlives its runtime
        self.is_lossy = False  # a crash may take what was acknowledged and not flushed
        self.losses: list[int] = []  # the moments at which an event said that a flush has failed for good
        self.window = 1  # how many versions are kept, the current one among them
        self.seen_by_watchers: list[list[tuple[int, Any]]] = []
        self._make = make
        self._options = options
        self._recorder = recorder
        self._deadline = deadline
        self._is_virtual = options.place == "virtual"
        # A family of its own: another runtime on the same store would answer the reminders of one that it knows.
        self._family = name
        self._name = f"{name}/a" if self._is_virtual else name
        self._calls: dict[int, tuple[Step, anyio.CancelScope]] = {}  # those that are not answered yet
        self._failed: Exception | None = None
        self._idle = anyio.Event()
        self._watching: list[Watcher] = []
        self._supervisor: Any = None

    async def open(self) -> None:
        """Open a runtime and the actor."""
        self._rt = FaultyRuntime(self.faults, on_event=self._happened, shutdown_timeout=self._deadline)
        await self._rt.__aenter__()
        if self._options.place == "virtual":
            self._rt.register(self._family, lambda key: self._make(self._options, self.faults))
        else:
            self._supervisor = await self._rt.supervisor(
                "team", strategy=self._options.place, max_restarts=self._options.max_restarts, backoff=_QUICK
            )
            await self._supervisor.spawn(_SIBLING, dgents.VolatileAgent(0))
        await self._revive()

    def _happened(self, event: dgents.Event) -> None:
        self.events.append(event)
        if event.kind == "flush_failed" and "lost" in event.details:
            self.losses.append(self._recorder.moment)

    async def close(self) -> None:
        """Close the runtime; what was acknowledged is flushed.

        Raises:
            Violation: it can't be closed in order, though nothing is wrong any more.
        """
        try:
            await self._rt.__aexit__(None, None, None)
        except Exception as error:
            raise Violation(f"closing the runtime failed: {type(error).__name__}: {error}") from error

    async def abandon(self) -> None:
        """Let go of a runtime in which a promise was broken, whatever comes of it."""
        self.faults.heal()
        with anyio.move_on_after(self._deadline), anyio.CancelScope(shield=True):
            try:
                await self._rt.__aexit__(None, None, None)
            except Exception as error:
                self._rt.emit(
                    "warning", self._name, message="the end of a runtime in which a promise was broken", error=error
                )

    @property
    def ref(self) -> Any:
        return self._rt.ref(self._name)

    async def play(self, steps: Sequence[Step], began: Callable[[int], object] = lambda index: None) -> None:
        """Take the steps; return when all are answered and all faults are over.

        Raises:
            Violation: a call was not answered, or not by an error of this library.
        """
        broken: Exception | None = None
        async with anyio.create_task_group() as group:
            try:
                for index, step in enumerate(steps):
                    began(index)
                    await self._take(group, step)
                    if not step.together:
                        await self._answered()
                self.faults.heal()
                await self._answered()
                await self._revive()
                await self._check_watchers()
            except (Violation, dgents.DgentError) as error:  # not as one of a group
                broken = error
            group.cancel_scope.cancel()
        if broken is not None:
            raise broken
        if empty() != DEFAULT:
            changed = DEFAULT.copy()
            DEFAULT.update(empty())
            raise Violation(f"the default of a caller was changed, to {changed!r}")

    async def look(self) -> Found:
        """Return what is there, as a caller who asks for all of it sees it."""
        tries = 5
        with within(self._deadline, "a look at what is there", self._situation):
            while True:
                await self._revive()
                try:
                    found = await self._look()
                    if found is not None:
                        return found
                except dgents.ActorStoppedError:  # it is on its way out, and is revived then
                    await anyio.sleep(0.002)
                except (dgents.StorageError, dgents.StateCorruptionError) as error:
                    # A tell or a flush may still have met the last fault, and what was read as damaged is in memory.
                    if tries <= 0:
                        raise
                    tries -= 1
                    if isinstance(error, dgents.StateCorruptionError):
                        self._crash(self._name)

    async def _look(self) -> Found | None:
        ref = self.ref
        await ref.load(**({} if self.is_stream else {"default": None}))  # a virtual one wakes
        cell = ref._live()
        if not self.is_durable:
            self._know(cell)
        before = cell.version
        forms = await cell.call(cell.history, None, alone=True)
        kept = {form.version: form.decode(cell.codec) for form in forms}
        try:
            snapshot = await ref.snapshot()
            version, state = snapshot.version, snapshot.state
        except dgents.StateNotFoundError:
            version, state = cell.version, None
        if version != before:  # a reminder fell due in the middle
            return None
        return Found(version, normal(state), kept, self.window)

    def _know(self, cell: Any) -> None:
        """Take note of what it is made of; while it is opened again that can't be told."""
        self.is_durable = cell.backend.store is not None
        self.is_lossy = cell.behind is not None and not cell.behind.journaled
        if self.is_stream:
            self.window = _ALL
        else:
            self.window = max(int(cell.backend.max_history), 1) if self.is_durable else int(cell.keep) + 1

    async def _revive(self) -> None:
        """See to it that the actor runs, if it can."""
        if self._is_virtual:
            return
        for name, agent in ((_SIBLING, lambda: dgents.VolatileAgent(0)), (self._name, self._agent)):
            while name not in self._rt.names():
                had_faults = bool(self.faults)
                try:
                    with within(self._deadline, f"spawn of {name!r}"):
                        await self._supervisor.spawn(name, agent())
                except dgents.ActorStoppedError:  # its supervisor was given up meanwhile
                    await anyio.sleep(0.002)
                except dgents.DgentError:
                    if not had_faults:
                        raise
                    if self.faults:
                        break

    def _agent(self) -> Any:
        return self._make(self._options, self.faults)

    async def _take(self, group: TaskGroup, step: Step) -> None:
        act = getattr(self, "_do_" + step.do.replace(" ", "_"), None)
        if act is not None:
            await act(group, step)
            return
        await self._revive()
        if step.do == "burst":
            for n in range(step.n, step.n + step.amount):
                self._start(group, Step("append" if self.is_stream else "update", n, request=step.request))
        else:
            self._start(group, step)
        for _ in range(3):
            await anyio.lowlevel.checkpoint()

    @property
    def is_stream(self) -> bool:
        """Whether it takes events."""
        try:
            return hasattr(self.ref, "append")
        except KeyError:
            return False

    # Calls

    def _start(self, group: TaskGroup, step: Step) -> None:
        try:
            ref = self.ref
        except KeyError:  # it could not be revived yet
            return
        record = self._recorder.begin(step.do, step.n, step.request)
        scope = anyio.CancelScope()
        self._calls[record.start] = step, scope
        Context().run(group.start_soon, self._call, ref, step, record, scope)

    async def _call(self, ref: Any, step: Step, record: Record, scope: anyio.CancelScope) -> None:
        try:
            pending = call(ref, step, self._recorder.known)
            with scope:
                self._recorder.answered(record, (await cancelled_at(pending, step.leaves, scope))[1])
            if scope.cancelled_caught:
                self._recorder.left(record)
        except Violation as violation:
            self._failed = violation
        except Exception as error:
            try:
                self._recorder.raised(record, error)
            except Violation as violation:
                self._failed = violation
        finally:
            self._calls.pop(record.start, None)
            if not self._calls:
                self._idle.set()

    async def _answered(self) -> None:
        """Return when no call waits any more."""
        with anyio.move_on_after(self._deadline):
            while self._calls:
                self._idle = anyio.Event()
                await self._idle.wait()
        if self._failed is not None:
            raise self._failed
        if self._calls:
            waiting = ", ".join(str(step) for step, _ in self._calls.values())
            raise Violation(f"not answered within {self._deadline} s: {waiting}; {self._situation()}")

    def _situation(self) -> str:
        return situation(self._rt._cells.get(self._name), self.events)

    # What happens to it

    async def _do_pause(self, group: TaskGroup, step: Step) -> None:
        await anyio.sleep(step.amount / 1000)

    async def _do_expire(self, group: TaskGroup, step: Step) -> None:
        await anyio.sleep(self._options.ttl * 1.2)

    async def _do_leave(self, group: TaskGroup, step: Step) -> None:
        """One of the callers that wait leaves: the newest, or one before it."""
        for _, scope in list(self._calls.values())[-step.amount :][:1]:
            scope.cancel()

    async def _do_commit_fails(self, group: TaskGroup, step: Step) -> None:
        self.faults.add("before", step.amount)

    async def _do_answer_is_lost(self, group: TaskGroup, step: Step) -> None:
        self.faults.add("after", step.amount)

    async def _do_commit_is_slow(self, group: TaskGroup, step: Step) -> None:
        self.faults.add("slow", step.amount)

    async def _do_open_fails(self, group: TaskGroup, step: Step) -> None:
        self.faults.add("open", step.amount)

    async def _do_read_fails(self, group: TaskGroup, step: Step) -> None:
        self.faults.add("read", step.amount)

    async def _do_away(self, group: TaskGroup, step: Step) -> None:
        self.faults.add("away", step.amount)

    async def _do_damage(self, group: TaskGroup, step: Step) -> None:
        self.faults.add("damaged", 2 * step.amount)

    async def _do_heal(self, group: TaskGroup, step: Step) -> None:
        self.faults.heal()

    async def _do_crash(self, group: TaskGroup, step: Step) -> None:
        self._crash(self._name)

    async def _do_sibling_crashes(self, group: TaskGroup, step: Step) -> None:
        self._crash(_SIBLING)

    def _crash(self, name: str) -> None:
        if name in self._rt.names():
            self._rt.get(name)._live().crash(StorageError(f"injected: {name} crashes"))

    async def _do_passivate(self, group: TaskGroup, step: Step) -> None:
        family = self._rt._family(self._name)
        if family is None:
            return
        cell = self.ref._live()
        if cell.phase is Phase.RUNNING and cell.on_idle is None and (cell.free or cell.is_idle):
            family._passivate(cell)

    async def _do_stop(self, group: TaskGroup, step: Step) -> None:
        if self._name in self._rt.names():
            with within(self._deadline, "stop"):
                await self._rt.stop(self._name)

    # Watchers

    async def _do_watch(self, group: TaskGroup, step: Step) -> None:
        await self._revive()
        if self._name in self._rt.names():
            watcher = Watcher(self.ref, impatient=bool(step.amount))
            self._watching.append(watcher)
            self.seen_by_watchers.append(watcher.seen)
            Context().run(group.start_soon, watcher.run)

    async def _check_watchers(self) -> None:
        if not self._watching:
            return
        found = await self.look()
        with anyio.move_on_after(self._deadline):
            for watcher in self._watching:
                while not watcher.ended and found.state is not None and watcher.newest != found.version:
                    await watcher.changed()
        for watcher in self._watching:
            if watcher.error is not None:
                raise Violation(f"a watcher met {type(watcher.error).__name__}: {watcher.error}") from watcher.error
            if not watcher.ended and found.state is not None and watcher.newest != found.version:
                raise Violation(f"a watcher never saw version {found.version}; its last one is {watcher.newest}")
