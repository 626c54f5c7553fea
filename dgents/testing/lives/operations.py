"""What can be asked of an actor: each call on the real one, and what it makes of a plain state.

A state is ``{"by": n, "items": [n, ...], "f": {name: n}}``, or None where nothing is saved. Each write leaves its own
number in it, so from two versions that follow one another it can be told which write lies between.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import anyio

import dgents
from dgents.testing.lives.script import Step

State: TypeAlias = dict[str, Any] | None
Seen: TypeAlias = tuple[str, Any]  # what a reply shows: "state", "version", "items", "history", "old", "absent", ...


def empty() -> dict[str, Any]:
    """Return the state before the first."""
    return {"by": 0, "items": [], "f": {}}


DEFAULT = empty()  # one object for all calls, which belongs to their caller: nobody may change it


def normal(state: State) -> State:
    """Return the state; None for the one that an empty stream begins with: nothing was saved there either."""
    return None if state == empty() else state


class Injected(Exception):
    """What a caller's own function raises here."""


class NotThere(Exception):
    """The step can't be done where nothing is saved."""


def append(state: dict[str, Any], n: int) -> dict[str, Any]:
    """Change a state in place, as users do, and return it."""
    state["items"].append(n)
    state["by"] = n
    return state


async def append_slowly(state: dict[str, Any], n: int, suspensions: int) -> dict[str, Any]:
    """Do the same, and let others run meanwhile."""
    state["items"].append(n)
    for _ in range(suspensions):
        await anyio.sleep(0.0005)
    state["by"] = n
    return state


def fail(state: dict[str, Any], n: int) -> dict[str, Any]:
    """Change the state in place, and raise: nothing of it may stay."""
    state["items"].append(n)
    raise Injected


def fold(state: dict[str, Any], event: dict[str, Any]) -> dict[str, Any]:
    """Apply the event ``{"n": n}`` of a stream."""
    return append(state, event["n"])


# What a write makes of a state; the actor's own answer is held against it.


def _fresh(state: State, n: int) -> State:
    return {"by": n, "items": [], "f": {}}


def _appended(state: State, n: int) -> State:
    old = state or empty()
    return {**old, "by": n, "items": [*old["items"], n]}


def _patched(state: State, n: int) -> State:
    if state is None:
        raise NotThere
    return {**state, "by": n, "f": {**state["f"], "a": n}}


def _item_added(state: State, n: int) -> State:
    if state is None:
        raise NotThere
    return {**state, "items": [*state["items"], n]}


def _part_replaced(state: State, n: int) -> State:
    if state is None:
        raise NotThere
    return {**state, "f": {"l": n}}


def _deleted(state: State, n: int) -> State:
    if state is None:
        raise NotThere
    return None


AFTER: dict[str, Callable[[State, int], State]] = {
    "save": _fresh,
    "cas": _fresh,
    "update": _appended,
    "slow": _appended,
    "transaction": _appended,
    "lease": _appended,
    "tell": _appended,
    "append": _appended,
    "patch": _patched,
    "remind": _patched,
    "lens": _item_added,
    "lens save": _part_replaced,
    "delete": _deleted,
}


async def call(ref: dgents.Ref[Any], step: Step, known: int) -> Seen | None:
    """Do one step and return what its reply shows; ``known`` is the newest version that was seen."""
    return await CALLS[step.do](ref, step, known)


def _id(step: Step) -> str | None:
    return f"r{step.n}" if step.request else None


async def _save(ref: dgents.Ref[Any], step: Step, known: int) -> Seen:
    return "version", await ref.save(_fresh(None, step.n), request_id=_id(step))


async def _cas(ref: dgents.Ref[Any], step: Step, known: int) -> Seen:
    return "version", await ref.save(_fresh(None, step.n), if_version=known + step.amount)


async def _update(ref: dgents.Ref[Any], step: Step, known: int) -> Seen:
    return "state", await ref.update(append, step.n, default=DEFAULT, request_id=_id(step))


async def _slow(ref: dgents.Ref[Any], step: Step, known: int) -> Seen:
    return "state", await ref.update(append_slowly, step.n, step.amount, default=DEFAULT, request_id=_id(step))


async def _fails(ref: dgents.Ref[Any], step: Step, known: int) -> None:
    await ref.update(fail, step.n, default=DEFAULT)


async def _patch(ref: dgents.Ref[Any], step: Step, known: int) -> Seen:
    return "version", await ref.patch({"by": step.n, "f.a": step.n}, request_id=_id(step))


async def _lens(ref: dgents.Ref[Any], step: Step, known: int) -> Seen:
    return "items", await ref.at("items").update(lambda items: [*items, step.n])


async def _lens_save(ref: dgents.Ref[Any], step: Step, known: int) -> Seen:
    return "version", await ref.at("f").save({"l": step.n})


async def _transaction(ref: dgents.Ref[Any], step: Step, known: int) -> None:
    async with ref.transaction() as tx:
        try:
            state = tx.state
        except dgents.StateNotFoundError:
            state = empty()
        for _ in range(step.amount):
            await anyio.lowlevel.checkpoint()
        tx.state = append(state, step.n)


async def _undone(ref: dgents.Ref[Any], step: Step, known: int) -> None:
    async with ref.transaction() as tx:
        tx.state = _fresh(None, step.n)
        raise Injected


async def _lease(ref: dgents.Ref[Any], step: Step, known: int) -> Seen:
    view = ref.for_update(lease=60.0)
    return "version", await view.save(_appended(await view.load(default=None), step.n))


async def _tell(ref: dgents.Ref[Any], step: Step, known: int) -> None:
    await ref.tell(dgents.Update(append, (step.n,), DEFAULT))


async def _remind(ref: dgents.Ref[Any], step: Step, known: int) -> None:
    soon = datetime.now(UTC) + timedelta(milliseconds=step.amount)
    await ref.remind(f"m{step.n}", dgents.Patch({"by": step.n, "f.a": step.n}), at=soon)


async def _delete(ref: dgents.Ref[Any], step: Step, known: int) -> None:
    await ref.delete(request_id=_id(step))


async def _append(ref: Any, step: Step, known: int) -> Seen:
    return "version", await ref.append({"n": step.n}, request_id=_id(step))


async def _load(ref: dgents.Ref[Any], step: Step, known: int) -> Seen:
    return "state", await ref.load(default=None)


async def _ask(ref: dgents.Ref[Any], step: Step, known: int) -> Seen:
    return "state", await ref.ask(dgents.Load(None), timeout=60)


async def _snapshot(ref: dgents.Ref[Any], step: Step, known: int) -> Seen:
    snapshot = await ref.snapshot()
    return "snapshot", (snapshot.version, snapshot.state)


async def _history(ref: dgents.Ref[Any], step: Step, known: int) -> Seen:
    return "history", await ref.history()


async def _version(ref: dgents.Ref[Any], step: Step, known: int) -> Seen:
    version = max(known - step.amount, 1)
    return "old", (version, await ref.load(version=version, default=None))


async def _part(ref: dgents.Ref[Any], step: Step, known: int) -> Seen:
    return "items", await ref.at("items").load()


async def _flush(ref: dgents.Ref[Any], step: Step, known: int) -> None:
    await ref.flush()


CALLS: dict[str, Callable[[Any, Step, int], Awaitable[Seen | None]]] = {
    "save": _save,
    "cas": _cas,
    "update": _update,
    "slow": _slow,
    "fails": _fails,
    "patch": _patch,
    "lens": _lens,
    "lens save": _lens_save,
    "transaction": _transaction,
    "undone": _undone,
    "lease": _lease,
    "tell": _tell,
    "remind": _remind,
    "delete": _delete,
    "append": _append,
    "load": _load,
    "ask": _ask,
    "snapshot": _snapshot,
    "history": _history,
    "version": _version,
    "part": _part,
    "flush": _flush,
}
