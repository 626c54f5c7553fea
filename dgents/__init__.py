"""dgents: concurrent state for multi-agent systems, one owner per state.

Each D-gent is an actor that owns one piece of state and the backend that persists it. Everybody else holds a `Ref` and
sends it messages, so two writers can never overwrite each other.

Example:
    >>> async with dgents.Runtime() as rt:
    ...     counter = await rt.spawn("counter", dgents.VolatileAgent(0))
    ...     await counter.update(lambda n: n + 1)
    1
"""

from dgents.backends.file import PersistentAgent
from dgents.backends.redis import RedisAgent
from dgents.backends.redis_ref import RedisRef
from dgents.backends.sql import SQLAgent
from dgents.backends.sql_ref import SQLRef
from dgents.backends.stream import StreamAgent
from dgents.backends.stream_ref import StreamRef
from dgents.backends.vector import VectorAgent
from dgents.backends.vector_ref import VectorRef
from dgents.backends.vector_search import Hit
from dgents.backends.volatile import VolatileAgent
from dgents.runtime.data_agent import DataAgent
from dgents.runtime.errors import (
    ActorError,
    ActorStoppedError,
    AskTimeoutError,
    DeadlockError,
    DgentError,
    InvalidVectorError,
    LeaseExpiredError,
    MailboxFullError,
    NameTakenError,
    OwnershipLostError,
    StaleStateError,
    StateCorruptionError,
    StateError,
    StateLockedError,
    StateNotFoundError,
    StateSerializationError,
    StateTooLargeError,
    StorageError,
    UnsupportedOperationError,
    VersionConflictError,
)
from dgents.runtime.events import Event
from dgents.runtime.lens import Lens
from dgents.runtime.messages import Append, Delete, History, Load, Message, Patch, Save, Search, Update
from dgents.runtime.ref import Ref
from dgents.runtime.saved_message import remindable
from dgents.runtime.stats import ActorStats
from dgents.runtime.symbiont import Symbiont
from dgents.runtime.transaction import Transaction
from dgents.runtime.turns import Snapshot
from dgents.supervisors.cached import CachedAgent
from dgents.supervisors.entropy import EntropyConstrainedAgent
from dgents.supervisors.flush import Flush
from dgents.supervisors.policy import Backoff
from dgents.supervisors.runtime import Runtime, open_sync
from dgents.supervisors.tree import Supervisor

__all__ = [
    "ActorError",
    "ActorStats",
    "ActorStoppedError",
    "Append",
    "AskTimeoutError",
    "Backoff",
    "CachedAgent",
    "DataAgent",
    "DeadlockError",
    "Delete",
    "DgentError",
    "EntropyConstrainedAgent",
    "Event",
    "Flush",
    "History",
    "Hit",
    "InvalidVectorError",
    "LeaseExpiredError",
    "Lens",
    "Load",
    "MailboxFullError",
    "Message",
    "NameTakenError",
    "OwnershipLostError",
    "Patch",
    "PersistentAgent",
    "RedisAgent",
    "RedisRef",
    "Ref",
    "Runtime",
    "SQLAgent",
    "SQLRef",
    "Save",
    "Search",
    "Snapshot",
    "StaleStateError",
    "StateCorruptionError",
    "StateError",
    "StateLockedError",
    "StateNotFoundError",
    "StateSerializationError",
    "StateTooLargeError",
    "StorageError",
    "StreamAgent",
    "StreamRef",
    "Supervisor",
    "Symbiont",
    "Transaction",
    "UnsupportedOperationError",
    "Update",
    "VectorAgent",
    "VectorRef",
    "VersionConflictError",
    "VolatileAgent",
    "open_sync",
    "remindable",
]
