"""The turns on a state: what each message does to it, with no I/O and no waiting.

A turn sees the current state and ends in a new state, a reply, or an error; after an error nothing has changed. Every
turn here is an ordinary function: it runs at once and can't be interrupted. (`apply` of an async function is the
exception: it returns a coroutine, which the actor's own task finishes.)

Invariants
  1. The state is present in at least one of three forms, or in none (nothing saved, or deleted): ``value`` (an
     immutable object, handed out as it is), ``data`` (encoded), ``tree`` (decoded builtins, private to the actor;
     then ``data`` may lag behind and is MISSING).
  2. ``version`` grows by one per turn that wrote.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from copy import deepcopy
from datetime import UTC, datetime
from inspect import CORO_CREATED, getcoroutinestate
from time import time
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar

import msgspec
from msgspec.structs import replace

from dgents.runtime.codec import Codec
from dgents.runtime.contract import Request
from dgents.runtime.errors import (
    StaleStateError,
    StateError,
    StateNotFoundError,
    StateSerializationError,
    StateTooLargeError,
    StorageError,
    VersionConflictError,
)
from dgents.runtime.patch import apply_patch, encode_patch, get_part, parse_path, set_part
from dgents.runtime.roundtrip import find_difference
from dgents.runtime.shapes import immutable

if TYPE_CHECKING:
    from dgents.runtime.commit import Committer, Staged

S = TypeVar("S")


class _Missing:
    """Stands for no value where None is one."""

    def __repr__(self) -> str:
        return "..."

    def __reduce__(self) -> str:
        return "MISSING"


class BackendFailure(Exception):
    """A turn's own use of its backend failed (as opposed to an error in the user's function)."""

    def __init__(self, error: StorageError) -> None:
        super().__init__(str(error))
        self.error = error


class Interrupted(Exception):
    """The actor crashed while a turn waited for earlier writes: the turn is to be run again."""


MISSING: Final = _Missing()
_HEADER_GROWTH = 4  # bytes by which a map's header may grow with a new key
SCALARS: Final[frozenset[type]] = frozenset({int, str, bytes, float, bool, type(None)})
Bytes: TypeAlias = bytes | None


def own_copy(state: Any) -> Any:
    """Return a copy that nobody else has; what can't be changed, and a bare ``object()``, is handed out as it is.

    Raises:
        StateSerializationError: it can't be copied, so it is no state.
    """
    if immutable(state) or type(state) is object:
        return state
    try:
        return deepcopy(state)
    except Exception as error:
        raise StateSerializationError(
            f"a state of {type(state).__name__} can't be copied: {error}", hint="give one that is data"
        ) from error


class Snapshot(msgspec.Struct, Generic[S], frozen=True):
    """One version of a state.

    Attributes:
        state: the caller's own copy.
        version: grows by one with each turn that wrote; 0 for an initial state that was never saved.
        epoch: grows by one with each owner.
        saved_at: when, UTC; it informs and never decides.
    """

    state: S
    version: int
    epoch: int
    saved_at: datetime


class Form(msgspec.Struct, frozen=True, gc=False):
    """A state as an actor keeps it: immutable value or encoded data, with what a snapshot tells of it."""

    value: Any
    data: Bytes
    version: int = 0
    epoch: int = 0
    saved_at: float = 0.0
    schema: int | None = None

    def decode(self, codec: Codec[S]) -> S:
        """Return the caller's own copy."""
        if self.value is not MISSING:
            return self.value  # type: ignore[no-any-return]
        assert self.data is not None
        return codec.decode(self.data, self.schema)

    def snapshot(self, codec: Codec[S]) -> Snapshot[S]:
        return Snapshot(self.decode(codec), self.version, self.epoch, datetime.fromtimestamp(self.saved_at, UTC))


class Pending:
    """What an async function will make of ``state``, which is version ``version``."""

    __slots__ = ("new", "state", "version")

    def __init__(self, new: Awaitable[Any], state: Any, version: int) -> None:
        self.new = new
        self.state = state
        self.version = version

    def drop(self) -> None:
        """Let go of a coroutine that was never begun."""
        if type(self.new) is CoroutineType and getcoroutinestate(self.new) == CORO_CREATED:
            self.new.close()


class StateTurns:
    """A state in memory and the turns on it."""

    __slots__ = (
        "codec",
        "committer",
        "data",
        "deltas",
        "earlier",
        "epoch",
        "gate",
        "keep",
        "lifted_at",
        "name",
        "observed",
        "requests",
        "saved_at",
        "scalars",
        "tree",
        "tree_bytes",
        "value",
        "version",
        "watchers",
    )

    name: str
    codec: Codec[Any]
    scalars: frozenset[type]  # types that need no encoding: none for a state that is stored
    keep: int  # how many earlier versions are kept in memory: 0 for a state that is stored
    deltas: bool  # the store takes each version, and can take a patch as no more than the change
    gate: Staged | None
    committer: Committer | None
    watchers: Any
    observed: bool  # somebody is to be told of each new version
    limit: tuple[int, float] | None

    def clear(self) -> None:
        """Forget the state: nothing is saved, or it is not in memory."""
        self.value: Any = MISSING
        self.data: Bytes = None
        self.tree: Any = MISSING
        self.tree_bytes = 0  # what the tree takes at most, encoded
        self.version = 0
        self.lifted_at = -1  # the version that is not in the store as it is in memory: initial, or lifted
        self.epoch = 0
        self.saved_at = 0.0
        self.earlier: deque[Any] | None = None
        self.requests: dict[str, Request] | None = None

    # Reading

    @property
    def absent(self) -> bool:
        return self.value is MISSING and self.data is None and self.tree is MISSING

    def form(self) -> Form:
        """Return the current state, or raise StateNotFoundError."""
        if self.value is MISSING and self.data is None:
            if self.tree is MISSING:
                raise self.not_found()
            self.data = self.codec.from_tree(self.tree)
        return Form(self.value, self.data, self.version, self.epoch, self.saved_at)

    def form_or_none(self) -> Form | None:
        """Return the current state, or None if nothing is saved."""
        return None if self.absent else self.form()

    def look(self) -> tuple[Form | None, int]:
        """Return the current state, None if nothing is saved, and the version: that nothing was there is seen too."""
        return self.form_or_none(), self.version

    def current(self) -> Any:
        """Return a copy of the current state that the turn may change."""
        if self.value is not MISSING:
            return self.value
        if self.data is not None:
            try:
                return self.codec.read(self.data)
            except (ValueError, TypeError, OverflowError, RecursionError):
                pass  # the long way is its second try, or its error
        return self.form().decode(self.codec)

    def not_found(self) -> StateNotFoundError:
        return StateNotFoundError(
            f"nothing is saved in {self.name!r}" + (f" (deleted at version {self.version})" if self.version else ""),
            actor=self.name,
            hint="save a state first, or pass default=",
        )

    def forms(self, limit: int | None = None) -> list[Form]:
        """Return the versions that are kept in memory, oldest first."""
        forms = [form for form in self._kept() if form.data is not None or form.value is not MISSING]
        return forms if limit is None else forms[max(len(forms) - limit, 0) :]

    def versions_after(self, version: int) -> list[Form]:
        """Return the versions that are kept in memory and newer than ``version``, encoded, oldest first."""
        newer = [form for form in self._kept() if form.version > version]
        return [
            form if form.value is MISSING else replace(form, value=MISSING, data=self.codec.encode(form.value))
            for form in newer
        ]

    def _kept(self) -> list[Form]:
        """Return the versions in memory, deleted ones among them, the current one last."""
        earlier = self.earlier or ()
        kept = [
            replace(form, version=version) if type(form) is Form else Form(form, None, version)
            for version, form in enumerate(earlier, self.version - len(earlier))
        ]
        if not self.absent:
            kept.append(self.form())
        elif self.version:
            kept.append(Form(MISSING, None, self.version, self.epoch, self.saved_at))
        return kept

    # Writing

    def encode(self, state: Any) -> tuple[Any, Bytes]:
        """Return ``state`` as ``(value, data)``; raises when it can't be stored."""
        if type(state) in self.scalars:
            return state, None
        try:
            data = self.codec.encode(state)
        except StateError as error:
            raise self.named(error) from None
        return (state if self.codec.is_immutable(state) else MISSING), self.check_size(data)

    def too_large(self, size: int) -> StateTooLargeError:
        assert self.limit is not None
        limit, budget = self.limit
        return StateTooLargeError(
            f"save of {self.name!r} refused: the state is {size:,} bytes, its budget of {budget:.2f} allows {limit:,}",
            actor=self.name,
            size=size,
            limit=limit,
            budget=budget,
            hint="raise max_size_bytes or the budget, or split the state",
        )

    def check_size(self, data: Bytes) -> Bytes:
        """Return encoded data that is within the budget."""
        if self.limit is not None and data is not None and len(data) > self.limit[0]:
            raise self.too_large(len(data))
        return data

    def named(self, error: StateError) -> StateError:
        """Name the actor in an error of the codec, which many actors share."""
        if error.actor is None:
            error.actor = self.name
            error.message = f"{self.name!r}: {error.message}"
        return error

    def check(self, if_version: int | None, seen: int | None) -> None:
        """Refuse a save that would overwrite what its sender does not know."""
        if if_version is not None:
            actual = 0 if self.absent else self.version
            if if_version != actual:
                raise VersionConflictError(if_version, actual, actor=self.name)
        elif seen is not None and seen != self.version:
            raise StaleStateError(
                seen,
                self.version,
                actor=self.name,
                message=f"save of {self.name!r} refused: it would overwrite version {self.version}, "
                f"but this task last saw version {seen}",
                hint="use `await ref.update(fn)`, or `async with ref.transaction() as tx:`, or the drop-in view "
                "`ref.for_update()`, whose load() takes the turn and whose save() gives it back",
            )

    def put(self, value: Any, data: Bytes, if_version: int | None = None, seen: int | None = None) -> int:
        """Save an encoded state and return its version."""
        if if_version is not None or seen is not None:
            self.check(if_version, seen)
        self.accept(value, self.check_size(data))  # it may have been encoded before the actor was there
        return self.version

    def apply(self, fn: Callable[..., Any], args: tuple[Any, ...], default: Any = MISSING) -> Any:
        """Save what ``fn`` makes of the state and return the new state; a `Pending` of it if ``fn`` is async."""
        state = self.value
        if state is MISSING:
            state = own_copy(default) if default is not MISSING and self.absent else self.current()
        return self.apply_result(fn(state, *args), state)

    def apply_result(self, new: Any, state: Any) -> Any:
        """Save what a function made of ``state``."""
        if type(new) in self.scalars and (new is not None or state is None):
            self.accept(new, None)
            return new
        if hasattr(type(new), "__await__"):
            return Pending(new, state, self.version)
        self._accept_new(new, state)
        return new

    def apply_queued(self, fn: Callable[..., Any], args: tuple[Any, ...], default: Any = MISSING) -> Any:
        """Do the same for a queued message: the reply is the new state and its version, or a coroutine of both."""
        new = self.apply(fn, args, default)
        return self.finish(new) if type(new) is Pending else (new, self.version)

    async def finish(self, pending: Pending) -> tuple[Any, int]:
        """Finish an update whose function is async; the turn goes on until it is done."""
        new = await pending.new
        self._accept_new(new, pending.state)
        return new, self.version

    async def resume(
        self, pending: Pending, fn: Callable[..., Any], args: tuple[Any, ...], default: Any
    ) -> tuple[Any, int]:
        """Finish an update that was called before it was queued; call it again if its state was taken back since."""
        if self.version != pending.version:
            pending.drop()
            new = self.apply(fn, args, default)
            if type(new) is not Pending:
                return new, self.version
            pending = new
        return await self.finish(pending)

    def _accept_new(self, new: Any, state: Any) -> None:
        if new is None and state is not None and not self.codec.is_immutable(state):
            raise StateSerializationError(
                f"update of {self.name!r} refused: the function returned None",
                actor=self.name,
                hint="return the new state (a function that changes its argument in place must return it too)",
            )
        self.accept(*self.encode(new))

    def delete(self) -> int:
        """Delete the state: the next version is a tombstone. Return the version."""
        if not self.absent:
            self.accept(MISSING, None)
        return self.version

    def patch(self, changes: Mapping[str, Any]) -> int:
        """Set parts of the state by path and return the new version."""
        parts, deepest = {}, 1
        for path, value in changes.items():
            segments = parse_path(path)
            codec = self.codec.at(segments)
            parts[path] = codec.to_tree(codec.encode(value))
            deepest = max(deepest, len(segments))
        if self.tree is MISSING:
            self.tree = self._tree()
        delta = encode_patch(parts)
        size = (self.tree_bytes if self.data is None else len(self.data)) + len(delta) + _HEADER_GROWTH * len(parts)
        is_delta = self.deltas and self.lifted_at != self.version
        fits = is_delta and self.limit is None and self.codec.bounds.allow(size, delta, deepest - 1)
        if not fits:
            self.form()  # there is encoded data to go back to
        apply_patch(self.tree, delta)  # all or nothing
        tree, data = self.tree, None
        if not fits:
            self.tree = MISSING  # in case it is refused
            data = self._encode_tree(tree)
        self.accept(MISSING, data, tree=tree, delta=delta if is_delta else None)
        self.tree_bytes = size
        return self.version

    # Parts of the state, for lenses

    def part(self, path: tuple[str, ...]) -> tuple[bytes, int]:
        """Return the encoded part at ``path``, and the version."""
        return self.codec.from_tree(get_part(self._tree(), path)), self.version

    def put_part(self, path: tuple[str, ...], data: bytes, seen: bytes | None = None) -> int:
        """Save a part of the state; refuse it if the part is not what its sender saw."""
        tree = self._tree()
        if seen is not None and not self._is_still(seen, get_part(tree, path)):
            raise StaleStateError(
                self.version,
                self.version,
                actor=self.name,
                message=f"save of {'.'.join(path)!r} in {self.name!r} refused: this part has changed since this task "
                "loaded it",
                hint="use update(fn) of the lens",
            )
        set_part(tree, path, self.codec.to_tree(data))
        encoded = self._encode_tree(tree)
        self.codec.decode(encoded)  # the whole must still be a state of its schema
        self.accept(MISSING, encoded)
        return self.version

    def _is_still(self, seen: bytes, part: Any) -> bool:
        """Say whether a part is what was seen; the items of a set may have come back in another order."""
        return self.codec.from_tree(part) == seen or find_difference(self.codec.to_tree(seen), part) is None

    def apply_part(self, path: tuple[str, ...], fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Save what ``fn`` makes of a part; return the new part and the version."""
        codec = self.codec.at(path)
        new = fn(codec.decode(self.part(path)[0]), *args)
        if hasattr(type(new), "__await__"):
            return self._apply_part_async(path, codec, new)
        return new, self.put_part(path, codec.encode(new))

    async def _apply_part_async(self, path: tuple[str, ...], codec: Codec[Any], pending: Any) -> tuple[Any, int]:
        new = await pending
        return new, self.put_part(path, codec.encode(new))

    def _encode_tree(self, tree: Any) -> bytes:
        try:
            data = self.codec.from_tree(tree)
        except StateError as error:
            raise self.named(error) from None
        self.check_size(data)
        return data

    def _tree(self) -> Any:
        """Return a tree of the state that the turn may change."""
        form = self.form()
        return self.codec.to_tree(form.data if form.data is not None else self.codec.encode(form.value))

    # The one place where the state changes

    def accept(self, value: Any, data: Bytes, *, tree: Any = MISSING, delta: Bytes = None) -> None:
        """Make this the current state, one version on."""
        if self.keep:
            self._remember()
        self.value = value
        self.data = data
        self.tree = tree
        self.version += 1
        self.saved_at = time()
        if self.committer is not None:
            self.persist(delta)
        elif self.observed:
            self.changed()

    def persist(self, delta: Bytes) -> None:
        """Hand the new version on to the store."""
        raise NotImplementedError

    def changed(self) -> None:
        """Take note of a new version that waits for no store."""
        raise NotImplementedError

    def _remember(self) -> None:
        """Keep the version that is about to be replaced: its value, or its encoded data in a `Form`."""
        earlier = self.earlier
        if earlier is None:
            if self.absent and not self.version:
                return  # nothing was saved before the first version
            earlier = self.earlier = deque(maxlen=self.keep)
        earlier.append(self.value if self.data is None else Form(MISSING, self.data))
