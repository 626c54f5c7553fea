"""dgents: an actor-based concurrent state runtime for multi-agent systems."""

from dgents.backends.volatile import VolatileAgent
from dgents.runtime.errors import *  # noqa: F403
from dgents.supervisors.policy import Backoff
from dgents.supervisors.runtime import Runtime, open_sync
