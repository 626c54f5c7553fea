"""Every error that dgents raises, in one tree.

Each message says what happened, to which actor and key, and what to do about it. A failed call also says, in
``outcome``, what became of the write: ``"not_started"`` (no turn ran), ``"rolled_back"`` (nothing was kept), or
``"unknown"`` (the store could not be asked; it may or may not hold the write).
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

Outcome: TypeAlias = Literal["not_started", "rolled_back", "unknown"]


class DgentError(Exception):
    """The root of all errors of this library.

    Args:
        message: what happened, to what, with the numbers.
        actor: the name of the actor concerned.
        key: the key in the store, where it differs from the name.
        outcome: what became of the write, if there was one.
        hint: what to do about it; printed after the message.
    """

    default_outcome: Outcome = "not_started"

    def __init__(
        self,
        message: str,
        *,
        actor: str | None = None,
        key: str | None = None,
        outcome: Outcome | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.actor = actor
        self.key = key
        self.outcome: Outcome = outcome or self.default_outcome
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.__dict__.copy())


def _rebuild(cls: type[DgentError], message: str, fields: dict[str, Any]) -> DgentError:
    error = cls.__new__(cls)
    Exception.__init__(error, message)
    error.__dict__.update(fields)
    return error


class StateError(DgentError):
    """Something is wrong with a state, or with what was asked of it. Nothing was changed."""

    default_outcome: Outcome = "rolled_back"


class StateNotFoundError(StateError, LookupError):
    """Nothing was ever saved here (or it was deleted), and no default was given."""


class StateSerializationError(StateError, TypeError):
    """A state holds something that can't be stored; ``path`` says where (``$.callback``)."""

    def __init__(self, message: str, *, path: str = "$", **fields: Any) -> None:
        super().__init__(message, **fields)
        self.path = path


class InvalidVectorError(StateSerializationError, ValueError):
    """A vector, or the id of one, that can't be kept or searched with; nothing was changed.

    Args:
        position: which of the vectors of the call it is, from 0; None where the call as a whole is wrong.
        id: the id it was to be stored under, if there is one.
    """

    def __init__(
        self, message: str, *, position: int | None = None, id: str | int | None = None, **fields: Any
    ) -> None:
        fields.setdefault("path", "$" if position is None else f"$[{position}]")
        super().__init__(message, **fields)
        self.position = position
        self.id = id


class StateCorruptionError(StateError, ValueError):
    """What the store holds can't be read as a state. It is left as it was found.

    Args:
        path: the file, database or key.
        offset: the byte at which reading failed, where there is one.
        event: the number of the event that is not what was appended, in a stream.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | None = None,
        offset: int | None = None,
        event: int | None = None,
        **fields: Any,
    ) -> None:
        super().__init__(message, **fields)
        self.path = path
        self.offset = offset
        self.event = event


class StateTooLargeError(StateError, ValueError):
    """A state is larger than its budget allows; nothing was written. ``size`` and ``limit`` are in bytes."""

    def __init__(
        self, message: str, *, size: int = 0, limit: int = 0, budget: float | None = None, **fields: Any
    ) -> None:
        super().__init__(message, **fields)
        self.size = size
        self.limit = limit
        self.budget = budget


class VersionConflictError(StateError):
    """A compare-and-set found another version than the one it named."""

    def __init__(self, expected: int, actual: int, *, message: str | None = None, **fields: Any) -> None:
        actor = fields.get("actor")
        where = f" of {actor!r}" if actor else ""
        text = message or f"the state{where} is at version {actual}, not at {expected}"
        if "hint" not in fields:
            fields["hint"] = "load it again and decide anew, or use update(fn), which can't conflict"
        super().__init__(text, **fields)
        self.expected = expected
        self.actual = actual


class StaleStateError(VersionConflictError):
    """A plain ``save`` would overwrite a version that this task has never seen."""


class UnsupportedOperationError(StateError, NotImplementedError):
    """This kind of agent has no such operation; the hint names the one to use."""


class StorageError(DgentError, OSError):
    """The backend failed: unreachable, full, refused.

    Args:
        retryable: whether trying the same again can help.
    """

    default_outcome: Outcome = "rolled_back"

    def __init__(self, message: str, *, retryable: bool = True, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.retryable = retryable


class OwnershipLostError(StorageError):
    """A newer owner claimed this state (a higher epoch); this one wrote nothing and stopped."""

    def __init__(self, message: str, *, retryable: bool = False, **fields: Any) -> None:
        super().__init__(message, retryable=retryable, **fields)


class StateLockedError(StorageError):
    """Another process owns this state; ``pid`` and ``host`` name it."""

    default_outcome: Outcome = "not_started"

    def __init__(
        self,
        message: str,
        *,
        pid: int | None = None,
        host: str | None = None,
        retryable: bool = True,
        **fields: Any,
    ) -> None:
        super().__init__(message, retryable=retryable, **fields)
        self.pid = pid
        self.host = host


class ActorError(DgentError):
    """The message could not be dealt with by its actor."""


class ActorStoppedError(ActorError):
    """The actor, or its whole runtime, is not running."""


class MailboxFullError(ActorError):
    """The mailbox is at its bound; ``refused`` is the message that was not taken."""

    def __init__(self, message: str, *, refused: Any = None, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.refused = refused


class DeadlockError(ActorError):
    """A chain of asks came back to an actor in the middle of its own turn; ``chain`` names it."""

    def __init__(self, message: str, *, chain: tuple[str, ...] = (), **fields: Any) -> None:
        super().__init__(message, **fields)
        self.chain = chain


class LeaseExpiredError(ActorError, TimeoutError):
    """The lease ran out before ``save`` gave the turn back; nothing was written."""

    default_outcome: Outcome = "rolled_back"


class NameTakenError(ActorError, ValueError):
    """An actor of this name is already running in this runtime."""


class AskTimeoutError(ActorError, TimeoutError):
    """No reply within the timeout. ``outcome`` says whether the turn had started (``"unknown"``)."""
