"""The phases of an actor's life."""

from __future__ import annotations

from enum import Enum


class Phase(Enum):
    """What an actor is at a moment; the table in `actor` says how one becomes another."""

    PASSIVE = "passive"
    RUNNING = "running"
    RESTARTING = "restarting"
    STOPPED = "stopped"
