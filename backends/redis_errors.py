"""What the errors of a Redis server and of redis-py mean here, and what to do about each."""

from __future__ import annotations

import asyncio
import re

from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    InvalidResponse,
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from dgents.backends.redis_url import RedisPlace
from dgents.runtime.errors import Outcome, StorageError

FAILURES = (RedisError, RedisClusterException, OSError, asyncio.TimeoutError)

# code: (what happened, whether trying again can help, what to do). Each says that the command was not
# executed.
_MEANINGS = {
    "OOM": ("it is at its maxmemory", True, "raise maxmemory, delete keys, or give states a ttl"),
    "READONLY": ("it is a read-only replica", True, "name the primary, or use a redis+sentinel:// URL"),
    "LOADING": ("it is still loading its data", True, None),
    "BUSY": ("it is busy with a long script", True, "find the script (SCRIPT KILL ends it)"),
    "MASTERDOWN": ("it is a replica whose primary is down", True, None),
    "CLUSTERDOWN": ("the cluster is down", True, "look at CLUSTER INFO"),
    "TRYAGAIN": ("the cluster is moving these keys", True, None),
    "MISCONF": ("it can't save to its disk and refuses to write", True, "look at its log and its disk"),
    "NOREPLICAS": ("it has too few replicas to accept a write", True, "look at min-replicas-to-write"),
    "NOPERM": (
        "this user may not do that",
        False,
        "give the ACL user the keys, channels and commands in docs/redis.md",
    ),
    "NOAUTH": ("it asks for a password", False, "put user and password into the URL"),
    "WRONGPASS": ("it refused the user or the password", False, "check user and password of the URL"),
    "MOVED": ("it is a node of a cluster", False, "use a redis+cluster:// URL"),
    "NOSCRIPT": ("it forgot a script", True, None),
}
_CODE = re.compile(rf"(?<![A-Z])({'|'.join(_MEANINGS)})(?![A-Z])")
# Older redis-py strips the code from the message and tells it by the class alone.
_CODES_BY_CLASS = {
    "OutOfMemoryError": "OOM",
    "ReadOnlyError": "READONLY",
    "BusyLoadingError": "LOADING",
    "MasterDownError": "MASTERDOWN",
    "ClusterDownError": "CLUSTERDOWN",
    "TryAgainError": "TRYAGAIN",
    "NoPermissionError": "NOPERM",
    "MovedError": "MOVED",
    "AskError": "MOVED",
    "NoScriptError": "NOSCRIPT",
}
# What a user lacks the right to in the middle of a script: by then the script may have changed something.
_IN_SCRIPT = "The user executing the script can't"


def code_of(error: BaseException | str) -> str | None:
    """Return the code of a refusal, or None for any other error."""
    if isinstance(error, str):
        if _IN_SCRIPT in error:
            return "NOPERM"
        found = _CODE.search(error)
        return found.group(1) if found else None
    if isinstance(error, AuthenticationError | AuthorizationError):
        return "WRONGPASS" if "invalid" in str(error) else "NOAUTH"
    by_class = _CODES_BY_CLASS.get(type(error).__name__)
    if by_class is not None or not isinstance(error, ResponseError):
        return by_class
    return code_of(str(error))


def translate(
    error: BaseException | str, place: RedisPlace, *, outcome: Outcome, waited: float | None = None
) -> StorageError:
    """Return the typed error for what a server answered or a connection met.

    Args:
        outcome: what became of the command if the error itself does not say so.
        waited: the time limit that ran out, in seconds.
    """
    if isinstance(error, RedisClusterException) and error.__cause__ is not None:
        error = error.__cause__  # what the last node that was tried has said
    code = code_of(error)
    if code is not None:
        what, retryable, hint = _MEANINGS[code]
        if _IN_SCRIPT not in str(error):
            outcome = "rolled_back"
        return StorageError(f"{place.safe} refused: {what}", retryable=retryable, outcome=outcome, hint=hint)
    if isinstance(error, RedisTimeoutError | TimeoutError):
        limit = f" within {waited:g} s" if waited is not None else " in time"
        return StorageError(
            f"{place.safe} did not answer{limit}",
            outcome=outcome,
            hint="look whether it is paused or overloaded; ?socket_timeout= in the URL sets the limit",
        )
    text = place.scrub(str(error)).partition("\n")[0][:200]
    if isinstance(error, InvalidResponse) or "Protocol error" in text:
        return nonsense(place, outcome)
    if isinstance(error, ResponseError | str):
        return StorageError(f"{place.safe} refused: {text}", retryable=False, outcome=outcome)
    retryable = "SSL" not in text and "certificate" not in text
    return StorageError(
        f"{place.safe} can't be reached: {text or type(error).__name__}",
        retryable=retryable,
        outcome=outcome,
        hint=None if retryable else "check the scheme (rediss:// is TLS) and the certificates (?ssl_ca_certs=)",
    )


def nonsense(place: RedisPlace, outcome: Outcome) -> StorageError:
    """Return the error for a reply that no Redis gives."""
    return StorageError(
        f"{place.safe} does not answer as a Redis does",
        retryable=False,
        outcome=outcome,
        hint="check host and port of the URL, and what stands between",
    )
