"""What is easily passed by mistake, refused in words, before it can do harm in a turn or in a store."""

from __future__ import annotations

from typing import Any

from dgents.runtime.errors import UnsupportedOperationError

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
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what}: {name} {value!r} has a lone surrogate, which no store can hold") from error
