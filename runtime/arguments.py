"""What is easily passed by mistake, refused in words, before it can do harm in a turn or in a store."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from dgents.runtime.errors import UnsupportedOperationError

_LONGEST = 100 * 366 * 86400.0  # seconds: a century, which every clock and every store can count

# Methods of refs that only some agents' actors have.
_ELSEWHERE = {
    **dict.fromkeys(("append", "append_event", "append_all", "events", "verify", "compact"), "StreamAgent"),
    **dict.fromkeys(("save_many", "search", "search_many", "count", "get"), "VectorAgent"),
    **dict.fromkeys(("query", "aggregate"), "SQLAgent"),
    "execute": "RedisAgent",
}


class MethodMissingError(UnsupportedOperationError, AttributeError):
    """A ref has no such method: that of another kind of agent has it."""


def missing_method(ref: str, actor: str, agent: object, name: str) -> AttributeError:
    """Return the error for a method that a ref has not got."""
    has_it = _ELSEWHERE.get(name)
    if has_it is None:
        return AttributeError(f"{ref!r} object has no attribute {name!r}")
    return MethodMissingError(
        f"{name} of {actor!r}: its agent is a {type(agent).__name__}, and the refs of a {has_it} have {name}()",
        actor=actor,
        hint=f"spawn a {has_it}, or use load, save, update",
    )


def check_agent(what: str, agent: Any) -> None:
    """Refuse what is no agent.

    Raises:
        TypeError: it is none, or the class of one.
    """
    if isinstance(agent, type) or not callable(getattr(agent, "backend", None)):
        raise TypeError(f"{what}: {agent!r} is no agent; give an instance, such as VolatileAgent(0)")


def check_function(what: str, fn: Any) -> None:
    """Refuse what can't be called; ``what`` is the call it was given to.

    Raises:
        TypeError: it can't be called.
    """
    if not callable(fn):
        raise TypeError(
            f"{what}: {type(fn).__name__} is no function; give one that takes the state and returns the new one, "
            "or save the state itself"
        )


def check_number(what: str, name: str, value: Any) -> None:
    """Refuse what is no whole number.

    Raises:
        TypeError: it is none.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{what}: {name} is {value!r}; give a whole number")


def check_limit(what: str, limit: Any) -> None:
    """Refuse what is no number of the newest versions; None stands for all of them.

    Raises:
        TypeError: it is no whole number.
        ValueError: it is negative.
    """
    if limit is None:
        return
    check_number(what, "limit", limit)
    if limit < 0:
        raise ValueError(f"{what}: limit is {limit}; give 0 or more, or None for all that are kept")


def check_changes(what: str, changes: Any) -> None:
    """Refuse what is no patch; raises TypeError."""
    if not isinstance(changes, Mapping):
        raise TypeError(f"{what}: give a mapping, {{'path.to.field': value}}, not {changes!r}")


def check_name(what: str, name: Any) -> None:
    """Refuse what can't be the name of an actor, to look one up; raises TypeError."""
    if not isinstance(name, str):
        raise TypeError(f"{what}: {name!r} is no name; give a string")


def check_text(what: str, name: str, value: Any) -> None:
    """Refuse what is no text that a store could keep.

    Raises:
        TypeError: it is no text.
        ValueError: it is empty, or holds a lone surrogate.
    """
    if not isinstance(value, str):
        raise TypeError(f"{what}: {name} is {value!r}; give a string")
    if not value:
        raise ValueError(f"{what}: {name} is empty; give a string that names it")
    if not is_encodable(value):
        raise ValueError(f"{what}: {name} {value!r} has a lone surrogate, which no store can hold")


def check_count(name: str, value: Any, *, least: int = 1, most: int | None = None, of: str = "whole number") -> None:
    """Refuse what is no count: a truth value, a fraction, or one out of range.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        bounds = f"{least:,} or more" if most is None else f"from {least:,} to {most:,}"
        raise ValueError(f"{name} is {value!r}; give a {of}, {bounds}")


def check_history(value: Any) -> None:
    """Refuse a ``max_history`` that is no number of versions; raises ValueError."""
    check_count("max_history", value, least=0, of="number of versions")


def check_seconds(name: str, value: Any, *, positive: bool = True, bounded: bool = True, default: str = "") -> None:
    """Refuse what is no time in seconds: a truth value, NaN, a negative one.

    Args:
        positive: 0 is none either.
        bounded: nor is one beyond any clock.
        default: what else could be given, for the message.

    Raises:
        ValueError: it is none.
    """
    if not is_number(value) or not (value > 0 if positive else value >= 0) or (bounded and value > _LONGEST):
        least = "more than 0" if positive else "0 or more"
        raise ValueError(f"{name} is {value!r}; give seconds, {least}{default}")


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Refuse what is none of ``choices``; raises ValueError."""
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise ValueError(f"{name} is {value!r}; give one of {', '.join(map(repr, choices))}")


def check_path(name: str, value: Any) -> str:
    """Return a path as text. What it is instead is not repeated: it may be a URL with a password.

    Raises:
        TypeError: it is neither text nor a path.
        ValueError: it names no file, or one that no database and no record could name.
    """
    if isinstance(value, type):
        raise TypeError(f"{name} is the class {value.__name__}; give a path")
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str):
        raise TypeError(f"{name} is {type(path).__name__}; give a path, as text or a pathlib.Path")
    if not path or "\0" in path:
        raise ValueError(f"{name} names no file: it is empty, or has a NUL in it")
    if not is_encodable(path):
        raise ValueError(f"{name} is no text that could be stored: a part of it can't be decoded")
    return path


def check_key(name: str, value: Any) -> str:
    """Return the name of a state in its store.

    Raises:
        TypeError: it is no text; a class is taken for the schema that it was meant to be.
        ValueError: it is empty.
    """
    if isinstance(value, type):
        raise TypeError(f"{name} is the class {value.__name__}; give schema={value.__name__}")
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r}; give a string")
    if not value:
        raise ValueError(f"{name} is empty; give a string that names it")
    return value


def check_database_key(name: str, value: Any) -> str:
    """Return the name of a state in a database, whose texts are UTF-8.

    Raises as `check_key`, and:
        ValueError: it holds a lone surrogate.
    """
    check_key(name, value)
    if not is_encodable(value):
        raise ValueError(f"{name} {value!r} has a lone surrogate, which no database can hold")
    return value  # type: ignore[no-any-return]


def is_encodable(text: str) -> bool:
    """Say whether ``text`` can be written as UTF-8: it holds no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_number(value: Any) -> bool:
    """Say whether ``value`` is an int or a float: no truth value, and not NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
